"""Every family encodes and decodes activations of any axes, [..., d], as it does their rows."""

import pytest
import torch
from pydantic import TypeAdapter

from saetool.autoencoders.families import AutoencoderSettings, build

D = 6
FAMILIES = {
    "relu": {"kind": "sparse"},
    "topk": {"kind": "sparse", "activation": {"kind": "topk", "k": 3}},
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
