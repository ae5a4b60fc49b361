"""The split is a property of an image's content, not of its place."""

import numpy as np
import pytest

from saetool.activations import held_out_mask

DIGESTS = [f"xxh3-128:{i:032x}" for i in range(4000)]


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_about_the_share_is_held_out(share):
    assert held_out_mask(DIGESTS, 0, share).mean() == pytest.approx(share, abs=0.025)


def test_the_place_in_the_list_does_not_matter():
    mask = held_out_mask(DIGESTS, 0, 0.1)
    assert np.array_equal(held_out_mask(DIGESTS[::-1], 0, 0.1), mask[::-1])
    assert np.array_equal(held_out_mask(DIGESTS[1000:1200], 0, 0.1), mask[1000:1200])


def test_duplicates_stay_together():
    mask = held_out_mask(DIGESTS[:300] * 2, 0, 0.3)
    assert np.array_equal(mask[:300], mask[300:])


def test_another_seed_holds_out_other_images():
    assert (held_out_mask(DIGESTS, 0, 0.1) & held_out_mask(DIGESTS, 1, 0.1)).mean() < 0.03


def test_a_larger_share_keeps_the_smaller_ones():
    assert not (held_out_mask(DIGESTS, 0, 0.1) & ~held_out_mask(DIGESTS, 0, 0.2)).any()


def test_someone_is_held_out_of_few_images_with_their_duplicates():
    few = DIGESTS[:3] * 2
    mask = held_out_mask(few, 0, 1e-9)
    assert mask.sum() == 2
    assert np.array_equal(mask[:3], mask[3:])


def test_share_zero_holds_out_nobody():
    assert not held_out_mask(DIGESTS, 0, 0.0).any()
    assert held_out_mask([], 0, 0.5).shape == (0,)
