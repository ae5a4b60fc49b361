"""A strip of pictures for a notebook: where a latent fires, drawn over the images that excite it."""

import base64
import html
import io
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from saetool.activations.thumbnails import StoredThumbnails
from saetool.features.originals import Originals
from saetool.features.sheet import Cell, cells_of, contact_sheet, overlay
from saetool.images.opening import open_moved
from saetool.images.picture import THUMBNAIL_PX
from saetool.vision.geometry import Geometry

if TYPE_CHECKING:
    from saetool.features.reading import Features
    from saetool.images import ImageSource


class Strip:
    """Pictures in a row, each with a caption. `images` are the pictures as drawn; `save` writes them as one file."""

    def __init__(self, title: str, cells: Sequence[Cell], geometry: Geometry | None, attribution: str | None = None):
        self.title = title
        self.captions = [cell.caption for cell in cells]
        self.images = [overlay(cell.image, cell.heat, geometry) for cell in cells]
        self.attribution = attribution
        self._cells, self._geometry = cells, geometry

    def save(self, path: str | os.PathLike) -> None:
        contact_sheet([(self.title, self._cells)], self._geometry).save(path)

    def __repr__(self) -> str:
        return "\n".join([self.title, *(f"  {caption}" for caption in self.captions)])

    def _repr_html_(self) -> str:
        figures = "".join(
            f'<figure style="margin:0"><img src="{_data(image)}" height="140" alt="{html.escape(caption)}">'
            f'<figcaption style="font-size:small">{html.escape(caption)}</figcaption></figure>'
            for image, caption in zip(self.images, self.captions, strict=True)
        )
        credit = f"<small>{html.escape(self.attribution)}</small>" if self.attribution else ""
        row = f'<div style="display:flex;flex-wrap:wrap;gap:8px">{figures}</div>'
        return f"<div><b>{html.escape(self.title)}</b>{row}{credit}</div>"


def strip_of(features: "Features", latent: int, count: int, group: str, read: Callable[[int], Image.Image]) -> Strip:
    """Return a latent's examples as a strip; `read` returns the picture of an image row."""

    def caption(row: dict[str, Any]) -> str:
        return f"{row['path']}: {row['value']:.3g}{', held out' if row['held_out'] else ''}"

    cells = cells_of(features, latent, count, group, read, caption)
    return Strip(f"latent {latent}, {group}", cells, features.geometry, features.content.get("attribution"))


def reader(features: "Features", images: "ImageSource | str | os.PathLike | None") -> Callable[[int], Image.Image]:
    """Return what reads the picture of an image row: from the store's thumbnails, or from where the images are."""
    store = features.artifact.find_input("activations")
    if images is None and StoredThumbnails.are_in(store):
        thumbnails = StoredThumbnails(store)
        return lambda row: Image.open(io.BytesIO(thumbnails.read(row))).convert("RGB")
    return Originals(features.images, open_moved(store, images)).read


def _data(image: Image.Image) -> str:
    """Return a small copy of a picture as an address that holds it."""
    small, file = image.convert("RGB"), io.BytesIO()
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    small.save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
