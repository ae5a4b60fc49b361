"""The chunks of the image pages, and one thumbnail an image."""

import itertools
import shutil
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from PIL import Image
from safetensors import safe_open

from saetool import distributed, progress
from saetool.activations.thumbnails import StoredThumbnails
from saetool.artifacts import Artifact
from saetool.errors import WorkError
from saetool.images import Picture
from saetool.images.thumbnail import thumbnail_of
from saetool.report.chunks import pack, smallest_unsigned
from saetool.vision.geometry import Geometry

_MOST_WORKERS = 32
FACTS_BLOCK = 512
PATCHES_BLOCK = 16
SHARE_STEPS = 16_383
"""Steps of a value between 0 and its patch's strongest: finer than a page prints, two bytes less two bits."""


class ReadsImages(Protocol):
    """The part of an image source that thumbnails need."""

    def __len__(self) -> int: ...
    def path(self, i: int) -> str: ...
    def read(self, i: int) -> Picture: ...


def thumbnail_name(image: int) -> str:
    """Return the file of an image's thumbnail; a folder holds a thousand."""
    return f"thumbs/{image // 1000}/{image}.webp"


def facts_chunks(images: pa.Table, labels: list[dict], geometry: dict | None) -> Iterator[tuple[str, bytes]]:
    """Yield (name, script) with path, size, labels and patch-grid box (as shares of the picture) of every image."""
    shape = Geometry.from_dict(geometry) if geometry else None
    names = [label["name"] for label in labels if label["name"] in images.column_names]
    for start in range(0, images.num_rows, FACTS_BLOCK):
        rows = images.slice(start, FACTS_BLOCK)
        sizes = list(zip(rows["width"].to_pylist(), rows["height"].to_pylist(), strict=True))
        arrays: dict[str, np.ndarray] = {"size": np.asarray(sizes, np.int32)}
        if shape:
            boxes = [[*shape.grid_box(width, height)] for width, height in sizes]
            scale = np.asarray([[width, height, width, height] for width, height in sizes])
            arrays["box"] = (np.asarray(boxes) / scale).astype(np.float32)
        values = {
            "path": rows["path"].to_pylist(),
            "labels": [[name, _plain(rows[name].to_pylist())] for name in names],
        }
        name = f"images/{start // FACTS_BLOCK}"
        yield name, pack(name, arrays, values)


def _plain(values: list) -> list:
    """Return label values as JSON: NaN is null."""
    return [None if isinstance(value, float) and value != value else value for value in values]


def patches_chunks(path: Path, chosen: np.ndarray, n_latents: int) -> Iterator[tuple[np.ndarray, str, bytes]]:
    """Yield (rows, name, script) with the strongest latents of every patch, `PATCHES_BLOCK` images a chunk.

    Chunks come in the order in which `chosen` first names one of their images. A patch's strongest value is exact,
    the others are multiples of its `SHARE_STEPS`-th part.
    """
    kind = smallest_unsigned(n_latents)
    with safe_open(path, "np") as file:
        latents, values = file.get_slice("latents"), file.get_slice("values")
        blocks, first = np.unique(chosen // PATCHES_BLOCK, return_index=True)
        for block in blocks[np.argsort(first)]:
            rows = np.arange(block * PATCHES_BLOCK, min((block + 1) * PATCHES_BLOCK, latents.get_shape()[0]))
            rows = rows[np.isin(rows, chosen)]
            ids = np.stack([latents[int(row)] for row in rows])
            strength = np.stack([values[int(row)] for row in rows]).astype(np.float32)
            strength = np.where(ids >= 0, strength, 0)
            top = strength.max(axis=2, initial=0.0)
            share = np.rint(strength / np.maximum(top, np.finfo(np.float32).tiny)[..., None] * SHARE_STEPS)
            arrays = {
                "rows": rows.astype(np.int32),
                "top": top,
                "share": share.astype(np.uint16),
                # 0 is "none"; latents count from 1 here.
                "latent": (ids + 1).astype(kind),
            }
            name = f"patches/{block}"
            yield (
                rows,
                name,
                pack(name, arrays, {"tokens": ids.shape[1], "strongest": ids.shape[2], "steps": SHARE_STEPS}),
            )


class Thumbnails:
    """Writes thumbnails of a store's images in threads, in a given order, until a budget is spent.

    They are the store's own where it has them, else made from `source`.
    """

    def __init__(self, store: Artifact, images: pa.Table, source: ReadsImages | None):
        self.stored = StoredThumbnails(store) if StoredThumbnails.are_in(store) else None
        self.paths = images["path"].to_pylist()
        self.digests = images["digest"].to_pylist() if "digest" in images.column_names else None
        self.source = source
        self.place = {} if source is None or self.stored else {source.path(i): i for i in range(len(source))}

    def make(self, order: np.ndarray, folder: Path, budget: int) -> np.ndarray:
        """Write thumbnails below `folder` in `order` while `budget` bytes last; return the rows that have one.

        What an earlier start left is made again: nobody knows whether it is whole. Raises WorkError when an image is
        gone, unreadable or not the cached one.
        """
        shutil.rmtree(folder / "thumbs", ignore_errors=True)
        made, spent = [], 0
        workers = min(_MOST_WORKERS, distributed.cores())
        with ThreadPoolExecutor(workers) as pool, progress.bar("thumbnails", len(order), "images") as advance:
            waiting: deque = deque()
            rows = iter(order.tolist())
            for row in itertools.islice(rows, 4 * workers):
                waiting.append((row, pool.submit(self._one, row, folder)))
            while waiting:
                row, future = waiting.popleft()
                size = future.result()
                if spent + size > budget:
                    for other, pending in [(row, future), *waiting]:
                        pending.result()
                        (folder / thumbnail_name(other)).unlink(missing_ok=True)
                    break
                spent += size
                made.append(row)
                advance(1)
                if (following := next(rows, None)) is not None:
                    waiting.append((following, pool.submit(self._one, following, folder)))
        return np.asarray(sorted(made), np.int64)

    def _one(self, row: int, folder: Path) -> int:
        path = folder / thumbnail_name(row)
        data = self.stored.read(row) if self.stored else thumbnail_of(self._read(row))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return len(data)

    def _read(self, row: int) -> Image.Image:
        place = self.place.get(self.paths[row])
        if place is None or self.source is None:
            raise WorkError(
                f"image {self.paths[row]!r} is in the store but not in the image source: "
                "give the source that was cached, or its new place."
            )
        picture = self.source.read(place)
        if self.digests and picture.digest != self.digests[row]:
            raise WorkError(f"image {self.paths[row]!r} is not the one that was cached: its digest differs.")
        return picture.image
