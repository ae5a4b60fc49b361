"""Progress on long work: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from saetool.errors import printable

SECONDS_BETWEEN_LINES = 10.0
"""Without a terminal, a line at most this often: enough to see life, few enough for a log file."""


def _is_main() -> bool:
    """Say whether this process speaks for all; by `torchrun`'s variable, so that nothing heavy is imported."""
    return os.environ.get("RANK", "0") == "0"


def size_words(size: float) -> str:
    """Return a number of bytes for people: `1.2 GB`, in powers of 1,000."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def time_words(seconds: float) -> str:
    """Return a time for people: `42 s`, `12 min`, `3 h 20 min`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60:,} h {minutes % 60} min"


def say(message: str) -> None:
    """Print one line of news on standard error, from the main process only."""
    if _is_main():
        Console(stderr=True, highlight=False, soft_wrap=True).print(printable(message), markup=False)


@contextmanager
def bar(
    description: str, total: int, unit: str, done: int = 0, remark: Callable[[], str] | None = None
) -> Iterator[Callable[[int], None]]:
    """Yield `advance(n)`: report that n more of `total` units are done. `done` of them were done by an earlier run.

    `remark` is asked what else there is to say of the work.
    """
    description = printable(description)
    if not _is_main():
        yield lambda n: None
    elif sys.stderr.isatty():
        with _rich_bar(description, total, unit, done, remark) as advance:
            yield advance
    else:
        yield _plain_lines(description, total, unit, done, remark)


@contextmanager
def _rich_bar(
    description: str, total: int, unit: str, done: int, remark: Callable[[], str] | None
) -> Iterator[Callable[[int], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    start = time.monotonic()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total, completed=done, rate="")
        fresh = 0

        def advance(n: int) -> None:
            nonlocal fresh
            fresh += n
            rate = fresh / max(time.monotonic() - start, 1e-9)
            words = f"{rate:,.0f} {unit}/s" if rate >= 10 else f"{rate:.1f} {unit}/s"
            progress.update(task, advance=n, rate=words if remark is None else f"{words}, {remark()}")

        yield advance


def _plain_lines(
    description: str, total: int, unit: str, done: int, remark: Callable[[], str] | None
) -> Callable[[int], None]:
    start = last = time.monotonic()
    count, fresh = done, 0

    def advance(n: int) -> None:
        nonlocal count, fresh, last
        count += n
        fresh += n
        now = time.monotonic()
        if now - last < SECONDS_BETWEEN_LINES and not (count >= total and now - start > 1):
            return
        last = now
        rate = fresh / max(now - start, 1e-9)
        left = (total - count) / max(rate, 1e-9)
        more = "" if remark is None else f"; {remark()}"
        say(f"{description}: {count:,} of {total:,} {unit}, {rate:,.1f} {unit}/s, {time_words(left)} left{more}")

    return advance
