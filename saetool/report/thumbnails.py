"""One thumbnail an image, made in threads within a bound in bytes."""

import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from saetool import distributed, progress
from saetool.activations.thumbnails import StoredThumbnails
from saetool.artifacts import Artifact
from saetool.errors import WorkError
from saetool.images import ImageSource
from saetool.images.picture import thumbnail_of
from saetool.threads import ordered

_MOST_WORKERS = 32


def thumbnail_name(image: int) -> str:
    """Return the file of an image's thumbnail; a folder holds a thousand."""
    return f"thumbs/{image // 1000}/{image}.webp"


class Thumbnails:
    """Writes thumbnails of a store's images in threads, in a given order, until a budget is spent.

    They are the store's own where it has them, else made from `source`; rows that were never pictures have none.
    """

    def __init__(self, store: Artifact, images: pa.Table, source: ImageSource | None):
        self.stored = StoredThumbnails(store) if StoredThumbnails.are_in(store) else None
        self.paths = images["path"].to_pylist()
        self.digests = images["digest"].to_pylist() if "digest" in images.column_names else None
        self.source = source
        self.without_pictures = source is None and not self.stored and store.content.get("source") is None
        self.place = {} if source is None or self.stored else {source.path(i): i for i in range(len(source))}

    def make(self, order: np.ndarray, folder: Path, budget: int) -> np.ndarray:
        """Write thumbnails below `folder` in `order` while `budget` bytes last; return the rows that have one.

        What an earlier start left is made again: nobody knows whether it is whole. Raises WorkError when an image is
        gone, unreadable or not the cached one.
        """
        shutil.rmtree(folder / "thumbs", ignore_errors=True)
        if self.without_pictures:
            return np.zeros(0, np.int64)
        begun: list[int] = []
        made, spent = set(), 0

        def one(row: int) -> tuple[int, int]:
            begun.append(row)
            return row, self._write(row, folder)

        written = ordered(one, order.tolist(), min(_MOST_WORKERS, distributed.cores()))
        with progress.bar("thumbnails", len(order), "images") as advance, closing(written):
            for row, size in written:
                if spent + size > budget:
                    break
                spent += size
                made.add(row)
                advance(1)
        for row in set(begun) - made:
            (folder / thumbnail_name(row)).unlink(missing_ok=True)
        return np.asarray(sorted(made), np.int64)

    def _write(self, row: int, folder: Path) -> int:
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
