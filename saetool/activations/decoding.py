"""Decode images ahead of the model, in processes or in threads, and hand them over in slices of one fixed shape.

Where there are many cores, torch's DataLoader runs the processes: a thread that decodes waits for the interpreter
half of the time. A process writes its pixels into memory that all of them share, so that only what is known of an
image goes through a pipe. Which of the two ways it was makes no difference to the pixels.
"""

import gc
import mmap
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from saetool import distributed
from saetool.activations.writer import Plan
from saetool.errors import RequestError, SaetoolError, WorkError, first_line
from saetool.images import ImageSource
from saetool.images.picture import take_turns, thumbnail_of
from saetool.images.source import Label, SourceError, stored_label
from saetool.threads import prefetch
from saetool.vision import Transform

Found = TypeVar("Found")

SLICES_AHEAD = 2
_MOST_THREADS = 32
"""More threads than this wait for the interpreter, not for images."""
_FEW_CORES = 4
"""Up to so many cores, threads: the model computes on the same cores, and pauses of the interpreter cost little."""
_MOST_PROCESSES = 64
_MANY_IMAGES = 1024
"""From so many on, loading compiled code for them pays."""
_PIECE = 16
"""Images that a process decodes at a time: few enough to spread a slice, many enough for a message."""
_PIECES_AHEAD = 2
"""Pieces that each process has before it: DataLoader's own default."""
_PATIENCE = 1.0
"""Seconds that processes have to finish a piece when nobody asks for more."""
_FORKING = threading.Lock()


@dataclass
class DecodedSlice:
    """A slice ready for the model."""

    number: int
    pixels: UInt8[Tensor, "batch height width channels"]
    """Always `batch_size` images; places without an image (skipped, or beyond the last) are zero."""
    kept: list[int]
    """Places in the batch that hold an image."""
    images: list[dict[str, Any]]
    """A row of images.parquet for each of them, without id."""
    skipped: list[dict[str, Any]]
    """{"index", "path"} of images that could not be read."""
    reasons: list[str]
    """Why, in words that may name places on this machine."""
    thumbnails: list[bytes]
    """Of each image kept, a WebP file, where the plan asks for them."""


@dataclass(frozen=True)
class Answer:
    """What is known of an image that was decoded, or why it was not, and the processor time it took."""

    found: dict[str, Any] | str
    """A row of images.parquet, without id; or why the image cannot be read."""
    seconds: float
    thumbnail: bytes | None = None


@dataclass(frozen=True)
class _Piece:
    """Consecutive images of one slice, and which room of the shared memory their pixels go to."""

    slice_: int
    images: range
    room: int


def decoding_processes(source: ImageSource) -> int:
    """Return how many processes should decode a source's images here; 0: threads do it.

    A source is read in forked processes only where it says that it may be (`forkable`).
    """
    cores = distributed.cores()
    forks = "fork" in multiprocessing.get_all_start_methods() and getattr(source, "forkable", False)
    # One core is left for who hands pictures to the model and results to the disk.
    return min(_MOST_PROCESSES, cores - 1) if forks and cores > _FEW_CORES else 0


class Decoder:
    """Reads and transforms the images of a plan's slices; `seconds` adds up the processor time of decoding.

    processes: how many decode; 0: so many `threads` do (as many as there are cores). pinned: pixels lie in memory from
    which a GPU copies by itself.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Transform,
        plan: Plan,
        on_error: Literal["fail", "skip"],
        *,
        processes: int = 0,
        threads: int | None = None,
        pinned: bool = False,
    ):
        self.source = source
        self.transform = transform.loaded() if plan.n_images >= _MANY_IMAGES else transform
        self.plan = plan
        self.on_error = on_error
        self.processes = processes
        self.threads = threads or min(_MOST_THREADS, distributed.cores())
        self.pinned = pinned
        self.seconds = 0.0

    def slices(self, numbers: Iterable[int]) -> Generator[DecodedSlice, None, None]:
        """Yield the slices `numbers`, in order; WorkError names an image that cannot be read (unless skipping)."""
        if not self.processes:
            return self._by_threads(numbers, self._decode, self._slice)
        return self._behind(numbers)

    @property
    def workers(self) -> str:
        """Who decodes, in words."""
        return f"{self.processes} decoding processes" if self.processes else f"{self.threads} decoding threads"

    @property
    def slices_ahead(self) -> int:
        """How many slices, about, are decoded before they are asked for."""
        if not self.processes:
            return SLICES_AHEAD
        # In pieces; and one is finished, another put together.
        return self.processes * _PIECES_AHEAD * _PIECE // self.plan.settings.batch_size + 2

    def _by_threads(
        self,
        numbers: Iterable[int],
        work: Callable[[int, int, np.ndarray], Found],
        finish: Callable[[int, Tensor, list[Found]], DecodedSlice],
    ) -> Generator[DecodedSlice, None, None]:
        """Yield finish(slice, pixels, found) of each slice, where found are work(image, slice, its pixels)."""
        waiting: deque[tuple[int, Tensor, list[Future[Found]]]] = deque()

        def oldest() -> DecodedSlice:
            number, pixels, futures = waiting.popleft()
            return finish(number, pixels, [future.result() for future in futures])

        with ThreadPoolExecutor(self.threads, thread_name_prefix="saetool-decode") as executor:
            try:
                for number in numbers:
                    pixels = self._empty()
                    out = pixels.numpy()
                    images = enumerate(self.plan.images_of(number))
                    futures = [executor.submit(work, i, number, out[place]) for place, i in images]
                    waiting.append((number, pixels, futures))
                    if len(waiting) > SLICES_AHEAD:
                        yield oldest()
                while waiting:
                    yield oldest()
            finally:
                executor.shutdown(wait=True, cancel_futures=True)

    def _behind(self, numbers: Iterable[int]) -> Generator[DecodedSlice, None, None]:
        """Yield the slices that processes decode, put together in a thread.

        Who asks waits for the model, too. And from a thread DataLoader takes no signal of dying processes, which would
        interrupt whatever the main thread is doing.
        """
        workers: list[BaseProcess] = []
        slices = prefetch(self._by_processes(numbers, workers), 1)
        try:
            # `yield from` would close them first, and so wait for a process that hangs.
            for decoded in slices:  # noqa: UP028
                yield decoded
        finally:
            patience = threading.Timer(_PATIENCE, lambda: [worker.kill() for worker in workers])
            patience.start()
            slices.close()
            patience.cancel()
            # DataLoader ends them, but not while an error's traceback holds its iterator.
            for worker in workers:
                worker.kill()
                worker.join(_PATIENCE)

    def _by_processes(self, numbers: Iterable[int], workers: list[BaseProcess]) -> Generator[DecodedSlice, None, None]:
        """Yield the slices; `workers` gets the processes."""
        rooms = self.processes * _PIECES_AHEAD + 1
        shape = (rooms, _PIECE, *self.transform.pixel_shape)
        shared = np.frombuffer(mmap.mmap(-1, int(np.prod(shape))), np.uint8).reshape(shape)
        context = multiprocessing.get_context("fork")
        loader = DataLoader(
            _Pieces(self, shared),  # pyright: ignore[reportArgumentType]
            batch_size=None,
            sampler=self._pieces(numbers, rooms),
            num_workers=self.processes,
            prefetch_factor=_PIECES_AHEAD,
            collate_fn=_as_it_is,
            multiprocessing_context=context,
            worker_init_fn=partial(_begin, context.Lock(), os.getpid()),
            generator=torch.Generator(),  # it draws a seed, which nobody needs, and not from the caller's numbers
        )
        with _nothing_freed_in_forks():
            asked: Any = iter(loader)
        workers += asked._workers
        answered = _words_of_death(asked)
        del asked  # DataLoader ends its processes when nobody else holds it
        pixels, found = self._empty(), []
        for piece, answers in answered:
            place, count = len(found), len(piece.images)
            np.copyto(pixels.numpy()[place : place + count], shared[piece.room, :count])
            found += answers
            if len(found) == len(self.plan.images_of(piece.slice_)):
                yield self._slice(piece.slice_, pixels, found)
                pixels, found = self._empty(), []

    def _pieces(self, numbers: Iterable[int], rooms: int) -> Iterator[_Piece]:
        """Yield the pieces of slices, in order. A room is used again once the piece before in it was taken: DataLoader
        has at most one piece fewer under way than there are rooms."""
        room = 0
        for number in numbers:
            images = self.plan.images_of(number)
            for start in range(images.start, images.stop, _PIECE):
                yield _Piece(number, range(start, min(start + _PIECE, images.stop)), room)
                room = (room + 1) % rooms

    def _empty(self) -> Tensor:
        shape = (self.plan.settings.batch_size, *self.transform.pixel_shape)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=self.pinned)

    def _decode(self, i: int, slice_: int, out: np.ndarray) -> Answer:
        """Write an image's pixels into `out` and return what is known of it."""
        start = time.thread_time()
        try:
            picture = self.source.read(i)
        except WorkError as error:
            if self.on_error == "fail" or isinstance(error, SourceError):
                raise
            return Answer(str(error), time.thread_time() - start)
        labels = self._labels(i)
        self.transform.fill_pixels(picture.image, out)
        thumbnail = thumbnail_of(picture.image) if self.plan.settings.thumbnails else None
        row = {"path": self.source.path(i), "width": picture.width, "height": picture.height, "digest": picture.digest}
        return Answer({**row, "slice": slice_, **labels}, time.thread_time() - start, thumbnail)

    def _labels(self, i: int) -> dict[str, Label]:
        """Return an image's labels as they are stored; RequestError where a source of one's own gives another kind."""
        given = self.source.labels(i)
        try:
            columns = self.source.label_columns
            return {c.name: stored_label(given.get(c.name), c.name, c.kind, c.classes) for c in columns}
        except ValueError as error:
            raise RequestError(f"{self.source.path(i)}: {error}") from None

    def _slice(self, number: int, pixels: Tensor, answers: Sequence[Answer]) -> DecodedSlice:
        result = DecodedSlice(number, pixels, [], [], [], [], [])
        empty = list(range(len(answers), len(pixels)))
        for place, (i, answer) in enumerate(zip(self.plan.images_of(number), answers, strict=True)):
            self.seconds += answer.seconds
            if isinstance(answer.found, str):
                empty.append(place)
                result.skipped.append({"index": i, "path": self.source.path(i)})
                result.reasons.append(answer.found)
            else:
                result.kept.append(place)
                result.images.append(answer.found)
                if answer.thumbnail is not None:
                    result.thumbnails.append(answer.thumbnail)
        pixels.numpy()[empty] = 0
        return result


class _Pieces:
    """What the processes ask for a piece of; `shared` [rooms, piece, height, width, channels] takes the pixels."""

    def __init__(self, decoder: Decoder, shared: np.ndarray):
        self._decoder, self._shared = decoder, shared

    def __getitem__(self, piece: _Piece) -> tuple[_Piece, list[Answer] | SaetoolError]:
        room = self._shared[piece.room]
        try:
            return piece, [self._decoder._decode(i, piece.slice_, room[n]) for n, i in enumerate(piece.images)]
        except SaetoolError as error:  # DataLoader would put a traceback around its message
            return piece, error
        except StopIteration as error:  # DataLoader would take it for the end
            raise RuntimeError("the source of images stopped in the middle of a picture") from error


@contextmanager
def _nothing_freed_in_forks() -> Iterator[None]:
    """Keep what is there from being collected in processes that are forked in the block: freeing what lay on a GPU ends
    a process that is no longer the GPU's."""
    with _FORKING:
        before = gc.get_freeze_count()
        gc.collect()  # what is garbage already would be kept for long
        gc.freeze()
        try:
            yield
        finally:
            if not before:
                gc.unfreeze()


def _as_it_is(answer: Any) -> Any:
    return answer


def _begin(lock: Any, parent: int, worker: int) -> None:
    """Prepare a decoding process, in which DataLoader has set torch to one thread.

    DataLoader's processes end with their parent, but for those whose parent was gone when they began to look.
    """
    if os.getppid() != parent:
        os._exit(1)
    take_turns(lock)


def _words_of_death(answers: Iterator[tuple[_Piece, Any]]) -> Iterator[tuple[_Piece, list[Answer]]]:
    """Yield DataLoader's answers; raise a process's own error, and WorkError where one of them has died.

    DataLoader ends its processes when nobody holds its iterator: an error's traceback would, for as long as it lives.
    """
    try:
        while True:
            died = None
            try:
                piece, found = next(answers)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker (pid" not in str(error):
                    raise
                died = first_line(error)
            if died is not None:
                raise WorkError(
                    f"a decoding process has ended ({died}): often there was too little memory for it. "
                    "The same command resumes."
                )
            if isinstance(found, SaetoolError):
                raise found
            yield piece, found
    finally:
        del answers
