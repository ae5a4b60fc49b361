"""Denoising: the Wiener filter, the score, the manifold picture, and cleaner codes (Vincent et al. 2008; 2011)."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression

from saetool.autoencoders.base import Step
from saetool.autoencoders.corruption import corrupt
from saetool.autoencoders.denoising import Denoising, DenoisingSettings
from saetool.autoencoders.dense import Dense, DenseSettings
from saetool.errors import RequestError

GAUSSIAN = {"kind": "gaussian", "sigma": 0.2}


def model_of(d_in, **settings):
    return Denoising(DenoisingSettings(**{"corruption": GAUSSIAN, **settings}), d_in)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


# --- the objective ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("normalize", ["none", "center_scale"])
def test_the_target_is_the_clean_input_and_the_encoder_sees_the_noisy_one(residual, normalize, rows_stream):
    rows = normal(300, 5) * 3 + 1
    model = model_of(5, n_latents=4, hidden=(6,), residual=residual, normalize=normalize).double()
    model.initialize(rows_stream(rows), generator(1))
    clean = model.normalizer(rows)
    noisy = clean + 0.2 * torch.randn(300, 5, generator=generator(2), dtype=torch.float64)
    raw = model.normalizer.inverse(noisy)
    expected = ((model.denoise(raw) - rows) * model.normalizer.factor).square().sum(1).mean()
    torch.testing.assert_close(model.loss(rows, Step(0), generator(2)).total, expected)
    assert not torch.equal(model.loss(rows, Step(0), generator(3)).total, expected)
    correction = model.decode(model.encode(raw))
    torch.testing.assert_close(model(raw), raw + correction if residual else correction)
    assert torch.equal(model.encode(rows), model.encode(rows))  # encoding never corrupts


def test_cross_entropy_and_pretraining_work_for_every_noise_that_allows_them(digits, rows_stream, learn):
    stream = rows_stream(digits[0])
    for corruption in (GAUSSIAN, {"kind": "masking", "share": 0.3}, {"kind": "salt_pepper", "share": 0.2}):
        settings = {
            "n_latents": 8,
            "hidden": (16,),
            "error": "cross_entropy",
            "pretrain": True,
            "corruption": corruption,
        }
        seen = []
        learn(model_of(64, **settings), stream, 12, on_step=lambda phase, model, seen=seen: seen.append(phase))
        assert list(dict.fromkeys(seen)) == ["level-1", "level-2", "fine-tune"]


def test_pretraining_corrupts_the_codes_below_within_their_own_range(rows_stream):
    model = model_of(
        6,
        n_latents=3,
        hidden=(5,),
        activation="tanh",
        pretrain=True,
        corruption={"kind": "salt_pepper", "share": 0.5, "bounds": (0, 9)},
    ).double()
    x = normal(50, 6).abs()
    h = model.encode_levels(x, range(1, 2))
    noise = torch.rand(50, 5, generator=generator(4), dtype=torch.float64)
    noisy = h.masked_fill(noise < 0.25, -1).masked_fill(noise >= 0.75, 1)
    level = range(2, 3)
    expected = (model.decode_levels(model.encode_levels(noisy, level), level) - h).square().sum(1).mean()
    torch.testing.assert_close(model.loss(x, Step(0, phase="level-2"), generator(4)).total, expected)


def test_salt_and_pepper_are_raw_values_whatever_the_normalization(rows_stream):
    """Data in [0, 1] needs no bounds under center_scale, and its noise lies at 0 and 1 of the raw data."""
    x = torch.rand(400, 6, generator=generator(1))
    model = model_of(6, n_latents=3, normalize="center_scale", corruption={"kind": "salt_pepper", "share": 0.5})
    model.initialize(rows_stream(x), generator())
    h = model.normalizer(x)
    noisy = model.normalizer.inverse(corrupt(model.corruption, h, generator(2), model.normalizer))
    noise = torch.rand(400, 6, generator=generator(2))
    expected = x.masked_fill(noise < 0.25, 0).masked_fill(noise >= 0.75, 1)
    torch.testing.assert_close(noisy, expected, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(model.loss(x, Step(0), generator(2)).total)
    given = model.settings.corruption.model_copy(update={"bounds": (-3.0, 7.0)})
    noisy = model.normalizer.inverse(corrupt(given, h, generator(2), model.normalizer))
    assert float(noisy.min()) == pytest.approx(-3, abs=1e-4)
    assert float(noisy.max()) == pytest.approx(7, abs=1e-4)


# --- the linear gaussian case is the Wiener filter -------------------------------------------------------------------


@pytest.mark.slow
def test_linear_gaussian_denoising_is_the_wiener_filter(rows_stream, learn):
    sigma, eigenvalues = 0.7, torch.tensor([2.0, 1.0, 0.5, 0.2], dtype=torch.float64)
    basis = torch.linalg.qr(normal(4, 4)).Q
    covariance = basis * eigenvalues @ basis.T
    rows = normal(20_000, 4, seed=1)
    rows = (rows - rows.mean(0)) / rows.std(0, correction=0)
    rows = rows @ torch.linalg.cholesky(torch.linalg.inv(rows.T @ rows / len(rows)))  # white in this very sample
    rows = rows * eigenvalues.sqrt() @ basis.T
    settings = {"n_latents": 4, "activation": "identity", "corruption": {"kind": "gaussian", "sigma": sigma}}
    model = learn(model_of(4, **settings).double(), rows_stream(rows, batch_size=1024), 4000, lr=1e-2)
    product = (model.decoder.weights[0] @ model.encoder.weights[0]).detach()
    wiener = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(4))
    assert torch.linalg.matrix_norm(product - wiener) < 0.02 * torch.linalg.matrix_norm(wiener)
    least = float((eigenvalues * sigma**2 / (eigenvalues + sigma**2)).sum())
    # The expectation over the noise in closed form: ‖(A − I) S^½‖² + σ² ‖A‖², plus what the biases miss.
    offset = model.decoder.biases[0] + model.decoder.weights[0] @ model.encoder.biases[0]
    error = (
        ((product - torch.eye(4)) @ covariance @ (product - torch.eye(4)).T).trace()
        + sigma**2 * product.square().sum()
        + offset.detach().square().sum()
    )
    assert least <= float(error) <= 1.01 * least
    assert torch.linalg.matrix_norm(product - torch.eye(4)) > 0.5  # far from the identity that k = d would allow


def test_score_of_one_gaussian_is_exact(rows_stream):
    """A residual model set by hand to the posterior mean of N(m, S) gives −(S + σ²)⁻¹(x − m), in raw units."""
    sigma, m, rows = 0.5, torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64), normal(4000, 3)
    rows = rows @ torch.diag(torch.tensor([2.0, 1.0, 0.3], dtype=torch.float64)) + m
    for normalize in ("none", "center_scale"):
        settings = {"n_latents": 3, "activation": "identity", "residual": True, "normalize": normalize}
        model = model_of(3, corruption={"kind": "gaussian", "sigma": sigma}, **settings).double()
        model.initialize(rows_stream(rows), generator())
        units = model.normalizer(rows)
        mean, covariance = units.mean(0), units.T.cov(correction=0)
        wiener = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(3))
        with torch.no_grad():
            model.encoder.weights[0].copy_(torch.eye(3))
            model.encoder.biases[0].copy_(-mean)
            model.decoder.weights[0].copy_((wiener - torch.eye(3)) / sigma)
            model.decoder.biases[0].zero_()
        raw_sigma = sigma / float(model.normalizer.factor)
        smoothed = rows.T.cov(correction=0) + raw_sigma**2 * torch.eye(3, dtype=torch.float64)
        density = torch.distributions.MultivariateNormal(rows.mean(0), smoothed)
        x = (rows[:20] * 1.5).requires_grad_()
        density.log_prob(x).sum().backward()
        torch.testing.assert_close(model.score(x).detach(), x.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sigma", [0.1, 0.01])
def test_as_the_noise_vanishes_the_score_becomes_the_datas_own(sigma):
    """Alain & Bengio 2014: the exact denoiser of N(0, S) misses ∇ ln p = −S⁻¹x by O(σ²)."""
    covariance = torch.diag(torch.tensor([1.5, 1.0, 0.7], dtype=torch.float64))
    model = model_of(
        3, n_latents=3, activation="identity", residual=True, corruption={"kind": "gaussian", "sigma": sigma}
    ).double()
    wiener = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(3))
    with torch.no_grad():
        model.encoder.weights[0].copy_(torch.eye(3))
        model.decoder.weights[0].copy_((wiener - torch.eye(3)) / sigma)
    x = normal(20, 3)
    own = -x @ torch.linalg.inv(covariance)
    apart = float(((model.score(x) - own).norm() / own.norm()).detach())
    assert 0.5 * sigma**2 < apart < 2 * sigma**2


# --- the score of a mixture ------------------------------------------------------------------------------------------

CENTERS = torch.tensor([[1.5, 0.0], [-0.8, 1.2], [-0.6, -1.3]])
SPREAD = 0.4


def mixture(rows, seed):
    source = generator(seed)
    return CENTERS[torch.randint(3, (rows,), generator=source)] + SPREAD * torch.randn(rows, 2, generator=source)


def mixture_score(x, sigma):
    """∇ ln of the mixture smoothed with σ, by its definition."""
    variance = SPREAD**2 + sigma**2
    apart = CENTERS - x[:, None]
    share = torch.softmax(-apart.square().sum(2) / (2 * variance), 1)
    return (share[:, :, None] * apart).sum(1) / variance


@pytest.mark.slow
def test_the_score_of_a_mixture_is_learned(rows_stream, learn):
    settings = {"n_latents": 64, "hidden": (64,), "activation": "relu", "residual": True}
    model = learn(model_of(2, **settings), rows_stream(mixture(200_000, 0), batch_size=1024), 4000, lr=3e-3)
    x = mixture(4000, 1) + 0.2 * torch.randn(4000, 2, generator=generator(2))
    estimate, smoothed, clean = model.score(x).detach(), mixture_score(x, 0.2), mixture_score(x, 0.0)
    cosine = float((estimate * smoothed).sum() / (estimate.norm() * smoothed.norm()))
    apart, from_clean = (float((estimate - true).norm() / true.norm()) for true in (smoothed, clean))
    assert cosine >= 0.98
    assert apart <= 0.15
    assert apart < from_clean  # at σ > 0 it is the smoothed density's score


def test_denoising_error_is_explicit_score_matching_up_to_a_constant():
    """Vincent 2011: E‖s − ∇ln q_σ‖² and E‖s − (x − x̃)/σ²‖² differ by the same number for every model."""
    sigma, points = 0.6, torch.tensor([[-1.0], [0.3], [1.1]], dtype=torch.float64)
    nodes, weights = (torch.tensor(v) for v in np.polynomial.hermite_e.hermegauss(60))
    weights = weights / weights.sum()
    noisy = points + sigma * nodes  # [points, nodes]
    share = torch.softmax(-((noisy[..., None] - points[:, 0]) ** 2) / (2 * sigma**2), -1)
    true = ((share * points[:, 0]).sum(-1) - noisy) / sigma**2
    differences = []
    for seed in range(4):
        model = model_of(
            1, n_latents=5, hidden=(7,), activation="tanh", corruption={"kind": "gaussian", "sigma": sigma}
        )
        model = model.double()
        model._draw(generator(seed))
        score = model.score(noisy.reshape(-1, 1)).detach().view_as(noisy)
        explicit = ((score - true).square() * weights).sum(1).mean()
        denoising = ((model(noisy.reshape(-1, 1)).detach().view_as(noisy) - points).square() * weights).sum(1).mean()
        differences.append(float(denoising / sigma**4 - explicit))
    assert differences == pytest.approx([differences[0]] * 4, rel=1e-7)
    assert differences[0] > 0.1


# --- the manifold picture --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_arrows_point_to_the_manifold(rows_stream, learn):
    angle = torch.rand(100_000, generator=generator(0)) * 2 * math.pi
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    model = model_of(2, n_latents=64, hidden=(64,), activation="relu", residual=True)
    learn(model, rows_stream(circle, batch_size=1024), 3000, lr=3e-3)
    clean = circle[:4000]
    noisy = clean + 0.2 * torch.randn(4000, 2, generator=generator(1))
    cleaned = model.denoise(noisy).detach()
    distance = lambda x: (x.norm(dim=1) - 1).abs().mean()  # noqa: E731
    assert float(distance(cleaned) / distance(noisy)) <= 0.3
    ring = noisy[(noisy.norm(dim=1) - 1).abs() > 0.1]
    arrows, projection = model.denoise(ring).detach() - ring, ring / ring.norm(dim=1, keepdim=True) - ring
    assert float(torch.cosine_similarity(arrows, projection).mean()) >= 0.95
    left = (cleaned - clean).square().sum() / (noisy - clean).square().sum()
    assert 0.45 <= float(left) <= 0.6  # one of two dimensions of noise lies along the manifold


# --- digits ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_digits(digits, rows_stream, learn):
    """A denoiser (σ = .3) and a plain autoencoder of the same shape, trained alike on the first 1,200 digits."""
    stream = rows_stream(digits[0][:1200])
    shape = {"n_latents": 128, "activation": "sigmoid", "error": "cross_entropy"}
    denoiser = model_of(64, corruption={"kind": "gaussian", "sigma": 0.3}, **shape)
    return learn(denoiser, stream, 600), learn(Dense(DenseSettings(**shape), 64), stream, 600)


def test_digits_come_out_cleaner(digits, on_digits):
    clean = digits[0][1200:]
    noisy = clean + 0.3 * torch.randn(clean.shape, generator=generator(3))
    psnr = lambda x: -10 * math.log10(float((x - clean).square().mean()))  # noqa: E731
    assert psnr(on_digits[0].denoise(noisy).detach()) - psnr(noisy) >= 3


def test_codes_of_noisy_digits_tell_more_than_a_plain_autoencoders(digits, on_digits):
    rows, classes = digits
    noisy = rows + 0.3 * torch.randn(rows.shape, generator=generator(4))
    accuracy = []
    for model in on_digits:
        codes = model.encode(noisy).detach().numpy()
        probe = LogisticRegression(max_iter=300).fit(codes[:1200], classes[:1200])
        accuracy.append(probe.score(codes[1200:], classes[1200:]))
    assert accuracy[0] >= accuracy[1]


def test_a_wide_denoiser_does_not_learn_the_identity(digits, on_digits):
    """Width 128 > 64 would let a plain model copy; the denoiser moves noise towards the data instead."""
    clean = digits[0][1200:]
    noisy = clean + 0.3 * torch.randn(clean.shape, generator=generator(5))
    moved = [(model(noisy).detach() - noisy).square().sum(1).mean() for model in on_digits]
    assert float(moved[0]) > 0.5 * float((noisy - clean).square().sum(1).mean())
    copied = (on_digits[1](clean).detach() - clean).square().sum(1).mean()
    assert float(copied) < 0.1 * float(clean.var(0).sum())


def test_bad_requests_are_named(rows_stream):
    for wrong, words in [
        ({"residual": True, "error": "cross_entropy"}, "needs error: mse and output: identity"),
        ({"residual": True, "output": "sigmoid"}, "needs error: mse and output: identity"),
        (
            {"hidden": (3,), "pretrain": True, "corruption": {"kind": "patches", "share": 0.2, "grid": (2, 2)}},
            "no grid",
        ),
        (
            {
                "hidden": (3,),
                "pretrain": True,
                "activation": "relu",
                "corruption": {"kind": "salt_pepper", "share": 0.2},
            },
            "use sigmoid or tanh",
        ),
    ]:
        with pytest.raises(ValidationError, match=words):
            model_of(4, n_latents=2, **wrong)
    rows = 3 * torch.rand(10, 4, generator=generator())
    salted = model_of(4, n_latents=2, corruption={"kind": "salt_pepper", "share": 0.2})
    for attempt in (
        lambda: salted.initialize(rows_stream(rows), generator()),
        lambda: salted.loss(rows, Step(0), generator()),
    ):
        with pytest.raises(RequestError, match=r"give corruption\.bounds"):
            attempt()
    with pytest.raises(RequestError, match="only gaussian corruption estimates a score"):
        salted.score(rows)
    with pytest.raises(RequestError, match="3 × 3 cells"):
        model_of(4, n_latents=2, corruption={"kind": "patches", "share": 0.2, "grid": (3, 3)})
