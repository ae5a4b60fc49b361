"""The encoding pass: every token of the store through the encoder once, in chunks fixed by image row.

The store is cut into chunks of whole images and runs of chunks into parts. A part is what is resumed and what a
process takes; its sums are integers and its maxima stand by image, so the parts add up to the same whole however they
were made.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from saetool import distributed, progress
from saetool.activations import SiteStore
from saetool.artifacts import Partial
from saetool.autoencoders.base import Autoencoder
from saetool.features.spill import PartWriter, Spill, is_whole
from saetool.features.tally import Tally, firing, strongest, unit_for
from saetool.features.workers import in_order, worker_count
from saetool.sparse.codes import Codes

Result = TypeVar("Result")

CHUNK_ROWS = 2048
"""Rows encoded at a time, as whole images: a dense family's [rows, n_latents] stays in the hundreds of megabytes."""
PART_ROWS = 1 << 17
"""Rows of a part, at least: what a kill costs, a second or so."""
MAX_PARTS = 64
"""Parts of a store, at most: each keeps its own sums on disk until the end."""


@dataclass(frozen=True)
class Pass:
    """An autoencoder over one site of a store, in its fixed chunks and parts."""

    autoencoder: Autoencoder
    site: SiteStore
    device: torch.device

    @property
    def chunks(self) -> list[range]:
        """The image rows of each chunk."""
        images = max(1, CHUNK_ROWS // self.site.tokens)
        stops = range(0, self.site.n_images, images)
        return [range(start, min(start + images, self.site.n_images)) for start in stops]

    @property
    def parts(self) -> list[list[range]]:
        """The chunks of each part."""
        chunks = self.chunks
        rows = self.site.n_images * self.site.tokens
        count = min(max(1, rows // PART_ROWS), MAX_PARTS, len(chunks))
        bounds = [len(chunks) * i // count for i in range(count + 1)]
        return [chunks[a:b] for a, b in itertools.pairwise(bounds)]

    def encode(self, chunk: range, autoencoder: Autoencoder | None = None) -> Codes:
        """Return the positive codes of a chunk's tokens, image by image; by another copy of the model where given."""
        with torch.inference_mode():
            rows = self.site.rows(chunk.start, chunk.stop).flatten(0, 1)
            codes = firing((autoencoder or self.autoencoder).encode_sparse(rows.to(self.device).float()))
            return codes.to(self.counted_on)

    @property
    def counted_on(self) -> torch.device:
        """Where codes are counted: MPS has no float64, and less of what integers need."""
        return torch.device("cpu") if self.device.type == "mps" else self.device

    def map(self, work: Callable[[int, Codes, range], Result], chunks: list[range]) -> Iterator[Result]:
        """Yield work(worker, codes, chunk) for every chunk, in order, several at a time."""

        def one(worker: int, autoencoder: Autoencoder, chunk: range) -> Result:
            return work(worker, self.encode(chunk, autoencoder), chunk)

        return in_order(self.autoencoder, self.workers, one, chunks)

    @property
    def workers(self) -> int:
        """How many chunks are worked on at once."""
        return worker_count(self.device)

    def mine(self) -> Iterator[tuple[int, list[range]]]:
        """Yield this process's parts: number, chunks."""
        for number, chunks in enumerate(self.parts):
            if number % distributed.world_size() == distributed.rank():
                yield number, chunks


def encode_store(pass_: Pass, partial: Partial, k: int) -> tuple[Spill, Tally]:
    """Run what is left of the pass and return its spill and its sums; `k` latents are kept for each row.

    Every process makes its own parts; all of them return the same.
    """
    folders = [partial.scratch(f"part-{number:05d}") for number in range(len(pass_.parts))]
    unit = _unit(pass_)
    todo = [(n, chunks) for n, chunks in pass_.mine() if not _is_done(partial, n, folders[n])]
    tokens = sum(len(chunk) for _, chunks in todo for chunk in chunks) * pass_.site.tokens
    with progress.bar("encode", tokens, "tokens") as advance:
        for number, chunks in todo:
            started = time.monotonic()
            tally, digests = _encode_part(
                pass_, chunks, PartWriter(folders[number], pass_.autoencoder.n_latents), k, unit, advance
            )
            done = {"images": tally.images, "largest": tally.largest, "seconds": time.monotonic() - started}
            partial.record(f"parts/{number:05d}", {**done, "digests": digests})
    distributed.barrier()
    return _gather(pass_, partial, folders, unit)


def _is_done(partial: Partial, number: int, folder: Path) -> bool:
    """Say whether a part was made by an earlier start and is still what it wrote."""
    record = partial.unit_of(f"parts/{number:05d}")
    if record is None or is_whole(folder, record["digests"]):
        return record is not None
    progress.say(f"{folder}: damaged; it is made again.")
    return False


def _encode_part(
    pass_: Pass, chunks: list[range], writer: PartWriter, k: int, unit: float, advance: Callable[[int], None]
) -> tuple[Tally, dict[str, str]]:
    """Encode and write one part; return its sums, and the digests of its files."""
    n_latents, tokens = pass_.autoencoder.n_latents, pass_.site.tokens
    tallies = [Tally.empty(n_latents, tokens, unit, pass_.counted_on) for _ in range(pass_.workers)]

    def count(worker: int, codes: Codes, chunk: range) -> tuple[np.ndarray, Tensor, Tensor]:
        return tallies[worker].add(codes, chunk.start), *strongest(codes, k)

    for chunk, found in zip(chunks, pass_.map(count, chunks), strict=True):
        writer.add(*found)
        advance(len(chunk) * tokens)
    for other in tallies[1:]:
        tallies[0].merge(other)
    return tallies[0], writer.close(tallies[0])


def _unit(pass_: Pass) -> float:
    """Return the unit of the sums, from the codes of the store's first image."""
    codes = pass_.encode(pass_.chunks[0])
    end = int(codes.offsets[pass_.site.tokens])
    first = Codes(codes.offsets[: pass_.site.tokens + 1], codes.latents[:end], codes.values[:end], codes.n_latents)
    return unit_for(first)


def _gather(pass_: Pass, partial: Partial, folders: list[Path], unit: float) -> tuple[Spill, Tally]:
    spill = Spill(folders, pass_.autoencoder.n_latents)
    total = Tally.empty(pass_.autoencoder.n_latents, pass_.site.tokens, unit)
    for number in range(len(folders)):
        sums, done = spill.sums(number), partial.record_of(f"parts/{number:05d}")
        total.merge(Tally(sums["histogram"], sums["profile"], unit, done["images"], done["largest"]))
    total.check()
    return spill, total
