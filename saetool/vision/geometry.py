"""Where a patch lies in the original picture: resize and crop, followed backwards."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

Box = tuple[float, float, float, float]

Resize = Literal["squash", "shortest", "shortest_round", "longest", "none"]
"""squash: to the size, aspect ratio lost. shortest: the short side to the size, the long side truncated (torchvision,
transformers). shortest_round, longest: the short or the long side fits, both rounded (timm)."""


@dataclass(frozen=True)
class Geometry:
    """How a picture becomes the model's input, and the patch grid upon it; all pairs are (height, width) in pixels."""

    resize: Resize
    resize_to: tuple[int, int]
    crop: tuple[int, int]
    """The model's input: cut from the center of the resized picture, padded where that is smaller."""
    patch: tuple[int, int]
    grid: tuple[int, int] | None
    """Rows and columns of patches, from the top left corner of the input; None where the model has no grid."""
    rounding: Literal["round", "floor"] = "round"
    """Of half a pixel at the crop: torchvision and timm round to even, transformers floors."""

    def describe(self) -> dict:
        """Return the fields as JSON types; `from_dict` is the inverse."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: dict) -> "Geometry":
        """Return the geometry that `describe` described."""
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()}
        return cls(**values)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) of the resized picture for an original of `width` × `height` pixels."""
        rows, columns = self.resize_to
        if self.resize == "none":
            return width, height
        if self.resize == "squash":
            return columns, rows
        if self.resize == "shortest":
            short, size = min(width, height), min(rows, columns)
            return max(1, int(size * width / short)), max(1, int(size * height / short))
        ratios = height / rows, width / columns
        ratio = max(ratios) if self.resize == "longest" else min(ratios)
        return max(1, round(width / ratio)), max(1, round(height / ratio))

    def crop_corner(self, width: int, height: int) -> tuple[int, int]:
        """Return (left, top) of the model's input in the resized picture; negative where it is padded."""
        return self._half(width - self.crop[1]), self._half(height - self.crop[0])

    def grid_box(self, width: int, height: int) -> Box:
        """Return (left, top, right, bottom) of the patch grid in pixels of a `width` × `height` original.

        The box may exceed the picture where the input was padded. Without a grid it is the whole input's.
        """
        rows, columns = self.grid or (1, 1)
        patch_height, patch_width = self.patch if self.grid else self.crop
        return self._to_original((0, 0, columns * patch_width, rows * patch_height), width, height)

    def patch_box(self, patch: int, width: int, height: int) -> Box:
        """Return (left, top, right, bottom) of the row-major `patch` in pixels of a `width` × `height` original."""
        if self.grid is None:
            return self.grid_box(width, height)
        row, column = divmod(patch, self.grid[1])
        top, left = row * self.patch[0], column * self.patch[1]
        return self._to_original((left, top, left + self.patch[1], top + self.patch[0]), width, height)

    def _to_original(self, box: tuple[int, int, int, int], width: int, height: int) -> Box:
        resized_width, resized_height = self.resized(width, height)
        left, top = self.crop_corner(resized_width, resized_height)
        across, down = width / resized_width, height / resized_height
        return (box[0] + left) * across, (box[1] + top) * down, (box[2] + left) * across, (box[3] + top) * down

    def _half(self, excess: int) -> int:
        if excess < 0:
            return -(-excess // 2)
        return round(excess / 2) if self.rounding == "round" else math.floor(excess / 2)
