"""From a picture to the model's input: resize, center crop or pad, scale and normalize, in one description."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from saetool.vision.geometry import Geometry

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Transform:
    """A deterministic preprocessing; thread-safe. `geometry` says what happens to the pixels' places."""

    geometry: Geometry
    interpolation: Interpolation = "bicubic"
    scale: float = 1 / 255
    """Byte values are multiplied by this before mean and std."""
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    fill: tuple[int, ...] = field(default=(0, 0, 0))
    """Color of the padding, where the resized picture is smaller than the input."""
    gray: bool = False
    """True: one channel, the luma."""

    def __call__(self, image: Image.Image) -> Float[Tensor, "channels height width"]:
        """Return `image` (RGB, or L: three equal channels, resized once) as the model's float32 input."""
        if self.gray or (image.mode == "L" and len(set(self.fill)) > 1):
            image = image.convert("L" if self.gray else "RGB")
        pixels = np.asarray(self._cropped(self._resized(image)))
        planes = [pixels] * self.channels if pixels.ndim == 2 else [pixels[..., channel] for channel in range(3)]
        tensor = np.empty((len(planes), *self.geometry.crop), dtype=np.float32)
        for plane, table, out in zip(planes, self._tables, tensor, strict=True):
            np.take(table, plane, out=out, mode="clip")
        return torch.from_numpy(tensor)

    def describe(self) -> dict:
        """Return everything that determines the result, as JSON types."""
        return {
            "geometry": self.geometry.describe(),
            "interpolation": self.interpolation,
            "scale": self.scale,
            "mean": list(self.mean),
            "std": list(self.std),
            "fill": list(self.fill),
            "gray": self.gray,
        }

    def with_geometry(self, geometry: Geometry) -> "Transform":
        """Return the same transform upon another geometry."""
        return replace(self, geometry=geometry)

    @property
    def channels(self) -> int:
        """The number of channels of the result."""
        return 1 if self.gray else 3

    @cached_property
    def _tables(self) -> list[np.ndarray]:
        # A byte has 256 values: looking its result up is exact and far cheaper than computing it for every pixel.
        values = torch.arange(256, dtype=torch.float32)
        scaled = values / 255 if self.scale == 1 / 255 else values * self.scale
        return [((scaled - mean) / std).numpy() for mean, std in zip(self.mean, self.std, strict=True)]

    def _resized(self, image: Image.Image) -> Image.Image:
        size = self.geometry.resized(*image.size)
        if size == image.size:
            return image
        return image.resize(size, Image.Resampling[self.interpolation.upper()])

    def _cropped(self, image: Image.Image) -> Image.Image:
        height, width = self.geometry.crop
        if image.size == (width, height):
            return image
        left, top = self.geometry.crop_corner(*image.size)
        inside = left >= 0 and top >= 0 and left + width <= image.width and top + height <= image.height
        if inside:
            return image.crop((left, top, left + width, top + height))
        canvas = Image.new(image.mode, (width, height), self.fill[0] if image.mode == "L" else self.fill)
        canvas.paste(image, (-left, -top))
        return canvas
