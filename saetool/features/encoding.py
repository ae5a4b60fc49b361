"""The encoding pass: every token of the store through the encoder once, in chunks fixed by image row.

The store is cut into chunks of whole images and runs of chunks into parts. A part is what is resumed and what a
process takes; its sums are integers and its maxima stand by image, so the parts add up to the same whole however they
were made.
"""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial as with_given
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from saetool import distributed, progress
from saetool.activations import SiteStore
from saetool.activations.store import runs_of
from saetool.activations.stream import spread
from saetool.artifacts import Partial
from saetool.autoencoders.base import Autoencoder
from saetool.features.firing_statistics import FiringStatistics, firing, records_of, strongest, unit_for
from saetool.features.spill import PartWriter, Spill, is_whole
from saetool.features.workers import in_order, worker_count
from saetool.lanes import Lanes
from saetool.sparse.codes import Codes

UNIT_IMAGES = 16
"""Images whose largest activation sets the unit of exact sums: one alone may be dark, or blank."""

Work = Callable[[int, Codes, Sequence[int]], list[Tensor]]
"""From a worker's number, a chunk's codes and its image rows to tensors, on whatever device the codes are."""

Encoder = Callable[[Tensor], Codes]
"""From rows of activations, [rows, d], to their codes."""

Some = Callable[[Sequence[int]], Tensor]
"""From a chunk's image rows to the latents that matter on them, ascending."""

CHUNK_ROWS = 2048
"""Rows encoded at a time, as whole images: a dense family's [rows, n_latents] stays in the hundreds of megabytes."""
GPU_CELLS = 1 << 30
"""Cells of [rows, n_latents] encoded at a time on a GPU, at most: 2 GiB in bfloat16, and some milliseconds of work."""
_BYTES_A_CELL = 64
"""Of a GPU's memory: a chunk's outputs take a thirtieth of it."""
PART_ROWS = 1 << 17
"""Rows of a part, at least: what a kill costs, a second or so."""
GPU_PART_ROWS = 1 << 21
MAX_PARTS = 64
"""Parts of a store, at most: each keeps its own sums on disk until the end."""
_READERS = 4
"""Threads that read for a GPU: each copies 2 to 5 GB/s from the page cache; six were slower (one H200, 16 cores)."""
_AHEAD = 8
"""Chunks on their way: one that is encoded, one that is counted, and those that are read or wait for it."""


@dataclass(frozen=True)
class Pass:
    """An autoencoder over one site of a store, in its fixed chunks and parts.

    How large they are follows from the kind of device and the sizes of model and store alone.
    """

    autoencoder: Autoencoder
    site: SiteStore
    device: torch.device

    @property
    def staged(self) -> bool:
        """Whether chunks are read, encoded and counted in threads of their own, which a GPU is fed by."""
        return self.device.type == "cuda"

    @property
    def chunk_images(self) -> int:
        rows = self._gpu_cells // self.autoencoder.n_latents if self.staged else CHUNK_ROWS
        return max(1, rows // self.site.tokens)

    @cached_property
    def _gpu_cells(self) -> int:
        if self.device.type != "cuda":
            return GPU_CELLS
        return min(GPU_CELLS, torch.cuda.get_device_properties(self.device).total_memory // _BYTES_A_CELL)

    def cut(self, images: Sequence[int]) -> list[Sequence[int]]:
        return [images[start : start + self.chunk_images] for start in range(0, len(images), self.chunk_images)]

    @property
    def parts(self) -> list[range]:
        """The image rows of each part, whole chunks."""
        chunks = -(-self.site.n_images // self.chunk_images)
        rows = self.site.n_images * self.site.tokens
        count = min(max(1, rows // (GPU_PART_ROWS if self.staged else PART_ROWS)), MAX_PARTS, chunks)
        bounds = [min(chunks * i // count * self.chunk_images, self.site.n_images) for i in range(count + 1)]
        return [range(a, b) for a, b in itertools.pairwise(bounds)]

    def read(self, images: Sequence[int]) -> Float[Tensor, "images tokens d"]:
        """Return images' tokens on the CPU: a view of the store where that is possible; for a GPU in pinned memory."""
        if not self.staged:
            return self.site.rows_of(images)
        size = (len(images), self.site.tokens, self.site.d)
        rows = torch.empty(size, dtype=self.site.dtype, pin_memory=self.device.type == "cuda")
        self.site.read_runs_into(rows, runs_of(images))
        return rows

    def encode(self, rows: Float[Tensor, "images tokens d"], encoder: Encoder | None = None) -> Codes:
        """Return the positive codes of tokens, image by image; by another encoder than the model's where given."""
        return firing(self.codes(rows, encoder)).to(self.counted_on)

    def codes(self, rows: Float[Tensor, "images tokens d"], encoder: Encoder | None = None) -> Codes:
        """Return the codes of tokens, of either sign, on the model's device."""
        with torch.inference_mode():
            return (encoder or self.autoencoder.encode_sparse)(rows.flatten(0, 1).to(self.device).float())

    def _encoder(self, model: Autoencoder, some: Tensor | None) -> Encoder:
        """Return what makes a model's codes, of all latents or of some."""
        if some is None:
            return model.encode_sparse
        latents = some.to(self.device)
        if self.device.type == "cuda":  # one way, staged or not; its kernels were not tried on a handful of latents
            return lambda rows: model.encode_sparse(rows).only(latents)
        return lambda rows: model.encode_some(rows, latents)

    @property
    def counted_on(self) -> torch.device:
        """Where codes are counted: MPS has no float64, and less of what integers need."""
        return torch.device("cpu") if self.device.type == "mps" else self.device

    def map(self, work: Work, chunks: Iterable[Sequence[int]], some: Some | None = None) -> Iterator[list[Tensor]]:
        """Yield what work(worker, codes, images) makes of every chunk, on the CPU, in order; several are under way.

        Where only `some` latents matter, the codes are numbered by them, and a CPU computes no others if it can.
        """
        if self.staged:
            return self._staged(work, chunks, some)

        def one(worker: int, autoencoder: Autoencoder, images: Sequence[int]) -> list[Tensor]:
            encoder = self._encoder(autoencoder, None if some is None else some(images))
            return [made.cpu() for made in work(worker, self.encode(self.read(images), encoder), images)]

        return in_order(self.autoencoder, self.workers, one, chunks)

    def _staged(self, work: Work, chunks: Iterable[Sequence[int]], some: Some | None) -> Iterator[list[Tensor]]:
        """Read and send, encode, count: a chunk in each of them, while the one before is on its way back."""
        lanes = self._lanes

        def read(images: Sequence[int]) -> Callable[[], Tensor]:
            return lanes.send(self.read(images))

        def encode(rows: Future[Callable[[], Tensor]]) -> tuple[Codes, Callable[[], None]]:
            codes = self.codes(rows.result()())
            return codes, lanes.hand_over([codes.offsets, codes.latents, codes.values])

        def count(
            encoded: Future[tuple[Codes, Callable[[], None]]], images: Sequence[int]
        ) -> Callable[[], list[Tensor]]:
            codes, taken = encoded.result()
            with lanes.beside():
                taken()
                with torch.inference_mode():  # here, where the next chunk's encoding does not wait for it
                    found = firing(codes)
                    if some is not None:
                        found = found.only(some(images).to(self.device))
                return lanes.down(work(0, found, images))

        stage = with_given(ThreadPoolExecutor, initializer=_use, initargs=(self.device,))
        waiting: deque[Future[Callable[[], list[Tensor]]]] = deque()
        with stage(_READERS) as reading, stage(1) as encoding, stage(1) as counting:
            try:
                for images in chunks:
                    encoded = encoding.submit(encode, reading.submit(read, images))
                    waiting.append(counting.submit(count, encoded, images))
                    if len(waiting) > _AHEAD:
                        yield waiting.popleft().result()()
                while waiting:
                    yield waiting.popleft().result()()
            finally:
                for future in waiting:
                    future.cancel()

    @cached_property
    def _lanes(self) -> Lanes:
        """One set of streams for the whole pass: each has memory of its own."""
        return Lanes(self.device)

    @property
    def workers(self) -> int:
        """How many chunks are counted at once, each in sums of its own."""
        return worker_count(self.device)

    def mine(self) -> Iterator[range]:
        yield from self.parts[distributed.rank() :: distributed.world_size()]


def _use(device: torch.device) -> None:
    """Let a new thread work on the process's own GPU, not on the first."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def part_name(images: range) -> str:
    """Return a part's name: by its images, since another kind of device cuts the store in another way."""
    return f"{images.start:08d}-{images.stop:08d}"


def encode_store(pass_: Pass, partial: Partial, k: int) -> tuple[Spill, FiringStatistics]:
    """Run what is left of the pass and return its spill and its sums; `k` latents are kept for each row.

    Every process makes its own parts; all of them return the same.
    """
    folders = [partial.scratch(f"part-{part_name(images)}") for images in pass_.parts]
    unit = _unit(pass_)
    todo = [images for images in pass_.mine() if not _is_done(partial, images)]
    tokens = sum(map(len, todo)) * pass_.site.tokens
    with (
        progress.bar("encode", tokens, "tokens") as advance,
        ThreadPoolExecutor(1, thread_name_prefix="saetool-part") as behind,
    ):
        finishing: Future | None = None
        for finish in _encode_parts(pass_, todo, partial, k, unit, advance):
            if finishing is not None:
                finishing.result()
            finishing = behind.submit(finish)
        if finishing is not None:
            finishing.result()
    distributed.barrier()
    return _gather(pass_, partial, folders, unit)


def _is_done(partial: Partial, images: range) -> bool:
    """Say whether a part was made by an earlier start and is still what it wrote."""
    record, folder = partial.unit_of(f"parts/{part_name(images)}"), partial.scratch(f"part-{part_name(images)}")
    if record is None or is_whole(folder, record["digests"]):
        return record is not None
    progress.say(f"{folder}: damaged; it is made again.")
    return False


def _encode_parts(
    pass_: Pass, parts: Sequence[range], partial: Partial, k: int, unit: float, advance: Callable[[int], None]
) -> Iterator[Callable[[], None]]:
    """Encode parts; yield for each what makes it durable and records it, in any thread.

    The first chunks of a part are under way while the last ones of the part before come back.
    """
    n_latents, tokens = pass_.autoencoder.n_latents, pass_.site.tokens
    cut = {part: pass_.cut(part) for part in parts}
    part_of = {chunk[0]: part for part, chunks in cut.items() for chunk in chunks}
    begun: dict[tuple[range, int], FiringStatistics] = {}

    def count(worker: int, codes: Codes, chunk: Sequence[int]) -> list[Tensor]:
        mine = part_of[chunk[0]], worker
        if mine not in begun:
            begun[mine] = FiringStatistics.empty(n_latents, tokens, unit, pass_.counted_on)
        return [begun[mine].add(codes, chunk[0]), *strongest(codes, k)]

    found = pass_.map(count, itertools.chain.from_iterable(cut.values()))
    for part, chunks in cut.items():
        started, writer = time.monotonic(), PartWriter(partial.scratch(f"part-{part_name(part)}"), n_latents)
        for chunk, (words, latents, values) in zip(chunks, itertools.islice(found, len(chunks)), strict=True):
            writer.add(records_of(words), latents, values)
            advance(len(chunk) * tokens)
        statistics, *others = (begun.pop((part, i)) for i in range(pass_.workers) if (part, i) in begun)
        for other in others:
            statistics.merge(other)
        yield with_given(_finish_part, partial, part, writer, statistics, started)


def _finish_part(
    partial: Partial, part: range, writer: PartWriter, statistics: FiringStatistics, started: float
) -> None:
    digests = writer.close(statistics)
    done = {"images": statistics.images, "largest": statistics.largest, "seconds": time.monotonic() - started}
    partial.record(f"parts/{part_name(part)}", {**done, "digests": digests})


def _unit(pass_: Pass) -> float:
    """Return the unit of the sums, from the codes of some images all over the store: the same for every part."""
    images = spread(pass_.site.n_images, min(UNIT_IMAGES, pass_.site.n_images)).tolist()
    return unit_for(pass_.encode(pass_.read(images)))


def _gather(pass_: Pass, partial: Partial, folders: list[Path], unit: float) -> tuple[Spill, FiringStatistics]:
    spill = Spill(folders, pass_.autoencoder.n_latents)
    total = FiringStatistics.empty(pass_.autoencoder.n_latents, pass_.site.tokens, unit)
    for number, images in enumerate(pass_.parts):
        sums, done = spill.sums(number), partial.record_of(f"parts/{part_name(images)}")
        total.merge(
            FiringStatistics(sums["histogram"], sums["profile"], unit, done["images"], torch.tensor(done["largest"]))
        )
    total.check()
    return spill, total
