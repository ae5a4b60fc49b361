"""The baselines are what they are called: PCA is optimal at its width, k-means picks the nearest center, and so on."""

import pytest
import torch

from saetool.evaluation.baselines import Dictionary, KMeans, baselines_of, best_scale, fit_baselines, random_dictionary
from saetool.evaluation.reconstruction import held_out_sums, numbers


def rows(n=400, d=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator) * torch.linspace(3, 0.2, d)[:, None]
    return torch.randn(n, d, generator=generator) @ mixing + 5


def fvu(model, x):
    x = x[None]
    return numbers(held_out_sums(model, [x], x.double().mean((0, 1))), seed=0)["fvu"]["value"]


def fitted(x, k=3, n_latents=32, clusters=10):
    return {b.name: b.model for b in baselines_of(fit_baselines(x, k, n_latents, clusters, 0), k, n_latents, 0)}


def test_pca_leaves_exactly_the_trailing_eigenvalues():
    x = rows()
    spectrum = torch.linalg.eigvalsh(torch.cov(x.double().T, correction=0)).flip(0)
    assert fvu(fitted(x)["PCA, fixed"], x) == pytest.approx(float(spectrum[3:].sum() / spectrum.sum()), rel=1e-5)


def test_pca_takes_the_best_components_of_each_token():
    """Against every choice of three of the eight components, token by token."""
    x = rows(60)
    centered = (x - x.mean(0)).double()
    components = torch.linalg.eigh(torch.cov(centered.T)).eigenvectors.T
    scores = centered @ components.T
    choices = torch.combinations(torch.arange(8), 3)
    errors = torch.stack([(centered - scores[:, c] @ components[c]).square().sum(1) for c in choices])
    best = float(errors.amin(0).sum() / centered.square().sum())
    assert fvu(fitted(x)["PCA"], x) == pytest.approx(best, rel=1e-4)
    assert best < fvu(fitted(x)["PCA, fixed"], x)


def test_kmeans_takes_the_nearest_center():
    x = rows(50)
    model = fitted(x)["k-means"]
    assert isinstance(model, KMeans)
    nearest = torch.cdist(x, model.centers).argmin(1)
    assert torch.equal(model.encode(x).argmax(1), nearest)
    assert torch.equal(model(x), model.centers[nearest])


def test_every_baseline_stays_within_its_budget_and_codes_agree():
    x = rows()
    for name, model in fitted(x).items():
        z = model.encode(x)
        active = (z != 0).sum(1)
        assert int(active.max()) <= (1 if name == "k-means" else 3), name
        assert torch.allclose(model.encode_sparse(x).dense(), z, atol=1e-5), name
        assert torch.allclose(model.decode_sparse(model.encode_sparse(x)), model(x), atol=1e-4), name


def test_raw_neurons_keep_the_coordinates_farthest_from_their_mean():
    x = torch.tensor([[5.0, 1.0, -9.0, 2.0]])
    model = Dictionary(torch.tensor([0.0, 1.0, 0.0, 0.0]), torch.eye(4), 2)
    assert torch.equal(model.encode(x), torch.tensor([[5.0, 0.0, -9.0, 0.0]]))
    assert torch.equal(model(x), torch.tensor([[5.0, 1.0, -9.0, 0.0]]))


def test_the_random_dictionarys_scale_is_the_best_one():
    x = rows()
    mean = x.mean(0)
    best = random_dictionary(mean, 32, 3, 0, best_scale(random_dictionary(mean, 32, 3, 0), x))
    directions = best.W_enc.detach()
    assert torch.allclose(directions.norm(dim=1), torch.ones(32), atol=1e-6)
    projections = (x - mean) @ directions.T
    chosen = projections.topk(3).indices
    z = torch.zeros_like(projections).scatter(1, chosen, projections.gather(1, chosen).relu())
    assert torch.allclose(best.encode(x), z, atol=1e-4)
    guess = z @ directions
    scale = float((guess * (x - mean)).sum() / guess.square().sum())
    assert torch.allclose(best(x), mean + scale * guess, atol=1e-3)
    assert torch.equal(random_dictionary(mean, 32, 3, 0).W_enc, best.W_enc)
    assert not torch.equal(random_dictionary(mean, 32, 3, 1).W_enc, best.W_enc)


def test_order_of_merit_at_equal_budget():
    """PCA's components beat random directions, which do better than the mean alone."""
    x = rows()
    models = fitted(x)
    assert fvu(models["PCA"], x) < fvu(models["random dictionary"], x) < 1
    assert fvu(models["PCA"], x) < fvu(models["raw neurons"], x) < 1


def test_more_components_than_rows_or_coordinates_are_cut():
    models = fitted(rows(6), k=50, clusters=100)
    assert models["PCA"].n_latents == models["PCA, fixed"].n_latents == 6
    assert models["k-means"].n_latents == 6
