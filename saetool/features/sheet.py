"""Contact sheets: pictures in rows, heat maps laid over them where the model's patches lie."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from saetool.vision.geometry import Geometry

if TYPE_CHECKING:
    from saetool.features.reading import Features

_CAPTION = 14
"""Pixels below each picture for its caption, and left of each row for its title's line."""
_WARM = np.array([255, 80, 0], np.float32)
"""The color of a firing patch."""
_STRONGEST = 0.75
"""Opacity of the color where a latent is at its maximum."""


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
