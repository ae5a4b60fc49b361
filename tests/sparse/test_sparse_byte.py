"""The int8 way to candidates: its bound holds, it changes no bit, and it is taken where it is faster."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saetool.sparse import byte, compiled, select
from saetool.sparse.byte import AGAIN, TRIALS, ByteWeight, Race
from saetool.sparse.select import Encoder

pytestmark = pytest.mark.skipif(not compiled.has_byte_unit(), reason="this CPU has no unit for products of bytes")


def test_where_there_is_the_unit_its_product_passes_the_probe():
    assert byte.has_byte_product()


def problem(rows, d_in, n_latents, seed=0, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, d_in, generator=g) * scale
    weight = torch.randn(n_latents, d_in, generator=g) / d_in**0.5
    return x, weight, torch.randn(n_latents, generator=g) - 1.0


def narrow(copy, x, narrowing, which):
    """The narrower bounds from above and below, computed slowly: by one int8 number (2) or by both (3)."""
    scale, offset, *errors = narrowing.latents.double().T
    size, rest = narrowing.slack.double().T[:, : len(x), None]
    first, second = copy.coded.rows[:, :, : x.shape[1]].double()
    shorts = np.zeros(copy.coded.rows.shape[2], np.int16)
    rounded = []
    for row in x:
        unit = compiled.kernels()._to_shorts(row.numpy(), shorts)
        rounded.append(torch.from_numpy(shorts[: x.shape[1]].astype(np.float64)) * float(unit))
    sums = torch.stack(rounded) @ (first if which == 2 else first + second / 254).T * scale + offset
    margin = size * errors[which - 2] + errors[-1] + rest
    return sums + margin, sums - margin


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(0, 99), st.sampled_from([1e-3, 1.0, 1e3]), st.sampled_from([0, 30]))
def test_the_int8_product_bounds_the_true_one_and_not_by_far(d_in, seed, scale, outlier):
    x, weight, bias = problem(32, d_in, 70, seed, scale)
    x[3], weight[5] = 0.0, 0.0
    x[:, 0] *= 1 + outlier
    cut = torch.linspace(-1, 1, 70)
    copy = ByteWeight.of(weight, None)
    bounding = copy.bounding(x, bias, cut)
    pre, maxima = bounding.bounds(range(32))
    assert (pre[:, 70:] <= 0).all()  # what stands for no latent
    bounds = pre[:, :70].double()
    true = x.double() @ weight.double().T + (bias - cut).double()
    assert (bounds[true > 0] >= true[true > 0]).all()
    assert torch.equal(maxima.view(torch.bfloat16)[:, :70], pre[:, :70].clamp_min(0))
    # Rounding to 1/127 of the largest entry is wrong by at most half of that, an entry; bfloat16 cuts a 64th or less.
    norms, most = weight.norm(dim=1), weight.abs().amax(1)
    steps = (x.abs().amax(1)[:, None] * norms + x.norm(dim=1)[:, None] * most).double()
    near = true + 1.1 * d_in**0.5 / 127 * steps + 1e-4
    assert (bounds[near > 0] <= near[near > 0] * (1 + 2.0**-6)).all()
    # Narrowed, only the latent's rounding is left of that, and then a 254th of it.
    for which, left in ((2, 1.0), (3, 1 / 254)):
        upper, lower = narrow(copy, x, bounding.narrowing, which)
        assert (upper >= true).all()
        assert (lower <= true).all()
        size = x.norm(dim=1)[:, None]
        steps = (size * most).double() * left + x.abs().amax(1)[:, None] * norms.max() / 100
        assert (upper - lower <= 2.2 * d_in**0.5 / 127 * steps + 1e-4 * (1 + size * norms.max())).all()


@pytest.mark.parametrize("width", [1, 7, 64, 1000, 5000])
def test_narrowing_sums_are_those_of_the_int8_numbers(width):
    """Largest entries everywhere: the sums of integers are as large as they can get."""
    kernels = compiled.kernels()
    x = torch.full((1, width), 3.0)
    copy = ByteWeight.of(torch.cat([torch.ones(2, width), -torch.ones(3, width)]), None)
    shorts = np.zeros(copy.coded.rows.shape[2], np.int16)
    unit = kernels._to_shorts(x[0].numpy(), shorts)
    index, sums = np.array([4, 0, 3, 1, 2, 2]), np.zeros(6, np.float32)
    kernels._short_dots(shorts, unit, copy.coded.rows[0].numpy(), index, sums, 6)
    expected = 3.0 * 127 * width * np.array([-1, 1, -1, 1, -1, -1])
    np.testing.assert_allclose(sums, expected, rtol=1e-3)


def test_likely_bounds_are_a_fraction_of_the_proven_ones_and_miss_next_to_nothing():
    x, weight, bias = problem(2000, 384, 1000)
    cut = torch.zeros(1000)
    copy = ByteWeight.of(weight, None)
    true, widths = x.double() @ weight.double().T + bias, {}
    for proven, most in ((True, 0), (False, 20)):  # of two million
        bounding = copy.bounding(x, bias, cut, proven=proven)
        first = bounding.bounds(range(2000))[0][:, :1000].double()
        upper, _ = narrow(copy, x, bounding.narrowing, 2)
        assert int(((first < true) & (true > 0)).sum()) <= most
        assert int((upper < true).sum()) <= most
        widths[proven] = float((first - true)[true > 0].mean()), float((upper - true).mean())
    assert all(wide > 4 * narrow for wide, narrow in zip(widths[True], widths[False], strict=True))


def test_the_way_to_candidates_changes_no_bit(monkeypatch):
    monkeypatch.setattr(select, "fast_half", lambda device: True)
    x, weight, bias = problem(1000, 48, 500)  # several shares, each of several slices
    found = {}
    for way in (True, False):
        monkeypatch.setattr(Race, "takes_bytes", lambda race, rows=0, way=way: way)
        found[way] = Encoder(weight).above(x, bias, torch.zeros(500)), Encoder(weight).largest(x, bias, 7)
    for (ours, values), (theirs, their_values) in zip(*found.values(), strict=True):
        assert torch.equal(ours.latents, theirs.latents)
        assert torch.equal(ours.rows, theirs.rows)
        assert torch.equal(values, their_values)


def test_the_int8_product_serves_where_bfloat16_is_slow(monkeypatch):
    monkeypatch.setattr(select, "fast_half", lambda device: False)
    monkeypatch.setattr(select, "has_matrix_unit", lambda: False)
    x, weight, bias = problem(300, 48, 500)
    encoder = Encoder(weight)
    support, values = encoder.largest(x, bias, 7)
    assert isinstance(encoder.kept, ByteWeight)
    dense = (x.double() @ weight.double().T + bias.double()).clamp_min(0)
    kept = dense >= dense.topk(7).values[:, -1:]
    torch.testing.assert_close(support.codes(values).dense().double(), torch.where(kept, dense, 0.0), rtol=0, atol=1e-5)
    wide = Encoder(torch.zeros(2, byte.MOST_INPUTS + 1))
    wide.largest(torch.zeros(3, byte.MOST_INPUTS + 1), torch.ones(2), 1)
    assert wide.kept is None  # its sums may not fit


def test_bf16_codes_by_the_int8_product_are_nearly_exact(monkeypatch):
    monkeypatch.setattr(select, "has_matrix_unit", lambda: False)
    x, weight, bias = problem(400, 384, 2000)
    cut = torch.full((2000,), 0.5)
    exact, near = Encoder(weight), Encoder(weight, "bf16")
    for ways in (lambda e: e.above(x, bias, cut), lambda e: e.largest(x, bias, 30)):
        (support, values), (others, their_values) = ways(exact), ways(near)
        assert isinstance(near.kept, ByteWeight)
        ours, theirs = support.codes(values).dense(), others.codes(their_values).dense()
        flipped = (ours > 0) != (theirs > 0)
        assert flipped.sum() < 1e-3 * len(values)
        torch.testing.assert_close(theirs[~flipped], ours[~flipped], rtol=0, atol=3e-4)


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
