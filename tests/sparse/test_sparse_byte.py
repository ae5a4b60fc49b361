"""The int8 way to candidates: its bound holds, it changes no bit, and it is taken where it is faster."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saetool.sparse import byte, compiled, select
from saetool.sparse.byte import AGAIN, TRIALS, ByteWeight, Race
from saetool.sparse.select import Encoder


def problem(rows, d_in, n_latents, seed=0, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, d_in, generator=g) * scale
    weight = torch.randn(n_latents, d_in, generator=g) / d_in**0.5
    return x, weight, torch.randn(n_latents, generator=g) - 1.0


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 200), st.integers(0, 99), st.sampled_from([1e-3, 1.0, 1e3]), st.sampled_from([0, 30]))
def test_the_int8_product_bounds_the_true_one_and_not_by_far(d_in, seed, scale, outlier):
    x, weight, bias = problem(32, d_in, 64, seed, scale)
    x[3], weight[5] = 0.0, 0.0
    x[:, 0] *= 1 + outlier
    cut = torch.linspace(-1, 1, 64)
    copy = ByteWeight.of(weight, None)
    coded, numbers = compiled.to_bytes(x)
    sums = torch.empty(32, 64, dtype=torch.int32)
    copy.product(coded, sums)
    assert torch.equal(sums.long(), coded.long() @ copy.weight.long().T)
    bounding, (own, norm, error) = copy.bounding(numbers, bias, cut), copy.numbers
    factors = bounding.factors
    bounds = sums * own + factors[:, :1] * bounding.offset + factors[:, 1:2] * norm + factors[:, 2:] * error
    bounds = bounds.double() * numbers[0].double()[:, None]
    true = x.double() @ weight.double().T + (bias - cut).double()
    assert (bounds >= true).all()
    # Rounding to 1/127 of the largest entry is wrong by at most half of that, an entry.
    steps = x.abs().amax(1)[:, None] * norm + numbers[1][:, None] * weight.abs().amax(1)
    assert (bounds <= true + 1.1 * d_in**0.5 / 127 * steps.double() + 1e-4).all()
    # Narrowed, only the latent's rounding is left of that.
    narrowing = copy.narrowing(numbers, bounding)
    own, offset, error = narrowing.latents.T
    size, rest = narrowing.slack.T[:, :, None]
    narrower = (x @ copy.weight.float().T * own + offset + size * error + rest).double()
    assert (narrower >= true).all()
    steps = numbers[1][:, None] * weight.abs().amax(1)
    assert (narrower <= true + 1.1 * d_in**0.5 / 127 * steps.double() + 1e-4 * (1 + size)).all()


def test_likely_bounds_are_a_fraction_of_the_proven_ones_and_miss_next_to_nothing():
    x, weight, bias = problem(2000, 384, 1000)
    cut = torch.zeros(1000)
    copy = ByteWeight.of(weight, None)
    coded, numbers = compiled.to_bytes(x)
    sums = torch.empty(2000, 1000, dtype=torch.int32)
    copy.product(coded, sums)
    true, (own, norm, error) = x @ weight.T + bias, copy.numbers
    near = sums * own * numbers[0][:, None] + bias
    width = {}
    for proven in (True, False):
        factors = copy.bounding(numbers, bias, cut, proven).factors * numbers[0][:, None]
        width[proven] = factors[:, 1:2] * norm + factors[:, 2:] * error
    assert (width[False] < width[True] / 4).all()
    missed = near + width[False] < true  # of two million
    assert missed.sum() < 20
    assert (near + width[False] / 4 < true).sum() > 1000  # four times less would not do


def test_the_way_to_candidates_changes_no_bit(monkeypatch):
    monkeypatch.setattr(select, "fast_half", lambda device: True)
    x, weight, bias = problem(300, 48, 500)
    found = {}
    for way in (True, False):
        monkeypatch.setattr(Race, "takes_bytes", lambda race, rows=0, way=way: way)
        found[way] = Encoder(weight).above(x, bias, torch.zeros(500)), Encoder(weight).largest(x, bias, 7)
    for (ours, values), (theirs, their_values) in zip(*found.values(), strict=True):
        assert torch.equal(ours.latents, theirs.latents)
        assert torch.equal(ours.rows, theirs.rows)
        assert torch.equal(values, their_values)


@pytest.mark.parametrize("spread", [0.0, byte.SPREAD, 50.0])
def test_the_first_look_may_go_too_far_or_not_far_enough(monkeypatch, spread):
    """More latents than blocks, and no multiple of them; a row with fewer positive outputs than k; equal outputs."""
    monkeypatch.setattr(select, "fast_half", lambda device: True)
    monkeypatch.setattr(Race, "takes_bytes", lambda race, rows=0: True)
    monkeypatch.setattr(byte, "SPREAD", spread)
    x, weight, bias = problem(50, 24, 2500)
    weight[700:720] = weight[:20]
    bias[700:720] = bias[:20]
    x[7] = 0.0
    bias = (bias - 1.0).clamp_max(-0.5)
    bias[:3] = 0.1
    support, values = Encoder(weight).largest(x, bias, 20)
    dense = (x.double() @ weight.double().T + bias.double()).clamp_min(0)
    kth = dense.topk(20).values[:, -1:]
    codes = support.codes(values).dense().double()
    sure = (dense - kth).abs() > 1e-5
    torch.testing.assert_close(codes[sure], torch.where(dense >= kth, dense, 0.0)[sure], rtol=1e-5, atol=1e-5)
    assert (codes[7] > 0).sum() == 3
    assert support.codes(values).offsets.diff().max() == 20


def test_a_race_takes_the_faster_way_and_looks_again(monkeypatch):
    race, now, taken = Race(), [0.0], []
    monkeypatch.setattr("saetool.sparse.byte.time.perf_counter", lambda: now[0])
    for call in range(2 * AGAIN):
        seconds = {True: 1, False: 3} if call < AGAIN else {True: 3, False: 1}
        with race.timed(1000):
            taken.append(race.takes_bytes())
            now[0] += seconds[taken[-1]]
    assert all(taken[2 * TRIALS : AGAIN])
    assert not any(taken[AGAIN + 2 * TRIALS : 2 * AGAIN])
    assert set(taken[: 2 * TRIALS]) == {True, False}
    assert not race.takes_bytes(rows=3)
