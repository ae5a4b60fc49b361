"""Rows in parallel over threads: many of torch's operators (nonzero, sort, index) run on one core only.

Torch lets go of Python's lock inside its operators, so that as many threads as cores keep all of them at work.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

MAX_THREADS = 8
"""More would wait for Python's lock; beyond this, a thread gets several cores."""

ROWS = 1024
"""Rows that are summed at a time."""


def parallel_rows(work: Callable[[int, range], Result], rows: int, most: int) -> list[Result]:
    """Return work(thread, some of the rows) for all of them, in order; a thread that is done takes the next part.

    Parts have at most `most` rows and are as equal as can be, equally many for each thread. The caller's thread is
    number 0; where the caller has one core, it does them all.
    """
    before = torch.get_num_threads()
    cores = getattr(_here, "cores", None) or before
    least = max(1, -(-rows // most))
    workers = min(cores, MAX_THREADS, least)
    number = -(-least // workers) * workers
    starts = [-(-rows * i // number) for i in range(number + 1)]
    parts = [range(start, stop) for start, stop in pairwise(starts)]
    if workers == 1:
        return [work(0, part) for part in parts]
    # Gradients are switched off a thread at a time, and tensors made in inference mode are written in it only.
    each, quiet = cores // workers, torch.inference_mode(torch.is_inference_mode_enabled())(torch.no_grad()(work))
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


def parallel_sum(work: Callable[[slice], Tensor], rows: int) -> Tensor:
    """Return the sum of work(some of the rows) over all of them, in parts that do not depend on the number of threads:
    a sum's last bits depend on its parts."""
    parts = [slice(start, start + ROWS) for start in range(0, max(rows, 1), ROWS)]
    found = parallel_rows(lambda number, some: [work(parts[i]) for i in some], len(parts), 1)
    return torch.stack([one for some in found for one in some]).sum(0)


_here = threading.local()


def scratch(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Return this thread's room for a product, [rows, columns]; it lasts until the thread asks again.

    New memory for every product would cost as much as reading it.
    """
    size, held = rows * columns * dtype.itemsize, getattr(_here, "scratch", None)
    if held is None or len(held) < size:
        with torch.inference_mode(False):  # within and without it is written
            held = _here.scratch = torch.empty(size, dtype=torch.uint8)
    return held[:size].view(dtype).view(rows, columns)


@contextmanager
def operators_on_one_core() -> Iterator[None]:
    """Within it, torch's operators in this thread take one core, and `parallel_rows` all of them.

    For steps that run nearly everything on rows in parallel: after an operator on several cores OpenMP's threads spin
    for milliseconds, and take these cores from the others (3 to 5 % of a step, measured).
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
