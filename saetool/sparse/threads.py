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


def share_out(work: Callable[[int, range], Result], rows: int, part: int, device: torch.device) -> list[Result]:
    """Return work(thread, rows) for every `part` rows, in order; a thread that is done takes the next part.

    The caller's thread is number 0. On an accelerator, or where the caller has one core, it does them all.
    """
    parts = [range(start, min(start + part, rows)) for start in range(0, rows, part)] or [range(0)]
    cores = torch.get_num_threads() if device.type == "cpu" else 1
    workers = min(cores, MAX_THREADS, len(parts))
    if workers == 1:
        return [work(0, rows) for rows in parts]
    each, quiet = cores // workers, torch.no_grad()(work)  # gradients are switched off a thread at a time
    results: dict[int, Result] = {}
    places = iter(range(len(parts)))

    def serve(thread: int) -> None:
        for place in places:  # each place goes to one thread
            results[place] = quiet(thread, parts[place])

    others = [_pool(workers - 1, each, cores).submit(serve, thread) for thread in range(1, workers)]
    torch.set_num_threads(each)
    try:
        serve(0)
    finally:
        torch.set_num_threads(cores)
        for other in others:
            other.result()
    return [results[place] for place in range(len(parts))]


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
