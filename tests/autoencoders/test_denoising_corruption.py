"""Corruptions touch the share they promise, and nothing else by a single bit."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from saetool.autoencoders.corruption import Corruption, corrupt, require_grid
from saetool.errors import RequestError

ROWS, D = 400, 64


def of(**settings):
    return TypeAdapter(Corruption).validate_python(settings)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def x():
    return 0.1 + 0.8 * torch.rand(ROWS, D, generator=generator(5))  # no component is 0 or 1 by itself


def within(share, observed, trials):
    return abs(observed - share) <= 4 * math.sqrt(share * (1 - share) / trials)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_masking_zeroes_its_share_and_keeps_the_rest_bit_equal(x, share):
    noisy = corrupt(of(kind="masking", share=share), x, generator())
    changed = noisy != x
    assert within(share, float(changed.float().mean()), x.numel())
    assert bool((noisy[changed] == 0).all())
    assert len(set(changed.sum(1).tolist())) > 1  # independent: counts vary by row


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_exact_masking_zeroes_exactly_its_share_of_every_row_evenly_over_components(x, share):
    noisy = corrupt(of(kind="masking", share=share, exact=True), x, generator())
    changed = noisy != x
    assert changed.sum(1).tolist() == [round(share * D)] * ROWS
    assert bool((noisy[changed] == 0).all())
    assert all(within(share, float(column), ROWS) for column in changed.float().mean(0))


@pytest.mark.parametrize(("bounds", "low", "high"), [(None, 0.0, 1.0), ((-3.0, 7.5), -3.0, 7.5)])
def test_salt_and_pepper_take_half_the_share_each(x, bounds, low, high):
    noisy = corrupt(of(kind="salt_pepper", share=0.3, bounds=bounds), x, generator())
    changed = noisy != x
    assert within(0.15, float((noisy == low).float().mean()), x.numel())
    assert within(0.15, float((noisy == high).float().mean()), x.numel())
    assert bool(((noisy == low) | (noisy == high))[changed].all())


def test_gaussian_noise_has_its_variance_and_no_mean(x):
    noise = corrupt(of(kind="gaussian", sigma=0.3), x, generator()) - x
    assert abs(float(noise.mean())) < 4 * 0.3 / math.sqrt(x.numel())
    assert float(noise.var()) == pytest.approx(0.09, rel=4 * math.sqrt(2 / x.numel()))


def test_patches_fall_as_whole_squares_with_all_their_channels(x):
    patches = of(kind="patches", share=0.25, grid=(4, 8), side=2)  # 2 channels a cell, 2 × 4 squares
    noisy = corrupt(patches, x, generator())
    squares = (noisy != x).view(ROWS, 2, 2, 4, 2, 2).permute(0, 1, 3, 2, 4, 5).reshape(ROWS, 8, 8)
    assert torch.equal(squares.any(2), squares.all(2))
    assert squares.all(2).sum(1).tolist() == [2] * ROWS
    assert bool((noisy[noisy != x] == 0).all())
    assert all(within(0.25, float(square), ROWS) for square in squares.all(2).float().mean(0))


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "gaussian", "sigma": 0.1},
        {"kind": "masking", "share": 0.2},
        {"kind": "masking", "share": 0.2, "exact": True},
        {"kind": "salt_pepper", "share": 0.2},
        {"kind": "patches", "share": 0.2, "grid": (8, 8)},
    ],
)
def test_noise_is_fresh_seeded_and_leaves_its_input_alone(x, settings):
    before, source = x.clone(), generator()
    first, second = corrupt(of(**settings), x, source), corrupt(of(**settings), x, source)
    assert torch.equal(x, before)
    assert not torch.equal(first, second)
    assert torch.equal(first, corrupt(of(**settings), x, generator()))


def test_bad_requests_are_named():
    for wrong, words in [
        ({"kind": "gaussian", "sigma": 0}, "sigma"),
        ({"kind": "masking", "share": 1.0}, "share"),
        ({"kind": "salt_pepper", "share": 0.1, "bounds": (1, 0)}, "low < high"),
        ({"kind": "patches", "share": 0.1, "grid": (5, 4), "side": 2}, "does not divide the grid 5 × 4"),
        ({"kind": "speckle"}, "speckle"),
    ]:
        with pytest.raises(ValidationError, match=words):
            of(**wrong)
    with pytest.raises(RequestError, match=r"7 × 7 cells do not divide inputs of width 64"):
        require_grid(of(kind="patches", share=0.1, grid=(7, 7)), 64)


@pytest.mark.parametrize(
    ("corruption", "said"),
    [
        ({"kind": "masking", "share": 0.05, "exact": True}, "0.05 of 8 entries is none of them"),
        ({"kind": "masking", "share": 0.95, "exact": True}, "0.95 of 8 entries is all of them"),
        ({"kind": "patches", "share": 0.25, "grid": [2, 4], "side": 2}, "0.25 of 2 squares is none of them"),
        ({"kind": "patches", "share": 0.75, "grid": [2, 4], "side": 2}, "0.75 of 2 squares is all of them"),
    ],
)
def test_a_share_that_rounds_to_nothing_or_all_is_refused(corruption, said):
    with pytest.raises(RequestError, match=said):
        require_grid(of(**corruption), 8)
