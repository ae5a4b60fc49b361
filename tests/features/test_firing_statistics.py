"""One pass over the codes gives exact sums and maxima, whatever the cut and the order."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from saetool.errors import WorkError
from saetool.features.firing_statistics import (
    N_BINS,
    FiringStatistics,
    firing,
    histogram_edges,
    records_of,
    strongest,
    unit_for,
)
from saetool.sparse import backends
from saetool.sparse.codes import Codes


@pytest.fixture(params=["compiled", "plain torch"], autouse=True)
def path(request, monkeypatch):
    """Run every test with the compiled loops and without."""
    monkeypatch.setenv(backends.SWITCH, "cpu" if request.param == "compiled" else "reference")


def test_both_ways_count_alike_at_every_edge_and_beside_it(monkeypatch):
    edges = histogram_edges()
    values = torch.cat([edges, edges.nextafter(torch.tensor(torch.inf)), edges.nextafter(torch.tensor(0.0))])
    values = torch.cat([values, torch.tensor([1e-30, 1e-40, 1e30, 3e38])])
    z = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(0))].reshape(-1, 1)
    codes, found = Codes.from_dense(z.expand(-1, 3)), []
    for _ in range(2):
        statistics = FiringStatistics.empty(3, 1, 2.0**-20)
        records = records_of(statistics.add(codes, 0))
        found.append((records.tolist(), statistics.histogram, statistics.largest, *strongest(codes, 2)))
        monkeypatch.setenv(backends.SWITCH, "reference")
    assert found[0][0] == found[1][0]
    assert found[0][2] == found[1][2]
    for ours, theirs in zip(found[0], found[1], strict=True):
        assert not isinstance(ours, torch.Tensor) or torch.equal(ours, theirs)


SEEDS = st.integers(0, 2**32 - 1)


def random_codes(seed: int) -> tuple[torch.Tensor, Codes]:
    """Return codes as dense [images, tokens, latents] and as Codes, with ties and empty rows."""
    rng = np.random.default_rng(seed)
    images, tokens, latents = (int(n) for n in rng.integers(1, 6, 3))
    z = rng.integers(1, 5, (images, tokens, latents)) / 3
    z = torch.tensor(np.where(rng.random(z.shape) < rng.choice([0.1, 0.6, 1.0]), 0, z), dtype=torch.float32)
    return z, Codes.from_dense(z.flatten(0, 1))


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_maxima_equal_brute_force(seed):
    z, codes = random_codes(seed)
    statistics = FiringStatistics.empty(z.shape[2], z.shape[1], 2.0**-20)
    records = records_of(statistics.add(codes, first_image=7))
    wanted = []
    for latent in range(z.shape[2]):
        for image in range(z.shape[0]):
            column = z[image, :, latent]
            if column.max() > 0:
                mass = np.float32((column.double() * 2**20).round().sum().item() / 2**20)
                wanted.append(
                    (latent, image + 7, int(column.argmax()), int((column > 0).sum()), column.max().item(), mass)
                )
    assert records.tolist() == wanted
    units = (z.double() * 2**20).round().long().sum(0)
    assert torch.equal(statistics.profile, units)
    assert statistics.images == len(z)


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_histogram_counts_every_firing_token_once(seed):
    z, codes = random_codes(seed)
    z = z * 10
    statistics = FiringStatistics.empty(z.shape[2], z.shape[1], 2.0**-20)
    statistics.add(Codes(codes.offsets, codes.latents, codes.values * 10, codes.n_latents), 0)
    edges = histogram_edges()
    for latent in range(z.shape[2]):
        values = z[:, :, latent][z[:, :, latent] > 0]
        wanted = torch.tensor([((values > edges[i]) & (values <= edges[i + 1])).sum() for i in range(N_BINS)])
        assert torch.equal(statistics.histogram[latent], wanted)


def test_values_outside_the_edges_count_in_the_outermost_bins():
    z = torch.tensor([[2.0**-30, 2.0**30]])
    statistics = FiringStatistics.empty(2, 1, 2.0**-10)
    statistics.add(Codes.from_dense(z), 0)
    assert statistics.histogram[0, 0] == 1
    assert statistics.histogram[1, -1] == 1


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_parts_merge_to_the_same_sums_in_any_order(seed):
    z, codes = random_codes(seed)
    whole = FiringStatistics.empty(z.shape[2], z.shape[1], 2.0**-20)
    whole.add(codes, 0)
    merged = FiringStatistics.empty(z.shape[2], z.shape[1], 2.0**-20)
    for image in reversed(range(len(z))):
        part = FiringStatistics.empty(z.shape[2], z.shape[1], 2.0**-20)
        part.add(Codes.from_dense(z[image]), image)
        merged.merge(part)
    assert torch.equal(merged.profile, whole.profile)
    assert torch.equal(merged.histogram, whole.histogram)
    assert (merged.images, merged.largest) == (whole.images, whole.largest)


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.integers(1, 6))
def test_strongest_latents_of_a_row_with_ties_to_the_lowest(seed, k):
    z, codes = random_codes(seed)
    latents, values = strongest(codes, k)
    for row, column in enumerate(z.flatten(0, 1)):
        order = sorted(column.nonzero().flatten().tolist(), key=lambda latent: (-column[latent].item(), latent))[:k]
        assert latents[row].tolist() == order + [-1] * (k - len(order))
        assert values[row].tolist() == column[order].tolist() + [0] * (k - len(order))


def test_strongest_does_not_depend_on_the_rectangle(monkeypatch):
    z = torch.rand(50, 30, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    codes = Codes.from_dense(z)
    whole = strongest(codes, 4)
    monkeypatch.setattr("saetool.features.firing_statistics._RECTANGLE", 64)
    for a, b in zip(strongest(codes, 4), whole, strict=True):
        assert torch.equal(a, b)


def test_negative_values_do_not_fire():
    codes = firing(Codes.from_dense(torch.tensor([[-1.0, 2.0], [-3.0, 0.0]])))
    assert torch.equal(codes.dense(), torch.tensor([[0.0, 2.0], [0.0, 0.0]]))


def test_the_unit_follows_the_first_image_and_overflow_is_refused():
    assert unit_for(Codes.from_dense(torch.tensor([[3.0]]))) == 2.0**-28
    assert unit_for(Codes.from_dense(torch.tensor([[0.0]]))) == 2.0**-30
    statistics = FiringStatistics.empty(1, 1, 2.0**-28)
    statistics.add(Codes.from_dense(torch.tensor([[3.0]])), 0)
    statistics.check()
    statistics.add(Codes.from_dense(torch.tensor([[2.0**34]])), 1)
    with pytest.raises(WorkError, match="too large"):
        statistics.check()


def test_parts_with_other_units_are_refused():
    with pytest.raises(WorkError, match="do not belong together"):
        FiringStatistics.empty(1, 1, 1.0).merge(FiringStatistics.empty(1, 1, 0.5))
