"""Run an iterator ahead of its consumer in a thread."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

_POLL = 0.1
"""Seconds between looks at whether the consumer has left."""


def prefetch(items: Iterable[T], depth: int) -> Iterator[T]:
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
