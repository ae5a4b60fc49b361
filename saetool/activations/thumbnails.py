"""Small pictures beside the shards, made while the images are decoded anyway: a report then needs no originals.

activations/thumbnails/00000.safetensors    of the images of a shard, WebP files: "bytes" one after the other, and
                                            "offsets" [images + 1] where each begins
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from saetool.activations.shard import shard_name
from saetool.artifacts import Artifact

FOLDER = "thumbnails"
_KEPT = 16
"""Shards whose thumbnails stay in memory, about a megabyte each: reports read them in no order."""


def tensors_of(files: Sequence[bytes]) -> dict[str, Tensor]:
    """Return the content of a shard's file."""
    offsets = np.cumsum([0, *map(len, files)])
    return {
        "bytes": torch.frombuffer(bytearray(b"".join(files)) or bytearray(1), dtype=torch.uint8)[: int(offsets[-1])],
        "offsets": torch.from_numpy(offsets.astype(np.int64)),
    }


class StoredThumbnails:
    """The thumbnails of a store, by image row."""

    def __init__(self, store: Artifact):
        self._store = store
        self._ends = np.cumsum(store.content["shards"])
        self._shard = lru_cache(_KEPT)(self._open)

    @staticmethod
    def are_in(store: Artifact) -> bool:
        """Say whether a store was made with thumbnails (`cache.thumbnails`)."""
        return bool(store.content.get("thumbnails"))

    def read(self, row: int) -> bytes:
        """Return the WebP file of an image; from any thread."""
        shard = int(np.searchsorted(self._ends, row, side="right"))
        data, offsets = self._shard(shard)
        place = row - int(self._ends[shard - 1] if shard else 0)
        return data[int(offsets[place]) : int(offsets[place + 1])].tobytes()

    def _open(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        from safetensors.numpy import load

        found = load(self._store.read_bytes(shard_name(FOLDER, shard)))
        return found["bytes"], found["offsets"]
