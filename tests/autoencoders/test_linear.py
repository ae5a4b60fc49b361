"""The linear autoencoder is principal component analysis: Baldi & Hornik 1989, and where training gets to it."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.decomposition import PCA

from saetool.autoencoders.base import Step
from saetool.autoencoders.linear import Linear, LinearSettings, principal_components


@pytest.fixture(scope="module")
def rows():
    """2,000 correlated rows in R^6 with distinct eigenvalues and a mean, float64."""
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    scales = torch.tensor([3.0, 2.2, 1.5, 1.0, 0.6, 0.3], dtype=torch.float64)
    return torch.randn(2000, 6, generator=generator, dtype=torch.float64) * scales @ torch.linalg.qr(mixing).Q + 5


def eigenvalues(rows):
    """The covariance's eigenvalues by numpy, descending, divided by n."""
    return np.linalg.eigvalsh(np.cov(rows.numpy(), rowvar=False, bias=True))[::-1]


def closed_form(rows, stream, **settings):
    model = Linear(LinearSettings(**settings), rows.shape[1]).double()
    assert model.fit(stream(rows))
    return model


def mean_error(model, rows):
    with torch.no_grad():
        return float((model(rows) - rows).square().sum(1).mean())


@pytest.mark.parametrize("k", range(1, 6))
def test_closed_form_error_is_the_trailing_eigenvalue_sum(rows, rows_stream, k):
    error = mean_error(closed_form(rows, rows_stream, n_latents=k), rows)
    assert error == pytest.approx(eigenvalues(rows)[k:].sum(), rel=1e-12)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_closed_form_reconstructs_as_scikit_learns_pca(rows, rows_stream, k):
    pca = PCA(k).fit(rows.numpy())
    expected = pca.inverse_transform(pca.transform(rows.numpy()))
    np.testing.assert_allclose(closed_form(rows, rows_stream, n_latents=k)(rows).detach(), expected, rtol=0, atol=1e-8)


def test_streamed_spectrum_does_not_depend_on_blocks_and_survives_a_large_mean(rows, rows_stream):
    far = rows + 1e6
    one, many = (principal_components(rows_stream(far, batch_size=size)) for size in (2000, 7))
    torch.testing.assert_close(one.values, many.values, rtol=1e-9, atol=0)
    np.testing.assert_allclose(one.values, eigenvalues(rows), rtol=1e-6)


def test_error_never_rises_with_k_and_width_d_is_the_identity(rows, rows_stream):
    errors = [mean_error(closed_form(rows, rows_stream, n_latents=k), rows) for k in range(1, 9)]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(errors))
    assert errors[5] < 1e-20
    assert errors[7] < 1e-20


@pytest.mark.parametrize("k", [3, 5, 7])
def test_rank_deficient_closed_form_is_the_least_squares_map(rows, rows_stream, k):
    flat = torch.cat([rows[:, :3], rows[:, :3] @ torch.ones(3, 2, dtype=torch.float64)], 1)
    model = closed_form(flat, rows_stream, n_latents=k)
    centered = (flat - flat.mean(0)).T
    least_squares = centered @ centered.T @ torch.linalg.pinv(centered @ centered.T, rtol=1e-10)
    product = model.W_dec.T @ model.W_enc
    torch.testing.assert_close(product.detach(), least_squares, atol=1e-9, rtol=0)
    assert torch.linalg.matrix_norm(least_squares - torch.eye(5)) > 1  # a projection, not the identity


@pytest.mark.parametrize("normalize", ["center_scale", "scale", "none"])
def test_normalization_changes_no_raw_error(rows, rows_stream, normalize):
    model = closed_form(rows, rows_stream, n_latents=2, normalize=normalize)
    assert mean_error(model, rows) == pytest.approx(eigenvalues(rows)[2:].sum(), rel=1e-9)
    factor = float(model.normalizer.factor)
    torch.testing.assert_close(model.spectrum, torch.tensor(eigenvalues(rows).copy()) * factor**2, rtol=1e-9, atol=0)
    basis = model.decoder_directions()
    jump = model.decode(torch.eye(2, dtype=torch.float64)) - model.decode(torch.zeros(2, 2, dtype=torch.float64))
    torch.testing.assert_close(basis, jump.detach(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("tied", [False, True])
def test_training_reaches_the_principal_subspace_and_never_beats_it(rows, rows_stream, learn, tied):
    stream = rows_stream(rows, batch_size=len(rows))  # full batches: no noise in the gradient
    model = Linear(LinearSettings(n_latents=3, solver="gradient", tied=tied), 6).double()
    assert not model.fit(stream)
    learn(model, stream, 700 if tied else 1500, lr=0.03)
    best = eigenvalues(rows)[3:].sum()
    assert best * (1 - 1e-12) <= mean_error(model, rows) <= best * (1 + 1e-4)
    spectrum = principal_components(stream)
    assert float(spectrum.angles(model.decoder_directions())[0]) < 1e-3
    assert spectrum.error(3) == pytest.approx(best, rel=1e-9)
    np.testing.assert_allclose(model.spectrum, eigenvalues(rows), rtol=1e-9)


def test_the_wrong_eigenvectors_are_a_saddle(rows, rows_stream):
    k, values = 2, eigenvalues(rows)
    spectrum = principal_components(rows_stream(rows))
    model = Linear(LinearSettings(n_latents=k, solver="gradient"), 6).double()
    basis = spectrum.vectors[:, 1 : k + 1]
    with torch.no_grad():
        model.W_enc.copy_(basis.T)
        model.b_enc.copy_(-basis.T @ spectrum.mean)
        model.W_dec.copy_(basis.T)
        model.b_dec.copy_(spectrum.mean)
    loss = model.loss(rows, Step(0), torch.Generator()).total
    loss.backward()
    gradient = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
    assert gradient < 1e-8
    assert float(loss.detach()) - values[k:].sum() == pytest.approx(values[0] - values[k], rel=1e-9)
    assert float(spectrum.angles(model.decoder_directions())[0]) == pytest.approx(math.pi / 2)


@pytest.mark.slow
@pytest.mark.parametrize("k", [6, 9])
def test_a_wide_unregularized_model_learns_the_identity(rows, rows_stream, learn, k):
    whitened = (rows - rows.mean(0)) / rows.std(0)
    stream = rows_stream(whitened, batch_size=len(whitened))
    model = learn(Linear(LinearSettings(n_latents=k, solver="gradient"), 6).double(), stream, 4000, lr=0.02)
    product = (model.W_dec.T @ model.W_enc).detach()
    assert torch.linalg.matrix_norm(product - torch.eye(6)) < 1e-3
    assert mean_error(model, whitened) < 1e-8


def test_bad_requests_are_named(rows, rows_stream):
    with pytest.raises(ValidationError, match="n_latents"):
        LinearSettings(n_latents=0)
    with pytest.raises(ValidationError, match="exactly one"):
        LinearSettings()
    with pytest.raises(ValidationError, match="solver: gradient"):
        LinearSettings(n_latents=2, tied=True)
    assert LinearSettings(expansion=0.5).width(6) == 3
