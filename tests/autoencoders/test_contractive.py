"""Contraction: the penalty is the Jacobian's norm, and it flattens the encoder across the data's manifold."""

import math

import pytest
import torch
from pydantic import ValidationError

from saetool.autoencoders.base import Step
from saetool.autoencoders.contractive import Contractive, ContractiveSettings

NARROW, WIDE = 3, 9


def model_of(d_in, **settings):
    return Contractive(ContractiveSettings(**{"weight": 0.1, **settings}), d_in).double()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rows_of(n, d, seed=0):
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "identity"])
@pytest.mark.parametrize("n_latents", [NARROW, 5, WIDE])
def test_closed_form_is_the_full_jacobians_norm(activation, n_latents):
    model, x = model_of(5, n_latents=n_latents, activation=activation), rows_of(20, 5)
    jacobian = torch.stack([torch.autograd.functional.jacobian(lambda row: model.encode(row[None])[0], r) for r in x])
    torch.testing.assert_close(model.jacobian(x), jacobian)
    norm = jacobian.square().sum((1, 2)).mean()
    loss = model.loss(x, Step(0), generator())
    torch.testing.assert_close(loss.metrics["jacobian_norm"], norm, rtol=1e-6, atol=0)
    torch.testing.assert_close(loss.parts["contraction"], 0.1 * norm, rtol=1e-6, atol=0)
    torch.testing.assert_close(loss.parts["reconstruction"], (model(x) - x).square().sum(1).mean())
    torch.testing.assert_close(loss.total, loss.parts["contraction"] + loss.parts["reconstruction"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("n_latents", [NARROW, WIDE])  # through vjp, through jvp
def test_probes_are_unbiased_with_the_variance_of_a_rademacher_probe(n_latents):
    model, x = model_of(5, n_latents=n_latents, hidden=(7,), activation="tanh"), rows_of(1, 5)
    probes, source = 4000, generator(1)
    draws = model.estimated_norm(x.repeat(probes, 1), model.levels, 1, source).detach()
    j = model.jacobian(x)[0].detach()
    gram = j @ j.T if n_latents <= 5 else j.T @ j
    off_diagonal = gram - torch.diag(gram.diagonal())
    variance = 2 * float(off_diagonal.square().sum())
    assert abs(float(draws.mean() - j.square().sum())) < 4 * math.sqrt(variance / probes)
    assert float(draws.var()) == pytest.approx(variance, rel=0.25)
    many = model.estimated_norm(x.repeat(1000, 1), model.levels, 16, source).detach()
    assert float(many.var()) == pytest.approx(variance / 16, rel=0.25)


@pytest.mark.parametrize("n_latents", [NARROW, WIDE])
@pytest.mark.parametrize("tied", [False, True])
def test_the_estimates_gradient_is_that_of_the_full_jacobian(n_latents, tied):
    settings = {"n_latents": n_latents, "hidden": (4,), "activation": "tanh", "tied": tied, "weight": 1.0}
    model, x = model_of(5, **settings), rows_of(6, 5)
    parameters = list(model.encoder.parameters())
    exact = torch.autograd.grad(model.jacobian(x).square().sum((1, 2)).mean(), parameters, allow_unused=True)
    norm = model.estimated_norm(x.repeat(5000, 1), model.levels, 2, generator(2)).mean()
    estimate = torch.autograd.grad(norm, parameters, allow_unused=True)
    for mine, true in zip(estimate, exact, strict=True):
        assert float((mine - true).norm()) <= 0.05 * float(true.norm()) + 1e-12


def test_closed_form_and_probes_agree_on_one_layer():
    x = rows_of(50, 5)
    closed, probed = (model_of(5, n_latents=1, activation="tanh", probes=probes) for probes in (None, 1))
    probed.load_state_dict(closed.state_dict())
    losses = [model.loss(x, Step(0), generator()).parts["contraction"] for model in (closed, probed)]
    torch.testing.assert_close(*losses)  # one latent: a probe of one sign is exact


@pytest.mark.parametrize("hidden", [(), (16,)])
def test_larger_weights_contract_more(digits, rows_stream, learn, hidden):
    norms = []
    for weight in (0.0, 1.0, 10.0):
        settings = ContractiveSettings(n_latents=24, hidden=hidden, weight=weight)
        model = learn(Contractive(settings, 64), rows_stream(digits[0]), 150)
        norms.append(float(model.jacobian(digits[0][:200]).square().sum((1, 2)).sqrt().mean().detach()))
    assert norms[0] > 1.5 * norms[1] > 4.5 * norms[2]


@pytest.mark.slow
def test_on_a_line_the_code_is_sensitive_along_it_only(rows_stream, learn):
    angle = torch.rand(4000, generator=generator()) * 1.5 * math.pi
    curve = torch.stack([angle.cos(), angle.sin()], 1)
    settings = ContractiveSettings(n_latents=8, hidden=(32,), activation="tanh", weight=0.5, tied=False)
    model = learn(Contractive(settings, 2), rows_stream(curve), 2500)
    assert float((model(curve) - curve).square().sum(1).mean().detach()) < 1e-3
    inner = curve[(angle > 0.3) & (angle < 1.5 * math.pi - 0.3)][:500]
    singular = torch.linalg.svdvals(model.jacobian(inner).detach())
    assert float((singular[:, 1] / singular[:, 0]).mean()) < 0.2
    along = torch.stack([-inner[:, 1], inner[:, 0]], 1)
    sensitivity = (model.jacobian(inner).detach() @ along[:, :, None]).squeeze(2).norm(dim=1)
    assert float((sensitivity / singular[:, 0]).mean()) > 0.9  # the sensitive direction is the tangent


@pytest.mark.slow
def test_a_wide_contractive_model_does_not_learn_the_identity(digits, rows_stream, learn):
    """Width 64 = d_in would let it copy: the penalty keeps the slope of x ↦ x̂ well below 1 off the data."""
    slopes = []
    for weight in (0.0, 0.3):
        settings = ContractiveSettings(n_latents=64, activation="sigmoid", weight=weight)
        model = learn(Contractive(settings, 64), rows_stream(digits[0]), 1500)
        noise = 0.1 * torch.randn(500, 64, generator=generator(3))
        clean = digits[0][:500]
        slopes.append(float(((model(clean + noise) - model(clean)).norm() / noise.norm()).detach()))
    assert slopes[0] > 0.7
    assert slopes[1] < 0.5


def test_an_untied_decoder_stays_bounded(digits, rows_stream, learn):
    settings = ContractiveSettings(n_latents=16, weight=1.0, tied=False, decoder_norm=0.7)
    model = learn(Contractive(settings, 64), rows_stream(digits[0]), 60, lr=0.1)
    norms = model.decoder.weights[0].detach().norm(dim=0)
    assert float(norms.max()) <= 0.7 * (1 + 1e-5)
    assert float(norms.max()) >= 0.69


def test_while_a_layer_trains_the_decoder_of_another_stands_still(digits, rows_stream, learn):
    settings = ContractiveSettings(n_latents=5, hidden=(8,), weight=0.1, tied=False, pretrain=True, decoder_norm=0.3)
    seen = {}

    def record(phase, model):
        seen.setdefault(phase, model.decoder.weights[0].clone())
        if phase == "level-1":
            assert torch.equal(model.decoder.weights[0], seen[phase])  # that of level 2, longer than 0.3 at the start

    learn(Contractive(settings, 64), rows_stream(digits[0]), 40, on_step=record)
    assert float(seen["level-1"].norm(dim=0).max()) > 0.3


def test_relu_is_warned_about_and_bad_requests_are_named():
    with pytest.warns(UserWarning, match="sigmoid and tanh feel both"):
        ContractiveSettings(n_latents=3, weight=1.0, activation="relu")
    with pytest.raises(ValidationError, match="weight"):
        ContractiveSettings(n_latents=3)
    with pytest.raises(ValidationError, match="probes"):
        ContractiveSettings(n_latents=3, weight=1.0, probes=0)
