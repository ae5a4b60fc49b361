"""Every family of autoencoders is evaluated by the same stage; those without sparse codes also get their pictures."""

import json

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file

from saetool.activations import write_store
from saetool.artifacts import run_stage
from saetool.autoencoders.families import OWN, AutoencoderSettings, load
from saetool.evaluation import EvaluationSettings, evaluation_stage
from saetool.training import TrainingSettings, train

CASES = {
    "sparse": {"n_latents": 12, "penalty": {"kind": "l1", "weight": 0.1}},
    "sparse-kl": {"n_latents": 12, "activation": {"kind": "sigmoid"}, "penalty": {"kind": "kl", "rho": 0.1}},
    "sparse-topk": {"n_latents": 12, "activation": {"kind": "topk", "k": 3}},
    "linear": {"n_latents": 3},
    "dense": {"n_latents": 3},
    "denoising": {"n_latents": 12, "corruption": {"kind": "gaussian", "sigma": 0.3}},
    "denoising-residual": {"n_latents": 12, "corruption": {"kind": "gaussian", "sigma": 0.3}, "residual": True},
    "denoising-salted": {
        "n_latents": 12,
        "corruption": {"kind": "salt_pepper", "share": 0.4},
        "normalize": "center_scale",
    },
    "denoising-entropy": {"n_latents": 12, "corruption": {"kind": "masking", "share": 0.4}, "error": "cross_entropy"},
    "dense-deep": {"n_latents": 3, "hidden": [5], "normalize": "center_scale"},
    "contractive": {"n_latents": 3, "weight": 0.1},
    "variational": {"n_latents": 3},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 4, 3, generator=generator) @ torch.randn(3, 8, generator=generator)
    noise = 0.1 * torch.randn(60, 4, 8, generator=generator)
    return write_store(tmp_path_factory.mktemp("families") / "store", torch.sigmoid(rows + noise)).artifact


def test_every_family_is_here():
    assert {name.partition("-")[0] for name in CASES} == set(OWN)


@pytest.mark.parametrize("case", CASES)
def test_a_family_is_evaluated(store, tmp_path, case):
    kind = case.partition("-")[0]
    settings = TypeAdapter(AutoencoderSettings).validate_python({"kind": kind, **CASES[case]})
    training = TrainingSettings(tokens=2000, batch_size=64, lr=3e-3, held_out=0.3)
    autoencoder = train(store, settings, training, tmp_path / "autoencoder")
    stage = evaluation_stage(autoencoder, store, EvaluationSettings(bootstrap=20, clusters=4))
    artifact = run_stage(stage, tmp_path / "evaluation")
    found = json.loads(artifact.file("evaluation.json").read_text())
    assert found["held_out"]["fvu"]["value"] == pytest.approx(autoencoder.content["final"]["fvu"], rel=1e-3)
    assert ("binarity" in found["held_out"]) == (case == "sparse-kl")
    if case == "sparse-topk":
        assert found["held_out"]["l0"]["value"] <= 3
    if kind == "sparse":
        assert "figures.safetensors" not in artifact.files
        return
    pictures = load_file(artifact.file("figures.safetensors"))
    assert pictures["originals"].shape == pictures["reconstructions"].shape == (16, 8)
    assert ("samples" in pictures) == (kind == "variational")
    assert ("corrupted" in pictures) == (kind == "denoising")
    assert torch.equal(pictures["spectrum"], pictures["spectrum"].sort(descending=True).values)
    assert all(tensor.isfinite().all() for tensor in pictures.values())
    shown, model = pictures.get("corrupted", pictures["originals"]), load(autoencoder.path)
    with torch.no_grad():
        assert torch.allclose(model(shown), pictures["reconstructions"], atol=1e-5)
    if case == "denoising-salted":
        changed = (shown - pictures["originals"]).abs() > 1e-3
        assert torch.allclose(shown[changed], shown[changed].round(), atol=1e-5), "salt is 1 and pepper 0 of raw values"
        assert 0.2 < float(changed.float().mean()) < 0.6
    linear = model.decoder_directions() is not None
    assert ("filters" in pictures, "encoder_filters" in pictures) == (linear, not linear)
    if not linear:
        expected = model.encoder.weights[0].detach() * model.normalizer.factor
        found = pictures["encoder_filters"]
        assert torch.equal(found, expected[expected.norm(dim=1).argsort(descending=True, stable=True)])
