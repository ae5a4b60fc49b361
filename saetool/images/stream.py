"""What comes in order only: rows of a stream, and the items of a data set that can be iterated over."""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from saetool.artifacts import digest_json
from saetool.errors import RequestError, WorkError, first_line
from saetool.images.items import Item, ItemReader, LabelKinds, read_item
from saetool.images.picture import MAX_PIXELS
from saetool.images.sampling import ALL, Sample
from saetool.images.source import SourceError

STREAM_BUFFER = 1024
"""Rows of a stream kept after they were read: threads ask a little out of order, labels are asked for later."""


class RowStream:
    """Rows that arrive in order; a row behind the buffer starts the stream again there.

    `start(i)` iterates over the rows from row i on.
    """

    def __init__(self, start: Callable[[int], Iterator[Any]], name: str, kept: int | None = None):
        self._start, self._name, self._most_kept = start, name, kept or STREAM_BUFFER
        self._lock = threading.Lock()
        self._iterator: Iterator[Any] = iter(())
        self._next = -1
        self._end: str | None = None
        self._kept: OrderedDict[int, Any] = OrderedDict()

    def row(self, i: int) -> Any:
        """Return a row; SourceError where the stream has ended or broken off before it."""
        with self._lock:
            if i not in self._kept:
                self._read_up_to(i)
            return self._kept[i]

    def labels(self, i: int, columns: list[str]) -> dict:
        """Return some columns of a row that is a mapping."""
        row = self.row(i) if columns else {}
        return {column: row[column] for column in columns}

    def _read_up_to(self, i: int) -> None:
        # Skipping ahead would read all rows from the first again: reading on is cheaper, however far.
        if self._end is None and not 0 <= self._next <= i:
            self._iterator, self._next = self._start(i), i
        while self._next <= i or self._end:
            self._kept[self._next] = self._read()
            self._next += 1
            if len(self._kept) > self._most_kept:
                self._kept.popitem(last=False)

    def _read(self) -> Any:
        """Return the next row. What ends the stream ends it for every thread: none begins it again."""
        if self._end is None:
            try:
                row = next(self._iterator, None)
            except Exception as error:  # each place that data come from has its own errors
                reason = f"{type(error).__name__}: {first_line(error)}"
                self._end = f"broke off at row {self._next:,} ({reason}). Run the same command again: it resumes"
            else:
                if row is not None:
                    return row
                self._end = f"ended at row {self._next:,}: it is shorter than it was said to be (images.first)"
        raise SourceError(f"the stream of {self._name} {self._end}")


class IterableSource(ItemReader):
    """The items of something that is iterated over, the first ones, in the order that they come in.

    What items may be stands at `ItemsSource`. Raises RequestError where nobody says how many there are.
    """

    sequential = True
    KEPT = 64
    """Decoded items kept: threads ask for them a little out of order."""

    def __init__(self, items: Any, name: str, sample: Sample = ALL, max_pixels: int | None = MAX_PIXELS):
        self.name = name
        self._n = _length(items, name, sample)
        if iter(items) is items:
            raise RequestError(f"images: {name} can be iterated over once only; give what makes the iterator")

        def start(i: int) -> Iterator[Item | WorkError]:
            for place, given in enumerate(itertools.islice(iter(items), i, None), i):
                try:
                    yield read_item(given, f"{name}, item {place}", max_pixels)
                except WorkError as error:  # one picture's, not the stream's
                    yield error

        self._stream = RowStream(start, name, self.KEPT)
        first = self._item(0)
        names = getattr(items, "classes", None)
        self._columns = LabelKinds([first], names if isinstance(names, list) else None)
        self.label_columns = self._columns.columns
        self._listing = digest_json([self._n, first.picture.digest])

    def __len__(self) -> int:
        return self._n

    def path(self, i: int) -> str:
        return f"{i:09d}"

    def _item(self, i: int) -> Item:
        found = self._stream.row(i)
        if isinstance(found, WorkError):
            raise found
        return found


def _length(items: Any, name: str, sample: Sample) -> int:
    """Return how many items are read; RequestError where a sample is asked for, or no number is known."""
    if sample.limit is not None:
        raise RequestError(
            f"images.limit: takes a sample of all images, and {name} is read from its start only: set images.first"
        )
    try:
        known = len(items)
    except TypeError:
        known = None
    if known is None and sample.first is None:
        raise RequestError(f"images.first: {name} does not say how many pictures it has; give a number")
    return min(number for number in (known, sample.first) if number is not None)
