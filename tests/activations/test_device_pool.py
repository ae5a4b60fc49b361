"""Pools on a device come in the same order with the same rows; what a pool holds stays until the next is asked for.

Here the device is the CPU, where copies are made at once; on a GPU `scripts/check_gpu.py` compares the same batches.
"""

import itertools

import numpy as np
import pytest
import torch

from saetool.activations import StoreStream
from saetool.activations.device_pool import fits_whole, on_device

CPU = torch.device("cpu")


def pools(count, buffers=3):
    """Yield pools whose host buffers are used again, as a store's are."""
    rows = [torch.empty(4, 2) for _ in range(buffers)]
    for number in range(count):
        yield rows[number % buffers].fill_(number), torch.arange(4) + number


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_every_pool_comes_once_and_stays_until_the_next_is_asked_for(count):
    seen = []
    for rows, order in on_device(pools(count), CPU):
        first = rows.clone()
        assert torch.equal(rows, first)
        seen.append((int(rows[0, 0]), int(order[0])))
    assert seen == [(i, i) for i in range(count)]


def test_two_pools_lie_on_the_device_whatever_the_number_of_rounds():
    places = {rows.data_ptr() for rows, _ in on_device(pools(9), CPU)}
    assert len(places) == 2


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("start", [None, {"epoch": 1, "round": 1, "offset": 3}])
def test_batches_from_a_device_are_those_from_the_host(numbered, whole, start):
    store, _ = numbered()
    held_out = np.arange(store.n_images) % 3 == 1

    def batches(device):
        stream = StoreStream(store.site(), 7, 20, 3, held_out, whole=whole)
        stream.device = device  # the constructor leaves out a CPU
        if start:
            stream.seek(start)
        taken = [batch.clone() for batch in itertools.islice(stream.batches(), 60)]
        return taken, stream.position()

    (host, at), (device, where) = batches(None), batches(CPU)
    assert all(torch.equal(a, b) for a, b in zip(host, device, strict=True))
    assert at == where
    assert at["epoch"] > 1


@pytest.mark.parametrize("share", [0, 3, 9])
def test_moments_and_held_out_rows_on_a_device_are_the_hosts(numbered, share):
    store, _ = numbered()
    held_out = np.arange(store.n_images) % 10 < share
    host, device = (StoreStream(store.site(), 7, 20, 3, held_out) for _ in range(2))
    device.device = CPU
    for name in ("mean", "variance"):
        torch.testing.assert_close(*(getattr(stream.statistics(), name) for stream in (device, host)))
    blocks = [list(stream.held_out()) for stream in (device, host)]
    assert all(len(block) <= 7 for block in blocks[0])
    if share:
        assert torch.equal(*map(torch.cat, blocks))
    else:
        assert blocks == [[], []]


def test_a_device_without_float64_leaves_moments_to_the_host(numbered, monkeypatch):
    store, _ = numbered()
    stream = StoreStream(store.site(), 7, 20, 3, np.arange(store.n_images) % 3 == 1)
    expected = stream.site.statistics(stream._train)
    stream.device = torch.device("mps")
    monkeypatch.setattr(stream, "_on_device", None)
    assert torch.equal(stream.statistics().mean, expected.mean)


def test_more_rows_than_a_pool_are_not_kept(numbered):
    store, _ = numbered()
    stream = StoreStream(store.site(), 7, 8, 3, np.arange(store.n_images) % 3 == 1)
    first, again = (torch.cat(list(stream.held_out(9))) for _ in range(2))
    assert torch.equal(first, again)
    assert stream._spread_rows is None


def test_rows_for_evaluations_along_the_way_are_read_once(numbered, monkeypatch):
    store, _ = numbered()
    stream = StoreStream(store.site(), 7, 20, 3, np.arange(store.n_images) % 3 == 1)
    first = torch.cat(list(stream.held_out(5)))
    monkeypatch.setattr(stream.site, "rows", None)
    assert torch.equal(torch.cat(list(stream.held_out(5))), first)


def test_a_whole_store_is_read_once(numbered, monkeypatch):
    store, _ = numbered()
    site, read = store.site(), []
    real = site.read_runs_into
    monkeypatch.setattr(site, "read_runs_into", lambda out, wanted: (read.extend(wanted), real(out, wanted)))
    stream = StoreStream(site, 7, 20, 3, whole=True)
    stream.device = CPU
    for _ in itertools.islice(stream.batches(), 3 * stream.n_rows // 7):
        pass
    assert sorted(image for run in read for image in range(*run)) == list(range(store.n_images))


def test_only_a_gpu_with_much_more_room_holds_a_store_whole(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    gpu = torch.device("cuda")
    assert [fits_whole(size, gpu) for size in (250, 251)] == [True, False]
    assert not fits_whole(1, CPU)
