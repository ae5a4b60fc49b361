"""Moments in pieces are the moments of the whole."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from saetool.statistics import Statistics, unit_rows


def plain(rows: torch.Tensor) -> Statistics:
    return Statistics(len(rows), rows.double().mean(0), rows.double().var(0, correction=0))


def close(a: Statistics, b: Statistics, tolerance: float = 1e-12) -> bool:
    return (
        a.count == b.count
        and torch.allclose(a.mean, b.mean, rtol=tolerance, atol=tolerance)
        and torch.allclose(a.variance, b.variance, rtol=tolerance, atol=tolerance)
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 1000))
def test_merged_in_pieces_equals_the_whole(sizes, seed):
    rows = torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(seed)) * 3 + 5
    total = Statistics.none(3)
    for piece in rows.split(sizes):
        total = total.merge(Statistics.of(piece))
    assert close(total, plain(rows))


def test_more_rows_than_one_piece():
    rows = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0))
    assert close(Statistics.of(rows), plain(rows))


def test_taking_a_part_out_undoes_the_merge():
    rows = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)) + 10
    part = Statistics.of(rows[:100])
    assert close(Statistics.of(rows).without(part), plain(rows[100:]))
    assert close(part.without(part), Statistics.none(4))


def test_a_large_mean_does_not_drown_a_small_variance():
    rows = 1e6 + torch.randn(2000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert close(Statistics.of(rows), plain(rows), 1e-9)


def test_rows_in_float64_are_left_as_they_are():
    rows = torch.randn(10, 2, dtype=torch.float64)
    before = rows.clone()
    Statistics.of(rows)
    assert torch.equal(rows, before)


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-18, 1.0, 1e18, 1e30, 1e38])
def test_unit_rows_are_of_unit_length_however_long_they_were(scale):
    rows = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    scaled = (rows.double() / rows.abs().max() * scale).float()
    scaled[3], scaled[4] = 0, rows[4]
    found = unit_rows(scaled)
    wide = scaled.double()
    expected = wide / wide.norm(dim=1, keepdim=True).clamp_min(1e-300)
    torch.testing.assert_close(found, expected.float(), rtol=1e-6, atol=1e-7)
    assert found[3].tolist() == [0] * 5
