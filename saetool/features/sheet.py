"""Pictures of what a latent sees: the originals, contact sheets of them, a strip for a notebook.

Heat maps are laid over the pictures where the model's patches lie.
"""

import html
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from saetool.activations.thumbnails import StoredThumbnails
from saetool.errors import RequestError
from saetool.images import ImageSource
from saetool.images.opening import open_moved
from saetool.images.picture import THUMBNAIL_PX, as_address
from saetool.vision.geometry import Geometry

if TYPE_CHECKING:
    from saetool.features.reading import Features

_CAPTION = 14
"""Pixels below each picture for its caption, and left of each row for its title's line."""
_WARM = np.array([255, 80, 0], np.float32)
"""The color of a firing patch."""
_STRONGEST = 0.75
"""Opacity of the color where a latent is at its maximum."""


class Originals:
    """The images of a table with columns path and digest, by row."""

    def __init__(self, images: pa.Table, source: ImageSource):
        self.paths, self.digests, self.source = images["path"].to_pylist(), images["digest"].to_pylist(), source
        self.places = {source.path(i): i for i in range(len(source))}

    def read(self, row: int) -> Image.Image:
        """Return one picture, RGB and upright; RequestError where it is missing or no longer the one cached."""
        path = self.paths[row]
        if path not in self.places:
            raise RequestError(
                f"image {path!r} of the store is not in the source {self.source.name}: is it the same one?"
            )
        picture = self.source.read(self.places[path])
        if picture.digest != self.digests[row]:
            raise RequestError(f"image {path!r} is not the one that was cached (its content differs): cache it again")
        return picture.image.convert("RGB")


@dataclass(frozen=True)
class Cell:
    """One picture of a sheet; `heat` [rows, columns] is 0 to 1, None for none."""

    image: Image.Image
    caption: str
    heat: np.ndarray | None = None


def cells_of(
    features: "Features",
    latent: int,
    count: int,
    group: str,
    read: Callable[[int], Image.Image],
    caption: Callable[[dict[str, Any]], str],
) -> list[Cell]:
    """Return a latent's examples as cells; `read` gives the picture of an image row, `caption` what stands below it."""

    def heat(row: dict[str, Any]) -> np.ndarray | None:
        return None if row["heat"] is None or features.grid is None else features.heat(row) / row["heat_scale"]

    return [Cell(read(row["image"]), caption(row), heat(row)) for row in features.examples(latent, group, count)]


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Cell]]], geometry: Geometry | None, size: int = 160
) -> Image.Image:
    """Return a picture of titled rows of cells, each cell `size` pixels wide and high plus its caption."""
    widest = max((len(cells) for _, cells in rows), default=0)
    height = size + 2 * _CAPTION
    sheet = Image.new("RGB", (max(widest, 1) * size, max(len(rows), 1) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (title, cells) in enumerate(rows):
        top = i * height
        draw.text((2, top + 1), title, fill="black")
        for j, cell in enumerate(cells):
            picture = overlay(cell.image, cell.heat, geometry)
            picture.thumbnail((size - 2, size - 2))
            sheet.paste(picture, (j * size, top + _CAPTION))
            draw.text((j * size + 2, top + _CAPTION + size - 1), cell.caption[: size // 6], fill="black")
    return sheet


def overlay(image: Image.Image, heat: np.ndarray | None, geometry: Geometry | None) -> Image.Image:
    """Return a picture with a heat map (0 to 1) drawn over the patches the model saw; without geometry, over all."""
    picture = image.convert("RGB").copy()
    if heat is None:
        return picture
    box = geometry.grid_box(*picture.size) if geometry is not None else (0, 0, *picture.size)
    left, top, right, bottom = (round(edge) for edge in box)
    opacity = Image.fromarray(np.rint(np.clip(heat, 0, 1) * _STRONGEST * 255).astype(np.uint8))
    opacity = opacity.resize((max(1, right - left), max(1, bottom - top)), Image.Resampling.NEAREST)
    color = Image.new("RGB", opacity.size, tuple(int(part) for part in _WARM))
    picture.paste(color, (left, top), opacity)
    return picture


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
            f'<figure style="margin:0"><img src="{as_address(image, THUMBNAIL_PX, 80)}" height="140" '
            f'alt="{html.escape(caption)}">'
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
