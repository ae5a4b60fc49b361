"""Work in threads behind who asks for it: an iterator run ahead of its consumer, and items worked on side by side."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_POLL = 0.1
"""Seconds between looks at whether the consumer has left."""


def prefetch(items: Iterable[Item], depth: int) -> Generator[Item, None, None]:
    """Yield `items`, up to `depth` of them made ahead in a thread; an error there is raised here, in its place.

    The thread ends when the items do or when the consumer closes or drops the generator. With `depth` 0 there is none.
    """
    if depth == 0:
        yield from items
        return
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
    left = threading.Event()

    def put(message: tuple[str, Any]) -> bool:
        while not left.is_set():
            try:
                ready.put(message, timeout=_POLL)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                if not put(("item", item)):
                    break
            else:
                put(("end", None))
        except BaseException as error:
            put(("error", error))
        finally:
            if hasattr(iterator, "close"):
                iterator.close()  # pyright: ignore[reportAttributeAccessIssue]

    thread = threading.Thread(target=work, name="saetool-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        left.set()
        while not ready.empty():
            ready.get_nowait()
        thread.join()


def ordered(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Generator[Result, None, None]:
    """Yield work(item) for every item, in order, `workers` of them at a time, which share torch's threads."""
    threads = torch.get_num_threads()
    # Threads of OpenMP are counted for each calling thread: inside a worker, a product uses the worker's share.
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(max(1, threads // workers),))
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
