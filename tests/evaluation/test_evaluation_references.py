"""Other codes of the same number of active directions: each is what it is called, and the ranking is known where the
data is planted."""

import pytest
import torch

from saetool.autoencoders.sparse import SparseAutoencoder
from saetool.autoencoders.sparse_settings import SparseSettings
from saetool.evaluation.baselines import baselines_of, fit_baselines
from saetool.evaluation.reconstruction import COLUMNS, fvu_difference, held_out_sums, numbers
from saetool.evaluation.references import Pursuit, fit_components, reference_models


def slow_pursuit(x, directions, offset, k):
    """One row at a time, by torch.linalg.lstsq."""
    found = []
    for row in (x - offset).double():
        left, chosen = row, []
        for _ in range(k):
            scores = (directions.double() @ left).abs()
            scores[chosen] = -1
            chosen.append(int(scores.argmax()))
            among = directions[chosen].double().T
            values = torch.linalg.lstsq(among, row[:, None]).solution[:, 0]
            left = row - among @ values
        found.append(offset.double() + row - left)
    return torch.stack(found)


def test_pursuit_is_the_slow_one(monkeypatch):
    monkeypatch.setattr(Pursuit, "rows_at_once", 7)
    g = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(40, 12, generator=g), dim=1)
    offset, x = torch.randn(12, generator=g), torch.randn(20, 12, generator=g)
    model = Pursuit(3 * directions, offset, 4)
    codes = model.encode_sparse(x)
    assert codes.offsets.diff().tolist() == [4] * 20
    assert all((row.diff() > 0).all() for row in codes.latents.view(20, 4))
    expected = slow_pursuit(x, directions, offset, 4)
    torch.testing.assert_close(model.decode_sparse(codes).double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.encode(x), codes.dense())


def test_pursuit_finds_a_planted_code_and_takes_repeated_directions():
    g = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(16, 16, generator=g)).Q
    chosen = torch.stack([torch.randperm(16, generator=g)[:3] for _ in range(30)])
    z = torch.zeros(30, 16).scatter_(1, chosen, torch.randn(30, 3, generator=g) + 2)
    model = Pursuit(torch.cat([basis, basis]), torch.ones(16), 3)
    codes = model.encode_sparse(z @ basis + 1)
    assert torch.equal(codes.latents.view(30, 3) % 16, chosen.sort(1).values)
    torch.testing.assert_close(model.decode_sparse(codes), z @ basis + 1, rtol=1e-4, atol=1e-4)


def test_independent_components_are_found_and_chosen_by_their_share():
    g = torch.Generator().manual_seed(2)
    sources = torch.randn(4000, 6, generator=g).sign() * torch.rand(4000, 6, generator=g) ** 4 * 5  # far from Gaussian
    mixing = torch.randn(6, 6, generator=g)
    x = sources @ mixing + 3
    model = fit_components(x, 6, seed=0)
    torch.testing.assert_close(model(x), x, rtol=1e-3, atol=1e-3)
    cosines = torch.nn.functional.cosine_similarity(model.directions[:, None], mixing[None], dim=2).abs()
    assert (cosines.amax(0) > 0.98).all()
    two = fit_components(x, 2, seed=0)
    shares = (two.readout @ (x - two.mean).T).T.abs() * two.directions.norm(dim=1)
    assert torch.equal((two.encode(x) != 0), shares >= shares.topk(2, dim=1).values[:, -1:])


def planted(kind, n=1500, d=20, seed=3):
    """Return rows in which PCA is best (Gaussian), or a dictionary of 60 directions is, or nothing is (noise)."""
    g = torch.Generator().manual_seed(seed)
    if kind == "Gaussian":
        return torch.randn(n, 4, generator=g) @ torch.randn(4, d, generator=g)
    if kind == "noise":
        return torch.randn(n, d, generator=g)
    return planted_code(g, n) @ dictionary(d)


def dictionary(d=20):
    directions = torch.randn(60, d, generator=torch.Generator().manual_seed(9))
    return torch.nn.functional.normalize(directions, dim=1)


def planted_code(g, n):
    chosen = torch.rand(n, 60, generator=g).topk(3).indices
    return torch.zeros(n, 60).scatter_(1, chosen, torch.rand(n, 3, generator=g) + 1)


def compared(x, directions):
    """Return the FVU of pursuit on a dictionary less that of PCA with the same freedom, with its interval."""
    pca = next(b.model for b in baselines_of(fit_baselines(x, 4, 60, 4, 0), 4, 60, 0) if b.name == "PCA")
    images, mean = x.view(-1, 10, x.shape[1]), x.double().mean(0)
    mine, other = (held_out_sums(m, [images], mean) for m in (pca, Pursuit(directions, x.mean(0), 4)))
    return fvu_difference(other, mine, seed=0, resamples=300), mine, other


def test_pca_wins_on_gaussian_data_and_the_dictionary_on_what_it_made():
    worse, _, _ = compared(planted("Gaussian"), dictionary())
    assert worse["low"] > 0.05
    better, _, _ = compared(planted("sparse"), dictionary())
    assert better["high"] < -0.05


def test_on_noise_no_rotation_of_the_axes_wins():
    """PCA's axes say nothing there: other orthogonal ones do as well, within the interval."""
    x = planted("noise")
    turned = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(4))).Q
    difference, _, _ = compared(x, turned)
    assert difference["low"] <= 0.003
    assert difference["high"] >= -0.003
    assert abs(difference["value"]) < 0.01


def test_a_difference_is_that_of_the_two_numbers_and_its_interval_is_paired():
    x = planted("sparse")
    difference, mine, other = compared(x, dictionary())
    apart = [numbers(sums, seed=0, resamples=300)["fvu"] for sums in (other, mine)]
    assert difference["value"] == pytest.approx(apart[0]["value"] - apart[1]["value"])
    sse, variance = (COLUMNS.index(name) for name in ("sse", "variance"))
    g = torch.Generator().manual_seed(5)
    draws = torch.randint(150, (4000, 150), generator=g)
    mine, other = mine.table(), other.table()
    means = (other[draws, sse] - mine[draws, sse]).sum(1) / mine[draws, variance].sum(1)
    for bound, share in (("low", 0.025), ("high", 0.975)):
        assert difference[bound] == pytest.approx(float(means.quantile(share)), abs=0.006)


def test_the_references_have_the_autoencoders_freedom():
    torch.manual_seed(0)
    settings = SparseSettings(kind="sparse", n_latents=50, activation={"kind": "topk", "k": 5})
    own = SparseAutoencoder(settings, 12).eval()
    with torch.no_grad():
        own.b_dec.normal_()
        own.normalizer.factor.fill_(1.7)
    x = torch.randn(400, 12, generator=torch.Generator().manual_seed(1)) * 2
    made = {reference.name: reference.model for reference in reference_models(own, x, 5, seed=0)}
    for name, model in made.items():
        assert (model.encode_sparse(x).offsets.diff() == 5).all(), name
        assert model.n_latents == (12 if name == "ICA" else 50)
    pursued = made["own decoder, pursuit"]
    torch.testing.assert_close(pursued.offset, own.decode(torch.zeros(1, 50))[0])
    # The same directions, better chosen and better weighted.
    assert (pursued(x) - x).square().sum() < (own(x) - x).square().sum()


def test_components_are_as_many_as_the_rows_have_dimensions():
    g = torch.Generator().manual_seed(5)
    x = torch.rand(400, 6, generator=g) @ torch.randn(6, 10, generator=g)
    x[:, 3] = 7.0  # a pixel that is always the same
    model = fit_components(x, 20, seed=0)
    assert model.n_latents == 6
    torch.testing.assert_close(model(x), x, rtol=1e-3, atol=1e-3)
    few = torch.randn(5, 12, generator=g)  # five rows around their mean have four dimensions
    assert fit_components(few, 20, seed=0).n_latents == 4
    assert fit_components(torch.ones(9, 4), 2, seed=0) is None
    assert fit_components(torch.ones(1, 4), 2, seed=0) is None


def test_pursuit_of_a_row_with_nothing_to_say_takes_no_direction_without_length():
    directions = torch.cat([torch.zeros(1, 8), torch.eye(8)[:3]])
    codes = Pursuit(directions, torch.ones(8), 2).encode_sparse(torch.ones(1, 8))
    assert codes.values.tolist() == [0.0, 0.0]
