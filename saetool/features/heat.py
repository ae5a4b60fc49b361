"""Heat maps of the chosen examples: their images are encoded again, in the same chunks as in the pass."""

import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from saetool import distributed, progress
from saetool.artifacts import Partial, digest_file
from saetool.features.encoding import Pass
from saetool.sparse.codes import Codes


@dataclass(frozen=True)
class Wanted:
    """The distinct (image, latent) pairs to draw, sorted by image, then latent; `scale` [n_latents] is 255 in bytes."""

    image: np.ndarray
    latent: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, image: np.ndarray, latent: np.ndarray, scale: np.ndarray) -> "Wanted":
        """Drop repeated pairs."""
        key = np.unique(image.astype(np.int64) * len(scale) + latent)
        return cls(key // len(scale), key % len(scale), scale)

    def find(self, image: np.ndarray, latent: np.ndarray) -> np.ndarray:
        """Return the number of each pair."""
        keys = self.image * len(self.scale) + self.latent
        return np.searchsorted(keys, image.astype(np.int64) * len(self.scale) + latent)

    def save(self, path: Path) -> None:
        """Keep the pairs for other processes and for a second attempt."""
        np.savez(path, image=self.image, latent=self.latent, scale=self.scale)

    @classmethod
    def load(cls, path: Path) -> "Wanted":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["image"], arrays["latent"], arrays["scale"])


def draw(pass_: Pass, wanted: Wanted, partial: Partial) -> np.ndarray | None:
    """Return the heat maps, uint8 [pairs, tokens], mapped from a scratch file; None in all but the main process.

    Each process draws its own parts, a file each: over a network, two writers of one file can lose what is between
    them. A byte is value / scale · 255, rounded, at least 1 where the latent fires.
    """
    todo = [(n, chunks) for n, chunks in pass_.mine() if not _is_done(partial, n)]
    with progress.bar("heat maps", sum(len(c) for _, chunks in todo for c in chunks), "images") as advance:
        for number, chunks in todo:
            started = time.monotonic()
            with _part_file(partial, number).open("wb") as file:
                _draw_part(pass_, chunks, wanted, file, advance)
                os.fsync(file.fileno())
            digest = digest_file(_part_file(partial, number))
            partial.record(f"heat/{number:05d}", {"seconds": time.monotonic() - started, "digest": digest})
    distributed.barrier()
    if not distributed.is_main():
        return None
    path = partial.scratch("heat.bin")
    with path.open("wb") as file:
        for number in range(len(pass_.parts)):
            with _part_file(partial, number).open("rb") as part:
                shutil.copyfileobj(part, file)
        file.write(b"\0")  # an empty file cannot be mapped
    shape = (len(wanted.image), pass_.site.tokens)
    return np.memmap(path, np.uint8, mode="r")[: math.prod(shape)].reshape(shape)


def _is_done(partial: Partial, number: int) -> bool:
    """Say whether a part was drawn by an earlier start and is still what it wrote."""
    record, path = partial.unit_of(f"heat/{number:05d}"), _part_file(partial, number)
    return record is not None and path.is_file() and digest_file(path) == record["digest"]


def _part_file(partial: Partial, number: int) -> Path:
    return partial.scratch(f"heat-{number:05d}.bin")


def _draw_part(
    pass_: Pass, chunks: list[range], wanted: Wanted, file: BinaryIO, advance: Callable[[int], None]
) -> None:
    """Write the maps of a part's pairs, which follow one another."""
    spans = {chunk.start: slice(*np.searchsorted(wanted.image, [chunk.start, chunk.stop])) for chunk in chunks}
    filled = [chunk for chunk in chunks if spans[chunk.start].start < spans[chunk.start].stop]

    def work(worker: int, codes: Codes, chunk: range) -> np.ndarray:
        return _draw_chunk(codes, pass_.site.tokens, chunk, wanted, spans[chunk.start])

    for chunk, drawn in zip(filled, pass_.map(work, filled), strict=True):
        file.write(drawn.data)  # numpy's own way of writing does not say why it fails
        advance(len(chunk))
    advance(sum(map(len, chunks)) - sum(map(len, filled)))


def _draw_chunk(codes: Codes, tokens: int, chunk: range, wanted: Wanted, pairs: slice) -> np.ndarray:
    n_latents, device = codes.n_latents, codes.values.device
    image = torch.from_numpy(wanted.image[pairs] - chunk.start).to(device)
    latent = torch.from_numpy(wanted.latent[pairs]).to(device)
    slots = torch.full((len(chunk) * n_latents,), -1, dtype=torch.int64, device=device)
    slots[image * n_latents + latent] = torch.arange(len(image), device=device)
    row = codes.row_of_entry()
    slot = slots[row // tokens * n_latents + codes.latents]
    kept = slot >= 0
    slot, token, values = slot[kept], row[kept] % tokens, codes.values[kept].float()
    scale = torch.from_numpy(wanted.scale).to(device)[latent][slot]
    heat = torch.zeros(len(image), tokens, dtype=torch.uint8, device=device)
    heat[slot, token] = (values / scale * 255).round().clamp(1, 255).to(torch.uint8)
    return heat.cpu().numpy()
