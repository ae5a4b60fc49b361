"""Rows shared out over threads: many of torch's operators (nonzero, sort, index) run on one core only.

Torch lets go of Python's lock inside its operators, so that as many threads as cores keep all of them at work.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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
    before = torch.get_num_threads()
    cores = (getattr(_here, "cores", None) or before) if device.type == "cpu" else 1
    workers = min(cores, MAX_THREADS, len(parts))
    if workers == 1:
        return [work(0, rows) for rows in parts]
    each, quiet = cores // workers, torch.no_grad()(work)  # gradients are switched off a thread at a time
    results: dict[int, Result] = {}
    places = iter(range(len(parts)))

    def serve(thread: int) -> None:
        for place in places:  # each place goes to one thread
            results[place] = quiet(thread, parts[place])

    others = [_pool(workers - 1, each).submit(serve, thread) for thread in range(1, workers)]
    torch.set_num_threads(each)
    try:
        serve(0)
    finally:
        torch.set_num_threads(before)
        for other in others:
            other.result()
    return [results[place] for place in range(len(parts))]


_here = threading.local()


@contextmanager
def operators_on_one_core() -> Iterator[None]:
    """Within it, torch's operators in this thread take one core, and `share_out` still all of them.

    For steps that do nearly everything in shares: after an operator on several cores, OpenMP's threads wait for the
    next one at work, for milliseconds, and take these cores from the shares (3 to 5 % of a step, measured).
    """
    before, outer = torch.get_num_threads(), getattr(_here, "cores", None)
    _here.cores = outer or before
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _here.cores = outer


@cache
def _pool(workers: int, each: int) -> ThreadPoolExecutor:
    """Return a pool whose threads give torch's operators `each` cores."""
    ready, before = threading.Barrier(workers), torch.get_num_threads()

    def initialize() -> None:
        torch.set_num_threads(each)
        ready.wait()

    pool = ThreadPoolExecutor(workers, "saetool-rows", initializer=initialize)
    list(pool.map(lambda _: None, range(workers)))
    torch.set_num_threads(before)  # what libraries keep for the whole process is as before
    return pool
