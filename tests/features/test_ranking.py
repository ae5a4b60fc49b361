"""Examples are distinct images in the right order; a latent that fires on three images has three."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from saetool.features.ranking import GROUPS, _by_cell, by_value, choose, image_hashes, interval_of
from saetool.features.settings import IndexSettings
from saetool.features.workers import block_workers

SEEDS = st.integers(0, 2**32 - 1)


def chosen_images(maxima, chosen, latent: int, group: str, interval: int = -1) -> list[int]:
    """Return the images of one latent's group, by rank."""
    mine = (maxima.records()["latent"][chosen.record] == latent) & (chosen.group == GROUPS.index(group))
    mine &= chosen.interval == interval
    assert chosen.rank[mine].tolist() == list(range(mine.sum()))
    return maxima.records()["image"][chosen.record[mine]].tolist()


def choose_from(maxima, images: int, seed: int = 0, **settings):
    digests = image_hashes([f"file {i}" for i in range(images)], seed)
    return choose(maxima, by_value(maxima), digests, IndexSettings(**settings), seed)


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.integers(1, 6))
def test_top_images_are_the_largest_with_ties_by_row(random_scores, maxima_of, seed, k):
    dense = random_scores(seed)
    maxima = maxima_of(dense)
    chosen = choose_from(maxima, len(dense), top=k)
    for latent, score in enumerate(dense.T):
        wanted = sorted(np.flatnonzero(score), key=lambda image: (-score[image], image))[:k]
        assert chosen_images(maxima, chosen, latent, "top") == wanted


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.integers(1, 4))
def test_intervals_are_half_open_parts_of_zero_to_max(random_scores, maxima_of, seed, n):
    dense = random_scores(seed)
    maxima = maxima_of(dense)
    chosen = choose_from(maxima, len(dense), intervals=n, interval_examples=3)
    for latent, score in enumerate(dense.T):
        for i in range(n):
            top = float(score.max())
            members = [m for m in np.flatnonzero(score) if top * i < float(score[m]) * n <= top * (i + 1)]
            found = chosen_images(maxima, chosen, latent, "interval", i)
            assert set(found) <= set(members)
            assert len(found) == len(set(found)) == min(3, len(members))


def test_a_value_on_a_border_belongs_to_the_interval_below(maxima_of):
    maxima = maxima_of(np.array([[1], [2], [3], [4]], np.float32))
    assert interval_of(maxima, 4).tolist() == [0, 1, 2, 3]
    assert interval_of(maxima, 2).tolist() == [0, 0, 1, 1]


def test_mean_over_patches_can_rank_instead_of_the_maximum(maxima_of):
    maxima = maxima_of(np.array([[3], [2]], np.float32), np.array([[3], [9]], np.float32))
    assert chosen_images(maxima, choose_from(maxima, 2, top_by="mean"), 0, "top") == [1, 0]
    assert chosen_images(maxima, choose_from(maxima, 2, top_by="max"), 0, "top") == [0, 1]


def test_random_members_depend_on_seed_and_latent_but_not_on_position(maxima_of):
    dense = np.ones((60, 2), np.float32)
    maxima = maxima_of(dense)
    first = choose_from(maxima, 60, random=6)
    a, b = (chosen_images(maxima, first, latent, "random") for latent in (0, 1))
    assert a != b
    assert chosen_images(maxima, choose_from(maxima, 60, random=6), 0, "random") == a
    assert chosen_images(maxima, choose_from(maxima, 60, seed=1, random=6), 0, "random") != a
    digests = image_hashes([f"file {i}" for i in reversed(range(60))], 0)
    turned = choose(maxima, by_value(maxima), digests, IndexSettings(random=6), 0)
    assert [59 - image for image in chosen_images(maxima, turned, 0, "random")] == a


def test_many_latents_times_many_intervals_are_ordered_alike(maxima_of, random_scores, monkeypatch):
    maxima = maxima_of(random_scores(4, images=12, latents=6))
    wanted = choose_from(maxima, 12, intervals=3, interval_examples=2, random=3)
    monkeypatch.setattr("saetool.features.ranking._PACKED_CELLS", 1)
    found = choose_from(maxima, 12, intervals=3, interval_examples=2, random=3)
    for name in ("record", "group", "interval", "rank"):
        assert getattr(found, name).tolist() == getattr(wanted, name).tolist()


def test_the_last_of_very_many_cells_stays_last():
    hashes = torch.tensor([5, 1, 3, 2])
    for cell in ([0, 1 << 23, (1 << 23) - 1, 0], [0, 1 << 40, 7, 0]):
        assert _by_cell(torch.tensor(cell), hashes, max(cell) + 1).tolist() == [3, 0, 2, 1]


def test_random_members_are_drawn_evenly(maxima_of):
    latents = 3000
    maxima = maxima_of(np.ones((10, latents), np.float32))
    chosen = choose_from(maxima, 10, random=2)
    random = chosen.group == GROUPS.index("random")
    counts = np.bincount(maxima.records()["image"][chosen.record[random]], minlength=10)
    assert counts.sum() == 2 * latents
    assert counts == pytest.approx(np.full(10, 600), abs=110)  # 5 standard deviations


@pytest.mark.parametrize("images", [0, 1, 3])
def test_a_latent_firing_on_few_images_shows_no_more(maxima_of, images):
    dense = np.zeros((5, 1), np.float32)
    dense[:images] = 2
    maxima = maxima_of(dense)
    chosen = choose_from(maxima, 5, top=16)
    assert chosen_images(maxima, chosen, 0, "top") == list(range(images))
    assert len(chosen_images(maxima, chosen, 0, "random")) == images


@pytest.mark.parametrize(
    ("cores", "gigabytes", "records", "workers"),
    [(2, 64, 1 << 22, 1), (16, 128, 1 << 22, 8), (16, 128, 24_000_000, 8), (16, 32, 24_000_000, 5), (16, 8, 10**9, 1)],
)
def test_blocks_side_by_side_fit_into_half_of_the_memory(monkeypatch, cores, gigabytes, records, workers):
    monkeypatch.setattr("saetool.distributed.cores", lambda: cores)
    pages = {"SC_PHYS_PAGES": gigabytes * 10**9 // 4096, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr("os.sysconf", pages.__getitem__)
    assert block_workers(records, torch.device("cpu")) == workers
