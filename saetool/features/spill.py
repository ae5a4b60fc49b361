"""Image maxima on disk between the pass and the statistics: written by images, read by latents.

A part is a folder of raw arrays. `maxima.bin` holds the records of one chunk of images after the other, each sorted by
latent, then image; `stripes` (in sums.safetensors) says where in the file each stripe of latents of each chunk begins,
so that a block of latents is read without reading the rest.
"""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import xxhash
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from saetool.activations.shard import safetensors_header
from saetool.artifacts import digest_file
from saetool.features.firing_statistics import FiringStatistics
from saetool.features.maxima import RECORD

STRIPES = 128
"""At most this many stripes of latents: the grain of reading."""
BLOCK_RECORDS = 1 << 22
"""Records of a block of latents held at a time (96 MiB), unless one stripe has more."""
BLOCK_CELLS = 1 << 20
"""Cells of the tables [latents, classes] of a block (8 MiB each, a few dozen at a time), unless one stripe has more."""
_FILES = {"maxima": "maxima.bin", "latents": "latents.bin", "values": "values.bin"}
_SUMS = "sums.safetensors"


def stripe_width(n_latents: int) -> int:
    return -(-n_latents // STRIPES)


class PartWriter:
    """Writes one part: chunks in order, then `close` with the sums. Nothing counts until the caller records it."""

    def __init__(self, folder: Path, n_latents: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.bounds = np.arange(0, n_latents + stripe_width(n_latents), stripe_width(n_latents))
        self._files = {name: (folder / file).open("wb") for name, file in _FILES.items()}
        self._digests = {file: xxhash.xxh3_128() for file in _FILES.values()}
        self._stripes: list[np.ndarray] = []
        self._written = 0

    def add(self, records: np.ndarray, latents: Int[Tensor, "rows k"], values: Float[Tensor, "rows k"]) -> None:
        """Append one chunk: its maxima, and the strongest latents of its rows."""
        self._stripes.append(self._written + np.searchsorted(records["latent"], self.bounds))
        self._written += len(records)
        parts = {"maxima": records, "latents": latents.numpy(), "values": values.numpy()}
        for name, array in parts.items():
            data = np.ascontiguousarray(array).view(np.uint8).data
            self._files[name].write(data)  # numpy's own way of writing does not say why it fails
            self._digests[_FILES[name]].update(data)

    def close(self, statistics: FiringStatistics) -> dict[str, str]:
        """Write the sums; return the files' digests, by which a start after a power failure finds what is missing."""
        for file in self._files.values():
            file.close()
        sums = {"histogram": statistics.histogram.cpu(), "profile": statistics.profile.cpu()}
        stripes = torch.from_numpy(np.stack(self._stripes))
        save_file({**sums, "stripes": stripes}, self.folder / _SUMS)
        found = {name: f"xxh3-128:{state.hexdigest()}" for name, state in self._digests.items()}
        return {**found, _SUMS: digest_file(self.folder / _SUMS)}


def is_whole(folder: Path, digests: dict[str, str]) -> bool:
    """Say whether a part's files have the digests that `PartWriter.close` returned."""
    try:
        return _digests(folder) == digests
    except OSError:
        return False


def _digests(folder: Path) -> dict[str, str]:
    return {name: digest_file(folder / name) for name in (*_FILES.values(), _SUMS)}


class Spill:
    """All parts of a finished pass, in image order."""

    def __init__(self, folders: list[Path], n_latents: int):
        self.folders = folders
        self.n_latents = n_latents
        self.width = stripe_width(n_latents)
        self._stripes = [load_file(folder / _SUMS)["stripes"].numpy() for folder in folders]
        self._maps = [_map(folder / _FILES["maxima"]) for folder in folders]
        widths = [np.diff(stripes, axis=1).sum(0) for stripes in self._stripes]
        self.stripe_records: np.ndarray = np.sum(widths, axis=0)
        """Records in each stripe of latents, int64."""

    def sums(self, part: int) -> dict[str, Tensor]:
        """Return the integer sums of one part: histogram and profile."""
        return load_file(self.folders[part] / _SUMS)

    def spans(self, columns: int = 1) -> Iterator[tuple[int, int]]:
        """Yield the stripes, first and end, of consecutive blocks of latents, for `block`.

        `columns` numbers are to be held for each latent: of many, fewer latents are in a block.
        """
        widest = max(1, BLOCK_CELLS // (columns * self.width))
        first = 0
        while first < len(self.stripe_records):
            ends = np.cumsum(self.stripe_records[first : first + widest])
            stop = first + max(1, int(np.searchsorted(ends, BLOCK_RECORDS, side="right")))
            yield first, stop
            first = stop

    def block(self, first: int, stop: int) -> np.ndarray:
        """Return the records of some stripes of latents, for `Maxima.of`: chunks in image order, sorted by latent."""
        pieces = [
            records[begin:end]
            for records, stripes in zip(self._maps, self._stripes, strict=True)
            for begin, end in zip(stripes[:, first].tolist(), stripes[:, stop].tolist(), strict=True)
        ]
        return np.concatenate(pieces) if pieces else np.empty(0, RECORD)

    def latents_of(self, first: int, stop: int) -> tuple[int, int]:
        """Return the latents, first and end, of some stripes."""
        return first * self.width, min(stop * self.width, self.n_latents)

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield the records of each chunk of images, sorted by latent, then image."""
        for records, stripes in zip(self._maps, self._stripes, strict=True):
            for begin, end in zip(stripes[:, 0].tolist(), stripes[:, -1].tolist(), strict=True):
                yield records[begin:end]

    def write_strongest(self, path: Path, shape: tuple[int, int, int]) -> None:
        """Write the strongest latents of every token, `latents` int32 and `values` float32 [images, tokens, k], as a
        safetensors file; nothing is held in memory."""
        kinds, size = {"latents": "I32", "values": "F32"}, 4 * math.prod(shape)
        with path.open("wb") as out:
            out.write(safetensors_header({name: (kind, shape, size) for name, kind in kinds.items()}))
            for part in (folder / _FILES[name] for name in kinds for folder in self.folders):
                with part.open("rb") as source:
                    shutil.copyfileobj(source, out, 1 << 22)


def _map(path: Path) -> np.ndarray:
    if path.stat().st_size == 0:
        return np.empty(0, RECORD)
    return np.memmap(path, RECORD, mode="r")
