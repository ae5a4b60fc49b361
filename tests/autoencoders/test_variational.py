"""Variational autoencoders: the divergence, the bounds, and probabilistic PCA as their exact linear case."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from saetool.autoencoders.base import Step
from saetool.autoencoders.variational import Variational, VariationalSettings, kl_from_standard_normal
from saetool.errors import RequestError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def model_of(d_in, **settings):
    return Variational(VariationalSettings(**settings), d_in)


@pytest.fixture(scope="module")
def rows():
    """1,500 rows in R^6: two strong directions, a mean, noise; float64."""
    mixing = torch.randn(2, 6, generator=generator(1), dtype=torch.float64)
    latents = torch.randn(1500, 2, generator=generator(2), dtype=torch.float64)
    return latents @ mixing + 0.4 * torch.randn(1500, 6, generator=generator(3), dtype=torch.float64) + 2


def probabilistic_pca(rows, k, noise=None):
    """Return each row's log-likelihood under the maximum likelihood model."""
    return raw_density(rows, k, noise).log_prob(rows)


def raw_density(rows, k, noise=None):
    """Return the maximum likelihood model of probabilistic PCA (Tipping & Bishop 1999), by numpy."""
    x = rows.numpy()
    values, vectors = np.linalg.eigh(np.cov(x, rowvar=False, bias=True))
    values, vectors = values[::-1], vectors[:, ::-1]
    variance = values[k:].mean() if noise is None else noise**2
    low_rank = vectors[:, :k] * np.maximum(values[:k] - variance, 0) @ vectors[:, :k].T
    covariance = torch.tensor(low_rank + variance * np.eye(x.shape[1]))
    return MultivariateNormal(rows.mean(0), covariance)


def test_divergence_equals_torch_distributions():
    mean, log_variance = torch.randn(2, 40, 5, generator=generator(), dtype=torch.float64)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(kl_from_standard_normal(mean, log_variance), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
@pytest.mark.parametrize("hidden", [(), (7,)])
def test_the_loss_is_the_negative_elbo_with_its_constants(likelihood, hidden):
    model = model_of(5, n_latents=3, hidden=hidden, likelihood=likelihood).double()
    x = torch.rand(200, 5, generator=generator(), dtype=torch.float64)
    with torch.no_grad():
        model.encoder.weights[-1][3:].normal_(generator=generator(5)).mul_(0.3)
    mean, variance = model.posterior(x)
    elbo = 0
    for seed in range(400):  # the expectation over q, by brute force
        z = mean + variance.sqrt() * torch.randn(200, 3, generator=generator(seed), dtype=torch.float64)
        logits = model.decoder(z, logits=True)
        if likelihood == "gaussian":
            log_likelihood = Normal(logits, model.noise_variance().sqrt()).log_prob(x)
        else:
            log_likelihood = x * logits - torch.log1p(logits.exp())
        elbo = elbo + log_likelihood.sum(1) - kl_divergence(Normal(mean, variance.sqrt()), Normal(0.0, 1.0)).sum(1)
    losses = [model.loss(x, Step(0), generator(1000 + seed)) for seed in range(400)]
    average = torch.stack([loss.total for loss in losses]).mean()
    assert float((average + elbo.mean() / 400).detach()) == pytest.approx(0, abs=0.02)
    torch.testing.assert_close(losses[0].metrics["elbo"], -losses[0].total.detach())


def test_reparametrized_gradients_are_right():
    model = model_of(4, n_latents=2, hidden=(3,)).double()
    x = torch.rand(6, 4, generator=generator(), dtype=torch.float64)
    names, values = zip(*model.named_parameters(), strict=True)

    class Losing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return model.loss(x, Step(0), generator(9)).total

    def total(*parameters):
        swapped = {f"model.{name}": value for name, value in zip(names, parameters, strict=True)}
        return torch.func.functional_call(Losing(), swapped, (x,))

    assert torch.autograd.gradcheck(total, values)


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("normalize", ["none", "center_scale"])
@pytest.mark.parametrize("noise", [None, 0.5])
def test_closed_form_linear_model_is_probabilistic_pca(rows, rows_stream, k, normalize, noise):
    if noise is not None and normalize != "none":
        noise_setting = noise * math.sqrt(6 / float(rows.var(0, correction=0).sum()))
    else:
        noise_setting = noise
    model = model_of(6, n_latents=k, solver="closed_form", normalize=normalize, noise=noise_setting).double()
    assert model.fit(rows_stream(rows))
    expected = probabilistic_pca(rows, k, noise)
    torch.testing.assert_close(model.elbo(rows, generator()).detach(), expected, rtol=1e-9, atol=1e-9)
    # The posterior is exact, so every single sample's importance weight is the likelihood itself.
    sampled, bound = model.importance_bound(rows, 3, generator())
    torch.testing.assert_close(sampled.detach(), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(bound.detach(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("normalize", ["none", "center_scale"])
def test_every_reported_elbo_is_the_density_of_raw_rows(rows, rows_stream, normalize):
    """Of the exact model they are probabilistic PCA's likelihood, of training rows and of rows held out."""
    for scale in (1.0, 30.0):  # a log-density falls by d · ln 30
        train, held_out = scale * rows[:1000], scale * rows[1000:]
        model = model_of(6, n_latents=2, solver="closed_form", normalize=normalize).double()
        assert model.fit(rows_stream(train))
        own = float(probabilistic_pca(train, 2).mean())
        metric = model.loss(train, Step(0), generator()).metrics["elbo"]
        assert float(metric) == pytest.approx(own, rel=1e-9)
        summary = model.summarize(train.split(70), 0)
        assert summary["elbo"] == pytest.approx(own, rel=1e-9)
        density = raw_density(train, 2)
        summary = model.summarize(held_out.split(70), 0)
        assert summary["elbo"] == pytest.approx(float(density.log_prob(held_out).mean()), rel=1e-9)
        assert summary["active_units"] == 2
    first = float(probabilistic_pca(rows[:1000], 2).mean())
    assert own == pytest.approx(first - 6 * math.log(30), rel=1e-9)


@pytest.mark.parametrize("normalize", ["none", "center_scale"])
def test_a_deep_models_summary_is_its_elbo_by_brute_force(rows, rows_stream, normalize):
    model = model_of(6, n_latents=3, hidden=(7,), normalize=normalize).double()
    model.initialize(rows_stream(rows), generator(1))
    x = rows[:300]
    mean, variance = model.posterior(x)
    sigma = model.noise_variance().sqrt() / model.normalizer.factor
    values = []
    for seed in range(300):
        z = mean + variance.sqrt() * torch.randn(300, 3, generator=generator(seed), dtype=torch.float64)
        values.append(Normal(model.decode(z), sigma).log_prob(x).sum(1).mean().detach())
    divergence = kl_divergence(Normal(mean, variance.sqrt()), Normal(0.0, 1.0)).sum(1).mean()
    expected = float(torch.stack(values).mean() - divergence.detach())
    found = [model.summarize(x.split(100), seed) for seed in range(40)]
    assert sum(one["elbo"] for one in found) / 40 == pytest.approx(expected, abs=0.03)
    assert len({one["elbo"] for one in found}) == 40
    assert model.summarize(x.split(100), 7) == found[7]
    active = int((model.encode(x).detach().numpy().var(0) > 0.01).sum())
    assert {one["active_units"] for one in found} == {active}
    assert model.summarize([], 0) == {}


def test_a_trained_linear_model_comes_close_to_probabilistic_pca(rows, rows_stream, learn):
    model = learn(model_of(6, n_latents=2), rows_stream(rows.float(), batch_size=500), 800, lr=2e-2)
    best = float(probabilistic_pca(rows, 2).mean()) / 6
    mine = float(model.elbo(rows.float(), generator()).mean().detach()) / 6
    assert best - 0.02 <= mine <= best + 1e-6


@pytest.fixture(scope="module")
def on_digits(digits, rows_stream, learn):
    """Deep Bernoulli models of the digits at β = .5, 1 and 4."""
    shape = {"n_latents": 10, "hidden": (64,), "activation": "relu", "likelihood": "bernoulli"}
    stream = rows_stream(digits[0][:1400])
    return [learn(model_of(64, beta=beta, **shape), stream, 250, lr=5e-3) for beta in (0.5, 1.0, 4.0)]


def test_elbo_stays_below_the_importance_bound_of_the_same_samples(digits, on_digits):
    test = digits[0][1400:]
    elbo, bound = (values.detach() for values in on_digits[1].importance_bound(test, 50, generator()))
    assert bool((elbo <= bound).all())
    assert float((bound - elbo).mean()) > 0.1
    again = on_digits[1].elbo(test, generator(1)).detach()
    assert float(again.mean()) == pytest.approx(float(elbo.mean()), abs=0.3)


def test_a_larger_beta_means_a_smaller_divergence_and_fewer_active_units(digits, on_digits):
    divergences = [float(m.loss(digits[0], Step(10**9), generator()).metrics["kl"]) for m in on_digits]
    assert all(later < earlier for earlier, later in pairwise(divergences))
    active = [int(model.active_units(digits[0].split(100)).sum()) for model in on_digits]
    assert active[0] >= active[1] > active[2]
    means = on_digits[2].encode(digits[0]).detach().double()
    assert active[2] == int((means.numpy().var(0) > 0.01).sum())


def test_samples_are_images_decoded_from_the_prior(digits, on_digits):
    images = on_digits[1].sample(500, generator(4)).detach()
    z = torch.randn(500, 10, generator=generator(4))
    torch.testing.assert_close(images, on_digits[1].decode(z).detach())
    assert bool(((images >= 0) & (images <= 1)).all())
    gap = (images.mean(0) - digits[0].mean(0)).abs().mean()
    assert float(gap) < 0.25 * float((digits[0].mean(0) - digits[0].mean()).abs().mean())


def test_beta_warms_up(digits):
    model = model_of(64, n_latents=4, beta=2.0, warmup_steps=10)
    parts = [model.loss(digits[0], Step(step), generator()) for step in (0, 4, 9, 50)]
    factors = [float((loss.parts["kl"] / loss.metrics["kl"]).detach()) for loss in parts]
    assert factors == pytest.approx([0.2, 1.0, 2.0, 2.0])


def test_log_variances_are_bounded_whatever_the_encoder_says():
    model = model_of(3, n_latents=2)
    with torch.no_grad():
        model.encoder.biases[0].fill_(1e6)
    mean, variance = (value.detach() for value in model.posterior(torch.zeros(1, 3)))
    assert bool(torch.isfinite(variance).all())
    assert float(variance.max()) == pytest.approx(math.exp(15), rel=1e-4)
    assert torch.equal(model.encode(torch.zeros(1, 3)).detach(), mean)


def test_bad_requests_are_named(rows, rows_stream):
    for wrong, words in [
        ({"likelihood": "bernoulli", "normalize": "scale"}, r"needs inputs in \[0, 1\]"),
        ({"likelihood": "bernoulli", "noise": 0.1}, "noise belongs to likelihood: gaussian"),
        ({"noise": 2000.0}, "lies outside"),
        ({"noise": 5e-4}, "lies outside"),
        ({"solver": "closed_form", "hidden": (3,)}, "needs no hidden layers"),
        ({"solver": "closed_form", "beta": 2.0}, "beta: 1"),
    ]:
        with pytest.raises(ValidationError, match=words):
            VariationalSettings(n_latents=2, **wrong)
    with pytest.raises(ValidationError, match="n_latents"):
        VariationalSettings(n_latents=0)
    bernoulli = model_of(6, n_latents=2, likelihood="bernoulli")
    with pytest.raises(RequestError, match=r"bernoulli needs every input in \[0, 1\]"):
        bernoulli.initialize(rows_stream(rows), generator())
    with pytest.raises(RequestError, match="use likelihood: gaussian"):
        bernoulli.loss(rows.float(), Step(0), generator())
    with pytest.raises(RequestError, match="leaves no variance to be noise"):
        model_of(6, n_latents=6, solver="closed_form").fit(rows_stream(rows))
    with pytest.raises(RequestError, match="set normalize: center_scale"):
        model_of(6, n_latents=2).initialize(rows_stream(rows * 1e5), generator())
    model_of(6, n_latents=2, normalize="center_scale").initialize(rows_stream(rows * 1e5), generator())
    with pytest.raises(RequestError, match="fix a larger noise"):
        model_of(6, n_latents=2, solver="closed_form", noise=0.01).fit(rows_stream(rows * 1e3))


@pytest.mark.parametrize("noise", [1500.0, 6e-4])
def test_a_noise_within_the_bounds_is_kept(noise):
    assert float(model_of(3, n_latents=2, noise=noise).double().noise_variance()) == pytest.approx(noise**2, rel=1e-4)


def test_the_closed_form_has_no_more_latents_than_the_rows_have_components(rows, rows_stream):
    model = model_of(6, n_latents=8, solver="closed_form", noise=0.1)
    with pytest.raises(RequestError, match="n_latents: 8 exceeds d_in 6"):
        model.fit(rows_stream(rows))


def test_a_bernoulli_bound_of_values_that_are_no_probabilities_is_refused():
    model, rows = model_of(5, n_latents=2, likelihood="bernoulli"), torch.full((2, 5), 3.0)
    for ask in (
        lambda: model.elbo(rows, torch.Generator()),
        lambda: model.importance_bound(rows, 2, torch.Generator()),
        lambda: model.summarize([rows], 0),
    ):
        with pytest.raises(RequestError, match="likelihood: bernoulli"):
            ask()
    with pytest.raises(RequestError, match="samples 0: at least one"):
        model.importance_bound(rows / 3, 0, torch.Generator())
