"""Every dense family goes through the same trainer into the same kind of artifact, and comes back the same."""

import json

import pytest
import torch
from pydantic import TypeAdapter

from saetool.activations import TensorStream
from saetool.autoencoders.families import AutoencoderSettings, load
from saetool.training import TrainingSettings, train

FAMILIES = {
    "linear": {"kind": "linear", "n_latents": 8},
    "linear trained": {"kind": "linear", "n_latents": 8, "solver": "gradient"},
    "dense": {"kind": "dense", "n_latents": 8, "hidden": [16], "pretrain": True, "error": "cross_entropy"},
    "denoising": {"kind": "denoising", "n_latents": 8, "corruption": {"kind": "gaussian", "sigma": 0.2}},
    "residual": {
        "kind": "denoising",
        "n_latents": 8,
        "residual": True,
        "corruption": {"kind": "masking", "share": 0.1},
    },
    "contractive": {"kind": "contractive", "n_latents": 8, "hidden": [16], "weight": 0.1},
    "variational": {
        "kind": "variational",
        "n_latents": 4,
        "hidden": [16],
        "likelihood": "bernoulli",
        "warmup_steps": 5,
    },
    "probabilistic pca": {"kind": "variational", "n_latents": 4, "solver": "closed_form"},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_trained_sealed_and_loaded(name, digits, tmp_path):
    rows = digits[0]
    settings = TypeAdapter(AutoencoderSettings).validate_python(FAMILIES[name])
    training = TrainingSettings(tokens=64 * 120, batch_size=64, lr=1e-2, log_every=10)
    stream = TensorStream(rows[:1500], rows[1500:], batch_size=64)
    artifact = train(stream, settings, training, tmp_path / "autoencoder")
    model = load(artifact.path)
    assert model.loss_convention() == artifact.content["loss_convention"]
    held_out = rows[1500:]
    x_hat = model(held_out).detach().double()
    fvu = float((x_hat - held_out).square().sum() / (held_out - held_out.mean(0)).square().sum())
    final = [json.loads(line) for line in (artifact.path / "metrics.jsonl").read_text().splitlines()][-1]
    assert final["fvu"] == pytest.approx(fvu, rel=1e-4)
    assert fvu < 1
    torch.testing.assert_close(model.encode(held_out[:3]), model.encode(held_out)[:3])
    own = {key: final[key] for key in ("elbo", "active_units") if key in final}
    assert own == {key: artifact.content["final"][key] for key in own}
    assert len(own) == (2 if settings.kind == "variational" else 0)
    if name == "probabilistic pca":
        spread = model.decoder.weights[0] @ model.decoder.weights[0].T + model.noise_variance() * torch.eye(64)
        density = torch.distributions.MultivariateNormal(rows[:1500].double().mean(0), spread.detach().double())
        assert own["elbo"] == pytest.approx(float(density.log_prob(held_out.double()).mean()), rel=1e-3)
    elif own:
        drawn = model.elbo(held_out, torch.Generator().manual_seed(0)).detach().mean()
        assert own["elbo"] == pytest.approx(float(drawn), abs=1.0)
