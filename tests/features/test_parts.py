"""Neighbors, monosemanticity, heat maps on pictures: the pieces against slow computations."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from saetool.features.monosemanticity import monosemanticity
from saetool.features.neighbors import by_decoder, largest_in_rows
from saetool.features.sheet import Cell, contact_sheet, overlay
from saetool.features.tables import largest_of_rows
from saetool.vision.geometry import Geometry

SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=80, deadline=None)
@given(SEEDS, st.integers(1, 6))
def test_largest_in_rows_breaks_ties_by_column(seed, k):
    rng = np.random.default_rng(seed)
    values = rng.integers(-3, 4, (4, rng.integers(1, 14))).astype(np.float32)
    values[(values == 0) & (rng.random(values.shape) < 0.5)] = -0.0
    values[rng.random(values.shape) < 0.2] = -np.inf
    columns, found = largest_in_rows(torch.tensor(values), k)
    for row, mine in enumerate(values):
        order = sorted(np.flatnonzero(np.isfinite(mine)), key=lambda c: (-mine[c], c))[:k]
        assert columns[row].tolist() == order + [-1] * (k - len(order))
        assert found[row].tolist() == mine[order].tolist() + [0] * (k - len(order))


def test_decoder_neighbors_are_the_largest_cosines_and_zero_directions_have_none(monkeypatch):
    monkeypatch.setattr("saetool.features.neighbors.BLOCK", 3)
    w = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    w[5] = 0
    w[6] = 3 * w[2] + 0.01
    latents, values = by_decoder(w, 3)
    unit = torch.nn.functional.normalize(w, dim=1)
    for j in range(8):
        cosine = unit @ unit[j]
        order = sorted((i for i in range(8) if i not in (j, 5)), key=lambda i: -cosine[i])[:3]
        assert latents[j].tolist() == ([-1] * 3 if j == 5 else order)
        if j != 5:
            assert values[j].tolist() == pytest.approx(cosine[order].tolist(), abs=1e-6)
    assert latents[6, 0] == 2
    assert values[6, 0] == pytest.approx(1, abs=1e-3)


@settings(max_examples=80, deadline=None)
@given(SEEDS)
def test_monosemanticity_is_the_weighted_mean_similarity_of_pairs(random_scores, maxima_of, seed):
    dense = random_scores(seed)
    u = np.random.default_rng(seed).normal(size=(len(dense), 3))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    u[:: 1 + seed % 4] *= seed % 2  # some embeddings are zero
    found = monosemanticity(maxima_of(dense), torch.from_numpy(u).float())
    for latent, a in enumerate(dense.T.astype(float)):
        span = a.max() - a.min()
        a = (a - a.min()) / span if span else 0 * a
        weights = np.outer(a, a) - np.diag(a * a)
        if (a > 0).sum() < 2:
            assert np.isnan(found[latent])
        else:
            assert found[latent] == pytest.approx((weights * (u @ u.T)).sum() / weights.sum(), abs=1e-5)


def test_images_alike_score_one():
    dense = np.array([[1], [2], [4]], np.float32)
    from saetool.features.maxima import RECORD, Maxima

    records = np.zeros(3, RECORD)
    records["image"], records["value"] = np.arange(3), dense[:, 0]
    same = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    assert monosemanticity(Maxima.of(records, 0, 1), same) == pytest.approx(1)


def test_heat_lies_where_the_model_looked():
    geometry = Geometry(resize="shortest", resize_to=(8, 8), crop=(8, 8), patch=(4, 4), grid=(2, 2))
    wide = Image.new("RGB", (40, 20), "black")  # the middle 20 × 20 pixels are seen
    heat = np.array([[1, 0], [0, 0]], np.float32)
    drawn = np.asarray(overlay(wide, heat, geometry)).sum(2)
    lit = np.argwhere(drawn > 0)
    assert lit.min(0).tolist() == [0, 10]
    assert lit.max(0).tolist() == [9, 19]


def test_a_sheet_has_a_row_for_each_latent():
    picture = Image.new("RGB", (30, 20), "blue")
    sheet = contact_sheet([("latent 1", [Cell(picture, "a")] * 3), ("latent 2", [Cell(picture, "b")])], None, size=50)
    assert sheet.size == (150, 2 * (50 + 28))
    assert contact_sheet([], None).width > 0


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.integers(1, 6))
def test_the_largest_of_a_row_are_the_first_of_a_stable_sort(seed, k):
    values = np.random.default_rng(seed).integers(-1, 3, (5, 4)) / 2
    wanted = np.zeros(values.shape, bool)
    np.put_along_axis(wanted, np.argsort(-values, axis=1, kind="stable")[:, :k], True, axis=1)
    assert np.array_equal(largest_of_rows(values, k), wanted)
