"""A limit draws evenly over the listing, as many of each class as can be, and by the seed."""

from collections import Counter

import pytest
from hypothesis import given, strategies as st

from saetool.activations import cache
from saetool.images import ImageSettings, Sample, open_cached
from saetool.vision import BackboneSettings


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=6), limit=st.integers(1, 120), seed=st.integers(0, 1000))
def test_classes_are_as_balanced_as_their_sizes_allow(sizes, limit, seed):
    classes = [name for name, size in enumerate(sizes) for _ in range(size)]
    taken = Sample(limit=limit, seed=seed).take(classes)
    assert len(taken) == len(set(taken)) == min(limit, len(classes))
    assert taken == sorted(taken)
    counts = Counter(classes[place] for place in taken)
    # No class has two more than another that had more to give.
    for mine, size in enumerate(sizes):
        assert all(counts[other] <= counts[mine] + 1 for other in range(len(sizes)) if counts[mine] < size)


@pytest.mark.parametrize(("n", "limit"), [(100, 10), (101, 7), (2624, 24), (5, 4)])
def test_every_stretch_of_the_listing_gives_one(n, limit):
    taken = Sample(limit=limit).take([None] * n)
    assert [place * limit // n for place in taken] == pytest.approx(range(limit), abs=1)
    for part in range(limit):
        assert sum(part * n // limit <= place < (part + 1) * n // limit for place in taken) == 1


def test_the_seed_decides_and_every_place_can_be_drawn():
    drawn = [Sample(limit=3, seed=seed).take([None] * 9) for seed in range(200)]
    assert drawn[0] == Sample(limit=3, seed=0).take([None] * 9)
    assert {place for taken in drawn for place in taken} == set(range(9))


def test_a_remainder_does_not_fall_to_the_first_classes():
    classes = list("abcdefgh")
    assert {classes[p] for seed in range(100) for p in Sample(limit=1, seed=seed).take(classes)} == set(classes)


def test_first_takes_the_beginning_whatever_the_classes():
    assert Sample(first=3).take(list("aaaabbbb")) == [0, 1, 2]
    assert Sample(first=30).take(list("ab")) == [0, 1]
    assert Sample().take(list("abc")) == [0, 1, 2]


def test_the_images_of_a_store_made_before_a_limit_drew_a_sample_are_found(tmp_path):
    """It took each class's first ones."""
    settings = ImageSettings(source="digits", first=5)
    store = cache(BackboneSettings(name="pixels/gray", image_size=8, layers=[1]), settings, None, tmp_path / "store")
    described = store.content["source"]
    del described["first"]
    described["limit"] = 5
    wanted = set(store.read_table("images.parquet")["path"].to_pylist())
    source = open_cached(store)
    assert wanted <= {source.path(i) for i in range(len(source))}
    described["seed"] = 0  # since then it is a sample
    assert len(open_cached(store)) == 5
