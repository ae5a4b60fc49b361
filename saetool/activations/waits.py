"""What a caching job waits for: pictures, the model, or the disk."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from saetool.progress import say

T = TypeVar("T")

_LIMIT = 0.5
"""Share of the time from which decoding is called the limit."""
_WORTH_SAYING = 10.0
"""Seconds of work before anything is said about it: the first pictures are always waited for."""


class Waits:
    """Where the time goes of the thread that hands decoded pictures to the model."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.for_decoding = 0.0
        self.for_disk = 0.0
        self._disk: tuple[float, float | None] = (0.0, None)  # seconds of it until now, and since when it is waited for

    def decoded(self, slices: Iterable[T]) -> Iterator[T]:
        """Yield `slices`, and note how long each was waited for."""
        iterator = iter(slices)
        while True:
            began = time.monotonic()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                self.for_decoding += time.monotonic() - began
            yield item

    @contextmanager
    def behind(self) -> Iterator[None]:
        """Note time that is spent waiting for what comes after the model: the disk, or on a GPU the model itself.

        The disk's part is as long as `disk` was entered meanwhile, whichever of the two began first.
        """
        before = self._disk_so_far()
        yield
        self.for_disk += self._disk_so_far() - before

    @contextmanager
    def disk(self) -> Iterator[None]:
        """Say, from one thread at a time, that only the disk is waited for while the block runs."""
        total, _ = self._disk
        began = time.monotonic()
        self._disk = (total, began)
        yield
        self._disk = (total + time.monotonic() - began, None)

    def _disk_so_far(self) -> float:
        total, since = self._disk
        return total if since is None else total + time.monotonic() - since

    def shares(self) -> dict[str, float]:
        """Return the shares of the time so far: decode, forward, disk. What is not waiting counts as the model's."""
        total = max(time.monotonic() - self.started, 1e-9)
        decode, disk = self.for_decoding / total, self.for_disk / total
        return {"decode": decode, "forward": max(0.0, 1 - decode - disk), "disk": disk}

    def words(self) -> str:
        """Return the shares for a line of progress."""
        return "time: " + ", ".join(f"{name} {share:.0%}" for name, share in self.shares().items())

    def advise(self, workers: str) -> None:
        """Say in a line what would help, where decoding was the limit; `workers` says who decoded."""
        share = self.shares()["decode"]
        if share > _LIMIT and time.monotonic() - self.started > _WORTH_SAYING:
            say(
                f"decoding is the limit: for {share:.0%} of the time the model waited for pictures ({workers}). "
                "More cores help, or smaller files: pictures a little larger than the model's input hold all it sees."
            )
