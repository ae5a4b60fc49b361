"""Every family takes activations of any axes, [..., d], as it does their rows, and knows no modes."""

import pytest
import torch
from pydantic import TypeAdapter

from saetool.autoencoders.base import Step
from saetool.autoencoders.families import AutoencoderSettings, build

D = 6
FAMILIES = {
    "relu": {"kind": "sparse"},
    "topk": {"kind": "sparse", "activation": {"kind": "topk", "k": 3}},
    "batch_topk": {"kind": "sparse", "activation": {"kind": "batch_topk", "k": 3}},
    "jump_relu": {"kind": "sparse", "activation": {"kind": "jump_relu"}, "penalty": {"kind": "l0", "weight": 1.0}},
    "gated": {"kind": "sparse", "activation": {"kind": "gated"}, "penalty": {"kind": "l1", "weight": 0.2}},
    "linear": {"kind": "linear", "solver": "gradient"},
    "dense": {"kind": "dense", "hidden": (4,)},
    "denoising residual": {
        "kind": "denoising",
        "corruption": {"kind": "gaussian", "sigma": 0.3},
        "residual": True,
        "hidden": (4,),
    },
    "contractive": {"kind": "contractive", "weight": 0.3},
    "variational": {"kind": "variational"},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("axes", [(), (1,), (2, 3), (2, 3, 4), (0, 3)])
def test_encode_and_friends_take_any_axes_before_the_last(family, axes):
    torch.manual_seed(0)
    model = build(TypeAdapter(AutoencoderSettings).validate_python({"n_latents": 8} | FAMILIES[family]), D).eval()
    x = torch.randn(*axes, D)
    rows = x.reshape(-1, D)
    with torch.no_grad():
        z, x_hat = model.encode(rows), model(rows)
        assert model.encode(x).shape == (*axes, 8)
        torch.testing.assert_close(model.encode(x).reshape(-1, 8), z)
        torch.testing.assert_close(model.decode(z.reshape(*axes, 8)).reshape(-1, D), model.decode(z))
        torch.testing.assert_close(model(x).reshape(-1, D), x_hat)
        torch.testing.assert_close(model.encode_sparse(x).dense(), model.encode_sparse(rows).dense())


@pytest.mark.parametrize("family", [*FAMILIES, "sigmoid"])
@pytest.mark.parametrize("rows", [0, 1, 700])
@pytest.mark.parametrize("latents", [[], [5], [0, 3, 7], list(range(8))])
def test_some_latents_alone_have_the_values_they_have_among_all(family, rows, latents):
    torch.manual_seed(0)
    settings = FAMILIES.get(
        family, {"kind": "sparse", "activation": {"kind": "sigmoid"}, "penalty": {"kind": "kl", "rho": 0.05}}
    )
    model = build(TypeAdapter(AutoencoderSettings).validate_python({"n_latents": 8} | settings), D).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    x, some = torch.randn(rows, D), torch.tensor(latents, dtype=torch.int64)
    with torch.inference_mode():
        found, wanted = model.encode_some(x, some), model.encode_sparse(x).dense()[:, some]
    assert (found.rows, found.n_latents) == wanted.shape
    torch.testing.assert_close(found.dense(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_train_and_eval_change_neither_codes_nor_loss(family):
    torch.manual_seed(0)
    model = build(TypeAdapter(AutoencoderSettings).validate_python({"n_latents": 8} | FAMILIES[family]), D)
    x = torch.randn(20, D)
    found = []
    for mode in (True, False):
        model.train(mode)
        loss = model.loss(x, Step(0), torch.Generator().manual_seed(0)).total
        found.append([model.encode(x), model(x), loss])
        assert model.training == mode
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loss_and_an_encoding_leave_nothing_behind_on_the_model(family):
    """What a step needs of its batch goes along with its loss: two losses are one after the other as each alone."""
    torch.manual_seed(0)
    model = build(TypeAdapter(AutoencoderSettings).validate_python({"n_latents": 8} | FAMILIES[family]), D)
    x = torch.randn(20, D)
    model.loss(x, Step(0), torch.Generator())  # what is read off the device, or compiled, is remembered once
    before = _state(model)
    model.loss(x + 1, Step(7), torch.Generator())
    model.encode(x)
    assert _state(model) == before


def _state(model):
    """Return everything that modules hold by name, tensors as their bytes."""
    held = {}
    for place, module in model.named_modules():
        for name, value in vars(module).items():
            held[f"{place}.{name}"] = repr(value) if isinstance(value, int | float | str | tuple | dict) else id(value)
    return held | {name: tensor.detach().numpy().tobytes() for name, tensor in model.state_dict().items()}
