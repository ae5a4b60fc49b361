"""Several chunks at once, each on its own core: most steps between the encoder's products run on one core only.

Measured on 2 cores: the pass gains more from two chunks side by side than from two cores on one product.
"""

import copy
import os
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import TypeVar

import torch

from saetool import distributed
from saetool.autoencoders.base import Autoencoder
from saetool.threads import ordered

MAX_WORKERS = 8
"""Each holds a copy of the model and its own sums; beyond this, a worker gets several cores."""
_FEW_CORES = 4
_RECORD_BYTES = 128
"""Of a record that is ranked: its own 24, and a dozen numbers of eight by which it is sorted and chosen."""
_GPU_RECORD_BYTES = 256
"""The same on a GPU, whose sorts are not in place."""
_GPU_BLOCKS = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


def worker_count(device: torch.device) -> int:
    """Return how many chunks are worked on at once: one on an accelerator, else up to one a core."""
    return min(torch.get_num_threads(), MAX_WORKERS) if device.type == "cpu" else 1


def block_workers(records: int, device: torch.device) -> int:
    """Return how many blocks of latents of so many records are worked on at once: one where there are few cores.

    Together they take half of the machine's memory at most; on a GPU, half of what is free there.
    """
    if device.type == "cuda":  # one is computed while others are read, and while what follows from them is worked out
        free, _ = torch.cuda.mem_get_info(device)
        return max(1, min(_GPU_BLOCKS, distributed.cores() // 2, free // 2 // max(records * _GPU_RECORD_BYTES, 1)))
    cores = distributed.cores()
    if cores <= _FEW_CORES:
        return 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(cores // 2, MAX_WORKERS, memory // 2 // max(records * _RECORD_BYTES, 1)))


def in_order(
    autoencoder: Autoencoder,
    workers: int,
    work: Callable[[int, Autoencoder, Item], Result],
    items: Iterable[Item],
) -> Iterator[Result]:
    """Yield work(worker, model, item) for every item, in order; a worker does one item at a time.

    Every worker has a model of its own, because models reuse buffers. An error of a worker is raised in its place.
    """
    free: SimpleQueue[tuple[int, Autoencoder]] = SimpleQueue()
    for number in range(workers):
        free.put((number, autoencoder if number == 0 else copy.deepcopy(autoencoder)))

    def one(item: Item) -> Result:
        number, model = free.get()
        try:
            return work(number, model, item)
        finally:
            free.put((number, model))

    return ordered(one, items, workers)
