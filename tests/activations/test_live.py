"""A live stream gives the rows that a cached store holds, shuffled, split by image, and resumes where it stood."""

from itertools import islice

import pytest
import torch

from saetool.activations import ActivationStore, CacheSettings, cache
from saetool.activations.live import Images, LiveSource, LiveStream
from saetool.activations.split import held_out_images, held_out_mask, is_held_out
from saetool.errors import RequestError
from saetool.images import ImageSettings, open_source
from saetool.images.settings import Grouping
from saetool.statistics import Statistics
from saetool.vision import BackboneSettings

SHARE, SEED, TOKENS = 0.3, 5, 16


@pytest.fixture
def live(tiny, pictures):
    """Return a function that makes a live stream over the pictures: slices of 4 images, rounds of 8."""

    def make(batch_size=20, pool_rows=8 * TOKENS, share=SHARE, on_error="fail", cache_settings=None, group=None):
        backbone = tiny(layers=(3,))
        settings = cache_settings or CacheSettings(dtype="float32", batch_size=4)
        images = Images(
            backbone, backbone.sites[0], open_source(ImageSettings(source=str(pictures))), settings, on_error, group
        )
        return LiveStream(images, batch_size, pool_rows, SEED, share)

    return make


@pytest.fixture
def cached(tiny, pictures, tmp_path):
    """Return (training rows, held-out rows) of a store of the same pictures."""
    cache(tiny(layers=(3,)), pictures, None, tmp_path / "store", CacheSettings(dtype="float32", batch_size=4))
    store = ActivationStore.open(tmp_path / "store")
    mask = torch.from_numpy(held_out_mask(store.digests, SEED, SHARE))
    rows = store.site(None).rows(0, 23)
    return rows[~mask].flatten(0, 1), rows[mask].flatten(0, 1)


def sorted_rows(rows: torch.Tensor) -> torch.Tensor:
    return rows[rows[:, 0].argsort()]


def assert_same_rows(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    torch.testing.assert_close(sorted_rows(found), sorted_rows(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", [{"block": 1}, {"pattern": "[0-9]$|[02468][.]"}])
def test_groups_are_held_out_as_of_a_store(live, tiny, pictures, tmp_path, rule):
    cache(tiny(layers=(3,)), pictures, None, tmp_path / "store", CacheSettings(dtype="float32", batch_size=4))
    store = ActivationStore.open(tmp_path / "store")
    mask = torch.from_numpy(held_out_images(store, {"seed": SEED, "share": SHARE, "group": rule}))
    assert 0 < mask.sum() < 23
    stream = live(group=Grouping(**rule))
    assert_same_rows(torch.cat(list(stream.held_out())), store.site(None).rows(0, 23)[mask].flatten(0, 1))


def test_an_epoch_holds_every_training_row_once_and_no_held_out_row(live, cached):
    train, _ = cached
    batches = live(batch_size=len(train) // 4).batches()
    assert_same_rows(torch.cat(list(islice(batches, 4))), train)
    second = torch.cat(list(islice(batches, 4)))
    assert_same_rows(second, train)


def test_epochs_and_seeds_differ_in_order_and_the_same_seed_repeats(live, cached):
    rows = len(cached[0])
    first, second = islice(live(batch_size=rows).batches(), 2)
    assert not torch.equal(first, second)
    (again,) = islice(live(batch_size=rows).batches(), 1)
    assert torch.equal(first, again)


def test_held_out_ordered_and_moments_are_those_of_the_store(live, cached):
    train, rest = cached
    stream = live()
    blocks = list(stream.held_out())
    assert max(map(len, blocks)) <= 20
    assert_same_rows(torch.cat(blocks), rest)
    torch.testing.assert_close(torch.cat(list(stream.ordered())), train, rtol=1e-5, atol=1e-6)
    some = torch.cat(list(stream.held_out(5)))
    places = [(torch.cat(blocks) == row).all(1).nonzero()[0].item() for row in some]
    assert places == [(2 * i + 1) * len(rest) // 10 for i in range(5)]
    whole = live(pool_rows=10_000).statistics()
    expected = Statistics.of(train)
    assert whole.count == expected.count
    torch.testing.assert_close(whole.mean, expected.mean, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(whole.variance, expected.variance, rtol=1e-5, atol=1e-7)


def test_moments_samples_and_held_out_rows_are_bounded_by_the_pool(live, cached):
    stream = live(pool_rows=2 * TOKENS)
    assert stream.statistics().count <= 2 * TOKENS + 4 * TOKENS
    assert len(stream.sample(10)) == 10
    assert torch.equal(stream.sample(10), stream.sample(10))
    assert sum(map(len, stream.held_out())) <= 2 * TOKENS + 4 * TOKENS


@pytest.mark.parametrize("taken", [1, 5, 6, 13, 21])
def test_a_stream_continues_where_it_stood(live, taken):
    expected = list(islice(live().batches(), taken + 9))[taken:]
    first = live()
    list(islice(first.batches(), taken))
    second = live()
    second.seek(first.position())
    for found, wanted in zip(islice(second.batches(), 9), expected, strict=True):
        assert torch.equal(found, wanted)


def test_another_number_of_processes_cannot_go_on(live):
    stream = live()
    with pytest.raises(RequestError, match="begun by 2 processes"):
        stream.seek({"processes": [{"epoch": 0, "round": 0, "offset": 0}] * 2})


def test_unreadable_images_are_left_out_when_asked(live, pictures, cached):
    bad = sorted(pictures.rglob("*.png"))[2]
    lost = open_source(ImageSettings(source=str(pictures))).read(2).digest
    bad.write_bytes(b"not a picture")
    rows = sum(len(block) for block in live(on_error="skip").ordered())
    assert rows == len(cached[0]) - (0 if is_held_out(lost, SEED, SHARE) else TOKENS)


def test_no_training_image_is_an_error_and_not_an_endless_wait(live):
    with pytest.raises(RequestError, match="No rows to train on"):
        next(live(share=0.999999).batches())
    with pytest.raises(RequestError, match="No rows to train on"):
        live(share=0.999999).statistics()


def test_a_layer_must_be_chosen_where_several_are_read(pictures):
    source = open_source(ImageSettings(source=str(pictures)))
    backbone = BackboneSettings(name="demo/vits14", layers=[3, 10])
    live = LiveSource(backbone, source, ImageSettings(source=str(pictures)), CacheSettings())

    class Request:
        batch_size, pool_rows, held_out, layer = 32, 64, 0.1, None

    with pytest.raises(RequestError, match=r"training\.layer"):
        live.check(Request())
    Request.layer = 10
    live.check(Request())
    assert live.config()["live"]["cache"] == {"dtype": "bfloat16", "batch_size": 32}
