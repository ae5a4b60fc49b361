"""What holds for every one of these families: right gradients, additive losses, exact copies, no use of labels."""

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load, save

from saetool.activations import write_store
from saetool.autoencoders.base import Step
from saetool.autoencoders.families import AutoencoderSettings, build
from saetool.training import TrainingSettings, train

D = 4
NOISE = {"kind": "gaussian", "sigma": 0.3}
MASK = {"kind": "masking", "share": 0.4}
SALT = {"kind": "salt_pepper", "share": 0.4}
DEEP = {"hidden": (3,), "activation": "tanh"}
FAMILIES = {
    "linear": {"kind": "linear", "solver": "gradient"},
    "linear tied": {"kind": "linear", "solver": "gradient", "tied": True},
    "dense": {"kind": "dense"},
    "dense deep": {"kind": "dense", "error": "cross_entropy", "tied": True, **DEEP},
    "denoising": {"kind": "denoising", "corruption": NOISE},
    "denoising residual": {"kind": "denoising", "corruption": NOISE, "residual": True, **DEEP},
    "denoising masked": {
        "kind": "denoising",
        "corruption": MASK,
        "error": "cross_entropy",
    },
    "denoising salted": {
        "kind": "denoising",
        "corruption": SALT,
        "normalize": "scale",
    },
    "contractive": {"kind": "contractive", "weight": 0.3},
    "contractive untied": {"kind": "contractive", "weight": 0.3, "tied": False, "normalize": "center_scale"},
    "contractive deep": {"kind": "contractive", "weight": 0.3, "probes": 2, **DEEP},
    "variational": {"kind": "variational"},
    "variational deep": {"kind": "variational", "beta": 2.0, "normalize": "center_scale", **DEEP},
    "variational bernoulli": {"kind": "variational", "likelihood": "bernoulli", **DEEP},
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def x():
    """Eight rows in [0, 1], float64."""
    return torch.rand(8, D, generator=generator(), dtype=torch.float64)


@pytest.fixture(params=[2, D, 7], ids=["narrow", "equal", "wide"])
def n_latents(request):
    return request.param


@pytest.fixture(params=FAMILIES)
def model(request, n_latents, x, rows_stream):
    """A model of every family and width, drawn and fitted to its rows' moments, float64."""
    settings = TypeAdapter(AutoencoderSettings).validate_python({**FAMILIES[request.param], "n_latents": n_latents})
    model = build(settings, D).double()
    model.initialize(rows_stream(x), generator(1))
    return model


class Total(torch.nn.Module):
    """A module whose forward is the total loss, always with the same noise."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model.loss(x, Step(0), generator(9)).total


def test_gradients_are_those_of_finite_differences(model, x):
    names, values = zip(*model.named_parameters(), strict=True)

    def total(*parameters):
        swapped = {f"model.{name}": value for name, value in zip(names, parameters, strict=True)}
        return torch.func.functional_call(Total(model), swapped, (x,))

    assert torch.autograd.gradcheck(total, values)


def test_the_total_is_the_sum_of_the_parts(model, x):
    loss = model.loss(x, Step(0), generator())
    torch.testing.assert_close(loss.total, sum(loss.parts.values()), rtol=1e-6, atol=0)


def test_a_copy_through_bytes_answers_the_same(model, x):
    copy = build(model.settings, D).double()
    copy.load_state_dict(load(save(model.state_dict())))
    assert torch.equal(copy.encode(x), model.encode(x))
    assert torch.equal(copy(x), model(x))
    assert model.encode(x).shape == (8, model.n_latents)
    assert model(x).shape == x.shape


@pytest.mark.parametrize("kind", ["dense", "denoising", "contractive", "variational"])
def test_labels_never_influence_training(kind, tmp_path):
    rows = torch.rand(60, 1, D, generator=generator(3))
    labels = [{"name": "kind", "kind": "category", "classes": ["a", "b"]}]
    images = [{"kind": "ab"[i % 2]} for i in range(60)]
    stores = [
        write_store(tmp_path / "plain", rows),
        write_store(tmp_path / "labeled", rows, images=images, labels=labels),
    ]
    settings = TypeAdapter(AutoencoderSettings).validate_python({**FAMILIES[kind], "n_latents": 3})
    training = TrainingSettings(tokens=200, batch_size=20, held_out=0.2)
    made = [train(store.artifact, settings, training, tmp_path / f"model-{i}") for i, store in enumerate(stores)]
    first, second = (load((artifact.path / "model.safetensors").read_bytes()) for artifact in made)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert made[0].content["final"] == made[1].content["final"]
