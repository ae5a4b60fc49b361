"""Heat maps of the chosen examples: their images are encoded again, in the same chunks as in the pass."""

import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from saetool import distributed, progress
from saetool.artifacts import Partial, digest_file
from saetool.features.encoding import Pass, part_name
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

    def of_images(self, images: range) -> "Wanted":
        first, stop = np.searchsorted(self.image, [images.start, images.stop])
        return Wanted(self.image[first:stop], self.latent[first:stop], self.scale)

    def find(self, image: np.ndarray, latent: np.ndarray) -> np.ndarray:
        keys = self.image * len(self.scale) + self.latent
        return np.searchsorted(keys, image.astype(np.int64) * len(self.scale) + latent)

    def save(self, path: Path) -> None:
        """Keep the pairs for other processes and for a second attempt."""
        np.savez(path, image=self.image, latent=self.latent, scale=self.scale)

    @classmethod
    def load(cls, path: Path) -> "Wanted":
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["image"], arrays["latent"], arrays["scale"])


def draw(pass_: Pass, wanted: Wanted, partial: Partial) -> np.ndarray | None:
    """Return the heat maps, uint8 [pairs, tokens], mapped from a scratch file; None in all but the main process.

    Only images of which something is drawn are encoded, in the order of the store. Each process draws its own parts, a
    file each: over a network, two writers of one file can lose what is between them. A byte is value / scale · 255,
    rounded, at least 1 where the latent fires.
    """
    todo = [(part, wanted.of_images(part)) for part in pass_.mine() if not _is_done(partial, part)]
    images = sum(len(np.unique(some.image)) for _, some in todo)
    with progress.bar("heat maps", images, "images") as advance:
        for part, some in todo:
            started = time.monotonic()
            with _part_file(partial, part).open("wb") as file:
                _draw_part(pass_, some, file, advance)
                os.fsync(file.fileno())
            digest = digest_file(_part_file(partial, part))
            partial.record(f"heat/{part_name(part)}", {"seconds": time.monotonic() - started, "digest": digest})
    distributed.barrier()
    if not distributed.is_main():
        return None
    path = partial.scratch("heat.bin")
    with path.open("wb") as file:
        for part in pass_.parts:
            with _part_file(partial, part).open("rb") as drawn:
                shutil.copyfileobj(drawn, file)
        file.write(b"\0")  # an empty file cannot be mapped
    shape = (len(wanted.image), pass_.site.tokens)
    return np.memmap(path, np.uint8, mode="r")[: math.prod(shape)].reshape(shape)


def _is_done(partial: Partial, part: range) -> bool:
    """Say whether a part was drawn by an earlier start and is still what it wrote."""
    record, path = partial.unit_of(f"heat/{part_name(part)}"), _part_file(partial, part)
    return record is not None and path.is_file() and digest_file(path) == record["digest"]


def _part_file(partial: Partial, part: range) -> Path:
    return partial.scratch(f"heat-{part_name(part)}.bin")


def _draw_part(pass_: Pass, wanted: Wanted, file: BinaryIO, advance: Callable[[int], None]) -> None:
    """Write the maps of a part's pairs, which follow one another."""
    chunks = pass_.cut(np.unique(wanted.image).tolist())
    scale = torch.from_numpy(wanted.scale).to(pass_.counted_on)

    def some(images: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.unique(pairs_of(images).latent))

    def pairs_of(images: Sequence[int]) -> Wanted:
        return wanted.of_images(range(images[0], images[-1] + 1))

    def work(worker: int, codes: Codes, images: Sequence[int]) -> list[Tensor]:
        pairs = pairs_of(images)
        latent, place = np.unique(pairs.latent, return_inverse=True)
        image = torch.from_numpy(np.searchsorted(images, pairs.image))
        chosen = scale[torch.from_numpy(latent).to(scale.device)]
        return [_draw_chunk(codes, pass_.site.tokens, image, torch.from_numpy(place), chosen)]

    for images, (drawn,) in zip(chunks, pass_.map(work, chunks, some), strict=True):
        file.write(drawn.numpy().data)  # numpy's own way of writing does not say why it fails
        advance(len(images))


def _draw_chunk(codes: Codes, tokens: int, image: Tensor, latent: Tensor, scale: Tensor) -> Tensor:
    """Return the maps [pairs, tokens] of a latent on an image each; both count from the chunk's first, and `scale`
    has as many latents."""
    n_latents, device = codes.n_latents, codes.values.device
    image, latent = image.to(device), latent.to(device)
    slots = torch.full((codes.rows // tokens * n_latents,), -1, dtype=torch.int64, device=device)
    slots[image * n_latents + latent] = torch.arange(len(image), device=device)
    row = codes.row_of_entry()
    slot = slots[row // tokens * n_latents + codes.latents]
    kept = slot >= 0
    slot, token, values = slot[kept], row[kept] % tokens, codes.values[kept].float()
    heat = torch.zeros(len(image), tokens, dtype=torch.uint8, device=device)
    heat[slot, token] = (values / scale[latent][slot] * 255).round().clamp(1, 255).to(torch.uint8)
    return heat
