"""Specificity above chance, and what compares two latents: against dealing the images in every way, and by hand."""

import itertools

import numpy as np
import pytest
import torch

from saetool.features.maxima import RECORD, Maxima
from saetool.features.monosemanticity import Chance, monosemanticity
from saetool.features.neighbors import SAMPLE, firing_bits, sample_of, small_directions
from saetool.statistics import unit_rows

IMAGES = 6


def unit(rng, images: int = IMAGES) -> torch.Tensor:
    return unit_rows(torch.from_numpy(rng.normal(0.4, 1, (images, 5))))


def maxima_of(weights: np.ndarray) -> Maxima:
    """The maxima [latents, images] as records; 0 is silent."""
    latent, image = np.nonzero(weights)
    records = np.zeros(len(latent), RECORD)
    records["latent"], records["image"], records["value"] = latent, image, weights[latent, image]
    return Maxima.of(records, 0, len(weights))


def excess_by_hand(weights: np.ndarray, vectors: torch.Tensor) -> float:
    """The mean of s_ij − r_i − r_j + c over pairs, weighted by the products of their weights, pair by pair."""
    s = (vectors.double() @ vectors.double().T).numpy()
    n = len(s)
    usual = [np.mean([s[i, j] for j in range(n) if j != i]) for i in range(n)]
    above = weight = 0.0
    for i, j in itertools.permutations(range(n), 2):
        above += weights[i] * weights[j] * (s[i, j] - usual[i] - usual[j] + np.mean(usual))
        weight += weights[i] * weights[j]
    return above / weight


def test_the_excess_and_its_spread_are_those_over_all_ways_to_deal():
    rng = np.random.default_rng(0)
    vectors = unit(rng)
    weights = np.array([[1.0, 0.5, 0, 0, 0, 0], [1, 0.3, 0.7, 0, 0.2, 0], [0, 1, 1, 1, 1, 0]])
    maxima, chance = maxima_of(weights), Chance.of(vectors)
    assert chance is not None
    excess, spread = chance.excess(maxima, monosemanticity(maxima, vectors)), chance.spread(maxima)
    for latent, mine in enumerate(weights):
        assert excess[latent] == pytest.approx(excess_by_hand(mine, vectors), abs=1e-6)
        dealt = [excess_by_hand(mine[list(order)], vectors) for order in itertools.permutations(range(IMAGES))]
        assert np.mean(dealt) == pytest.approx(0, abs=1e-9)
        assert spread[latent] == pytest.approx(np.std(dealt), rel=1e-5)


def test_the_excess_of_dense_values_is_that_by_hand():
    rng = np.random.default_rng(3)
    vectors, values = unit(rng), rng.normal(size=(IMAGES, 4))
    values[:, 3] = 2.0  # the same on all
    chance = Chance.of(vectors)
    assert chance is not None
    found = chance.excess_of(torch.from_numpy(values))
    for column in range(3):
        low, high = values[:, column].min(), values[:, column].max()
        by_hand = excess_by_hand((values[:, column] - low) / (high - low), vectors)
        assert found[column] == pytest.approx(by_hand, abs=1e-6)
    assert np.isnan(found[3])


def test_images_of_a_kind_that_is_like_all_others_are_not_specific():
    """Eight alike amid everything, three alike apart: the raw score prefers the first, the excess the last."""
    middle, apart = np.array([1.0, 0, 0]), np.array([0.55, 0.835, 0])
    rng = np.random.default_rng(1)
    rows = np.stack([middle] * 8 + [apart] * 3) + rng.normal(0, 0.05, (11, 3))
    rows[8:] += rng.normal(0, 0.05, (3, 3))
    vectors = unit_rows(torch.from_numpy(rows))
    maxima = maxima_of(np.array([[1.0] * 4 + [0] * 7, [0] * 8 + [1] * 3]))
    score, chance = monosemanticity(maxima, vectors), Chance.of(vectors)
    assert chance is not None
    excess = chance.excess(maxima, score)
    assert score[0] > score[1]
    assert excess[1] > excess[0] + 0.1


def test_groups_of_images_are_compared_pair_by_pair():
    vectors = unit(np.random.default_rng(2))
    chance = Chance.of(vectors)
    assert chance is not None
    found = chance.of_groups(np.array([0, 0, 0, 2]), np.array([1, 3, 4, 5]), 3)
    assert found[0] == pytest.approx(excess_by_hand(np.array([0.0, 1, 0, 1, 1, 0]), vectors), abs=1e-6)
    assert np.isnan(found[1:]).all()


def test_three_images_have_no_chance():
    assert Chance.of(unit(np.random.default_rng(3), 3)) is None


def test_firing_bits_say_who_fires_where():
    rng = np.random.default_rng(4)
    fires = rng.random((5, 21)) < 0.4
    sample = np.sort(rng.choice(21, 11, replace=False)).astype(np.int32)
    bits = firing_bits(maxima_of(fires.astype(np.float32)), sample, 21)
    assert bits.shape == (5, 2)
    np.testing.assert_array_equal(np.unpackbits(bits, axis=1, bitorder="little")[:, :11], fires[:, sample])


def test_the_sample_is_all_images_or_those_of_smallest_hash():
    hashes = torch.from_numpy(np.random.default_rng(5).permutation(SAMPLE + 100))
    assert sample_of(hashes[:7]).tolist() == list(range(7))
    assert sample_of(hashes).tolist() == np.flatnonzero(hashes.numpy() < SAMPLE).tolist()


def test_cosines_of_small_directions_are_right_to_a_few_thousandths():
    rows = torch.randn(60, 384, generator=torch.Generator().manual_seed(0))
    rows[1] = 0
    rows[3] = rows[2] + 0.3 * rows[3]
    small, wide = unit_rows(small_directions(rows)), unit_rows(rows)
    assert float((small @ small.T - wide @ wide.T).abs().max()) < 3e-3
    assert not small[1].any()
