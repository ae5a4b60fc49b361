"""Decode images in threads, ahead of the model, and hand them over in slices of one fixed shape."""

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from saetool.activations.writer import Plan
from saetool.errors import RequestError, WorkError
from saetool.images import ImageSource
from saetool.images.source import Label, SourceError, stored_label
from saetool.vision import Transform

_SLICES_AHEAD = 2
_MOST_THREADS = 32
"""More threads than this wait for the interpreter, not for images."""


@dataclass
class DecodedSlice:
    """A slice ready for the model."""

    number: int
    batch: Float[Tensor, "batch channels height width"]
    """Always `batch_size` images; places without an image (skipped, or beyond the last) are zero."""
    kept: list[int]
    """Places in the batch that hold an image."""
    images: list[dict[str, Any]]
    """A row of images.parquet for each of them, without id."""
    skipped: list[dict[str, Any]]
    """{"index", "path"} of images that could not be read."""
    reasons: list[str]
    """Why, in words that may name places on this machine."""


@dataclass
class _Decoded:
    row: dict[str, Any]
    tensor: Tensor


class Decoder:
    """Reads and transforms the images of a plan's slices; `seconds` adds up the threads' processor time."""

    def __init__(
        self,
        source: ImageSource,
        transform: Transform,
        plan: Plan,
        on_error: Literal["fail", "skip"],
        threads: int | None = None,
    ):
        self.source = source
        self.transform = transform
        self.plan = plan
        self.on_error = on_error
        self.threads = threads or min(_MOST_THREADS, os.cpu_count() or 1)
        self.seconds = 0.0

    def slices(self, numbers: Iterable[int]) -> Iterator[DecodedSlice]:
        """Yield the slices `numbers`, in order; WorkError names an image that cannot be read (unless skipping)."""
        waiting: deque[tuple[int, list[Future[_Decoded | str]]]] = deque()
        with ThreadPoolExecutor(self.threads, thread_name_prefix="saetool-decode") as executor:
            try:
                for number in numbers:
                    futures = [executor.submit(self._decode, i, number) for i in self.plan.images_of(number)]
                    waiting.append((number, futures))
                    if len(waiting) > _SLICES_AHEAD:
                        yield self._collect(*waiting.popleft())
                while waiting:
                    yield self._collect(*waiting.popleft())
            finally:
                executor.shutdown(wait=True, cancel_futures=True)

    def _decode(self, i: int, slice_: int) -> _Decoded | str:
        start = time.thread_time()
        try:
            picture = self.source.read(i)
        except WorkError as error:
            if self.on_error == "fail" or isinstance(error, SourceError):
                raise
            return str(error)
        labels = self._labels(i)
        row = {"path": self.source.path(i), "width": picture.width, "height": picture.height, "digest": picture.digest}
        decoded = _Decoded({**row, "slice": slice_, **labels}, self.transform(picture.image))
        self.seconds += time.thread_time() - start
        return decoded

    def _labels(self, i: int) -> dict[str, Label]:
        """Return an image's labels as they are stored; RequestError where a source of one's own gives another kind."""
        given = self.source.labels(i)
        try:
            columns = self.source.label_columns
            return {c.name: stored_label(given.get(c.name), c.name, c.kind, c.classes) for c in columns}
        except ValueError as error:
            raise RequestError(f"{self.source.path(i)}: {error}") from None

    def _collect(self, number: int, futures: list[Future[_Decoded | str]]) -> DecodedSlice:
        batch = torch.zeros(self.plan.settings.batch_size, self.transform.channels, *self.transform.geometry.crop)
        result = DecodedSlice(number, batch, [], [], [], [])
        for place, (i, future) in enumerate(zip(self.plan.images_of(number), futures, strict=True)):
            decoded = future.result()
            if isinstance(decoded, str):
                result.skipped.append({"index": i, "path": self.source.path(i)})
                result.reasons.append(decoded)
            else:
                batch[place] = decoded.tensor
                result.kept.append(place)
                result.images.append(decoded.row)
        return result
