"""Pools on a device come in the same order with the same rows; what a pool holds stays until the next is asked for.

Here the device is the CPU, where copies are made at once; on a GPU `scripts/check_gpu.py` compares the same batches.
"""

import itertools

import pytest
import torch

from saetool.activations import StoreStream
from saetool.activations.device_pool import on_device

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


def test_batches_from_a_device_are_those_from_the_host(numbered):
    store, _ = numbered()

    def batches(device):
        stream = StoreStream(store.site(), batch_size=7, pool_rows=20, seed=3)
        stream.device = device  # the constructor leaves out a CPU
        return [batch.clone() for batch in itertools.islice(stream.batches(), 30)]

    host, device = batches(None), batches(CPU)
    assert all(torch.equal(a, b) for a, b in zip(host, device, strict=True))
