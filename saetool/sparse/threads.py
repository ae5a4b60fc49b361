"""Rows shared out over threads: many of torch's operators (nonzero, sort, index) run on one core only.

Torch lets go of Python's lock inside its operators, so that as many threads as cores keep all of them at work.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

Result = TypeVar("Result")

MAX_THREADS = 8
"""More would wait for Python's lock; beyond this, a thread gets several cores."""


def share_out(work: Callable[[int, range], Result], rows: int, at_least: int, device: torch.device) -> list[Result]:
    """Return work(number, part) for contiguous parts of `rows`, in order; a part has about `at_least` rows or more.

    The caller's thread takes the first part. On an accelerator, or where the caller has one core, that is all.
    """
    cores = torch.get_num_threads() if device.type == "cpu" else 1
    workers = max(1, min(cores, MAX_THREADS, rows // at_least))
    if workers == 1:
        return [work(0, range(rows))]
    bounds = [rows * i // workers for i in range(workers + 1)]
    parts = [range(bounds[i], bounds[i + 1]) for i in range(workers)]
    each, quiet = cores // workers, torch.no_grad()(work)  # gradients are switched off a thread at a time
    others = [_pool(workers - 1, each, cores).submit(quiet, i, parts[i]) for i in range(1, workers)]
    torch.set_num_threads(each)
    try:
        first = quiet(0, parts[0])
    finally:
        torch.set_num_threads(cores)
        rest = [other.result() for other in others]
    return [first, *rest]


@cache
def _pool(workers: int, each: int, cores: int) -> ThreadPoolExecutor:
    """Return a pool whose threads give torch's operators `each` cores; the caller keeps `cores`."""
    ready = threading.Barrier(workers)

    def initialize() -> None:
        torch.set_num_threads(each)
        ready.wait()

    pool = ThreadPoolExecutor(workers, "saetool-rows", initializer=initialize)
    list(pool.map(lambda _: None, range(workers)))
    torch.set_num_threads(cores)  # what libraries keep for the whole process is as before
    return pool
