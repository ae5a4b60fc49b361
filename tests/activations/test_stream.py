"""The sequence of batches: every row once an epoch, a new order each, the same for the same seed, from anywhere."""

from itertools import islice

import numpy as np
import pytest
import torch

from saetool.activations import StoreStream, TensorStream
from saetool.activations.shuffle import Position, Shuffle
from saetool.errors import RequestError
from saetool.statistics import Statistics

MASK = np.arange(50) % 7 == 2


@pytest.fixture
def streams(numbered):
    """Return makers of a stream over a store (pool smaller than it) and over a tensor, by name."""
    store, values = numbered()

    def from_store(seed=0, batch_size=16, pool_rows=50, held_out=MASK):
        return StoreStream(store.site(), batch_size, pool_rows, seed, held_out)

    def from_tensor(seed=0, batch_size=16):
        train, held_out = values[torch.from_numpy(~MASK)], values[torch.from_numpy(MASK)]
        return TensorStream(train.reshape(-1, 8), held_out.reshape(-1, 8), batch_size, seed)

    return {"store": from_store, "tensor": from_tensor}


def names(rows: torch.Tensor) -> list[tuple[int, int]]:
    """Return (image, token) of each row."""
    return [(int(row[0]), int(row[1])) for row in rows]


def take(stream, count: int) -> torch.Tensor:
    return torch.cat(list(islice(stream.batches(), count)))


TRAINING = {(image, token) for image in range(50) if not MASK[image] for token in range(6)}


@pytest.mark.parametrize("kind", ["store", "tensor"])
def test_an_epoch_holds_every_training_row_once(streams, kind):
    stream = streams[kind]()
    assert stream.n_rows == len(TRAINING) == 258
    rows = names(take(stream, 3 * 258 // 16 + 1))
    for epoch in range(3):
        part = rows[epoch * 258 : (epoch + 1) * 258]
        assert len(part) == len(set(part))
        assert set(part) == TRAINING
    assert rows[:258] != rows[258:516]


@pytest.mark.parametrize("kind", ["store", "tensor"])
def test_every_batch_is_full(streams, kind):
    assert {len(batch) for batch in islice(streams[kind](batch_size=100).batches(), 10)} == {100}


@pytest.mark.parametrize("kind", ["store", "tensor"])
def test_a_batch_may_be_larger_than_an_epoch(streams, kind):
    rows = names(take(streams[kind](batch_size=600), 1))
    assert set(rows[:258]) == set(rows[258:516]) == TRAINING


@pytest.mark.parametrize("kind", ["store", "tensor"])
def test_the_seed_decides_the_order(streams, kind):
    first = take(streams[kind](seed=3), 40)
    assert torch.equal(first, take(streams[kind](seed=3), 40))
    assert not torch.equal(first, take(streams[kind](seed=4), 40))


@pytest.mark.parametrize("kind", ["store", "tensor"])
@pytest.mark.parametrize("taken", [0, 1, 3, 16, 17, 33, 40])
def test_it_continues_where_it_stopped(streams, kind, taken):
    whole = take(streams[kind](), taken + 30)
    stream = streams[kind]()
    batches = stream.batches()
    for _ in range(taken):
        next(batches)
    position = stream.position()
    batches.close()
    resumed = streams[kind]()
    resumed.seek(position)
    assert resumed.position() == position
    assert torch.equal(take(resumed, 30), whole[taken * 16 :])


def test_rounds_read_ahead_do_not_move_the_position(streams):
    stream = streams["store"]()
    batches = stream.batches()
    next(batches)
    assert stream.position() == {"epoch": 0, "round": 0, "offset": 16}
    batches.close()
    first = take(streams["store"](), 2)[16:]
    assert torch.equal(next(stream.batches()), first)


def test_batches_stay_what_they_were(streams):
    batches = streams["store"]().batches()
    kept = [next(batches) for _ in range(60)]
    assert torch.equal(torch.cat(kept), take(streams["store"](), 60))


def test_a_round_mixes_as_many_slices_as_fit_into_the_pool(numbered):
    store, _ = numbered(images=48)
    rows = names(take(StoreStream(store.site(), 48, pool_rows=50, seed=0), 12))
    for start in range(0, len(rows), 48):  # slices of 4 images, 24 rows: two fit
        assert len({image // 4 for image, _ in rows[start : start + 48]}) == 2


def test_ordered_and_held_out_are_all_the_rows_in_order(streams):
    for make in streams.values():
        stream = make()
        assert names(torch.cat(list(stream.ordered()))) == sorted(TRAINING)
        blocks = list(stream.held_out())
        assert names(torch.cat(blocks)) == [(i, t) for i in range(50) if MASK[i] for t in range(6)]
        assert all(len(block) <= 16 for block in blocks)


@pytest.mark.parametrize("rows", [1, 7, 12, 13, 40, 10_000])
def test_some_held_out_rows_are_spread_evenly_over_the_images(streams, rows):
    images = [i for i in range(50) if MASK[i]]
    wanted = min(rows, 6 * len(images))
    for make in streams.values():
        found = names(torch.cat(list(make().held_out(rows))))
        assert found == names(torch.cat(list(make().held_out(rows))))  # the same ones again
        assert len(set(found)) == len(found) == wanted
        assert all(MASK[i] for i, _ in found)
        assert found == sorted(found)
        counts = [sum(i == image for i, _ in found) for image in images]
        assert max(counts) - min(counts) <= 1
    places = {t for _, t in names(torch.cat(list(streams["store"]().held_out(len(images)))))}
    assert len(places) > 1  # not one patch of every image


def test_statistics_see_training_rows_only(streams):
    expected = streams["tensor"]()._train.double()
    for make in streams.values():
        found = make().statistics()
        assert found.count == len(expected)
        assert torch.allclose(found.mean, expected.mean(0), rtol=1e-12, atol=1e-12)
        assert torch.allclose(found.variance, expected.var(0, correction=0), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["store", "tensor"])
@pytest.mark.parametrize("rows", [1, 40, 200, 258, 1000])
def test_a_sample_is_of_different_training_rows(streams, kind, rows):
    sample = streams[kind]().sample(rows)
    found = names(sample)
    assert sample.dtype == torch.float32
    assert len(found) == len(set(found)) == min(rows, 258)
    assert set(found) <= TRAINING
    assert torch.equal(sample, streams[kind]().sample(rows))


def test_a_sample_leaves_the_batches_alone(streams):
    stream = streams["store"]()
    stream.sample(10)
    assert torch.equal(take(stream, 5), take(streams["store"](), 5))


def test_a_sample_is_not_in_order(streams):
    found = names(streams["store"]().sample(100))
    assert found != sorted(found)


def test_everything_held_out_is_refused(numbered):
    store, _ = numbered()
    with pytest.raises(RequestError, match="held out"):
        StoreStream(store.site(), 16, 100, 0, np.ones(50, dtype=bool))
    with pytest.raises(RequestError, match="50"):
        StoreStream(store.site(), 16, 100, 0, np.ones(7, dtype=bool))


@pytest.mark.parametrize(
    "position", [{}, {"epoch": 0}, {"epoch": 0, "round": -1, "offset": 0}, {"epoch": 0, "round": 99, "offset": 0}]
)
def test_a_position_that_does_not_exist_is_refused(streams, position):
    with pytest.raises(RequestError):
        streams["store"]().seek(position)


def test_neighbors_rarely_come_from_one_image(numbered):
    store, _ = numbered(images=400, tokens=16, batch_size=8, shard_mb=0.1)
    stream = StoreStream(store.site(), 256, pool_rows=3200, seed=0)
    images = take(stream, 25)[:, 0]
    share = float((images[1:] == images[:-1]).float().mean())
    # Rows in random order within 200 images of 16 rows: a neighbor is one of 15 among 3,199.
    assert share == pytest.approx(15 / 3199, abs=0.004)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("d", [3, 6, 8])
def test_every_type_and_width_is_moved_whole(numbered, dtype, d):
    store, values = numbered(d=d, dtype=dtype)
    rows = take(StoreStream(store.site(), 30, 100, 0), 10)
    assert rows.dtype == values.dtype
    for row in rows:
        assert torch.equal(row, values[int(row[0]), int(row[1])])


def test_a_plan_walks_through_all_rounds():
    shuffle = Shuffle(np.array([5, 0, 7, 3, 9]), pool_rows=10, seed=1)
    assert sorted(np.concatenate(shuffle.rounds(0))) == [0, 2, 3, 4]
    assert all(shuffle.size(0, r) <= 10 for r in range(len(shuffle.rounds(0))))
    place, seen = Position(), 0
    while place.epoch < 2:
        place, seen = shuffle.after(place, 1), seen + 1
    assert seen == 2 * 24
    assert shuffle.after(Position(), 48) == place


def test_a_tensor_stream_gives_the_rows_it_was_given():
    x = torch.arange(12.0)[:, None].expand(12, 3)
    stream = TensorStream(x, batch_size=4)
    assert sorted(take(stream, 3)[:, 0].tolist()) == list(range(12))
    assert list(stream.held_out()) == []
    assert stream.statistics().count == Statistics.of(x).count


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_each_batch(streams, monkeypatch, processes):
    whole = list(islice(streams["store"]().batches(), 40))
    parts = []
    for rank in range(processes):
        monkeypatch.setattr("saetool.distributed.rank", lambda rank=rank: rank)
        monkeypatch.setattr("saetool.distributed.world_size", lambda: processes)
        stream = streams["store"]()
        parts.append(list(islice(stream.batches(), 40)))
        with pytest.raises(RequestError, match="shared equally"):
            next(streams["store"](batch_size=15).batches())
    for batch, *own in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat(own), batch)
