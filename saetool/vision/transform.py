"""From a picture to the model's input: resize, center crop or pad, scale and normalize, in one description."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from saetool.vision.geometry import Geometry

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]

_COPIED_PIXELS = 1 << 22
"""Of pictures that are copied for compiled code: 12 MB at most."""

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
    compiled: bool = field(default=False, compare=False)
    """Whether pictures are resized by compiled code of our own (`resample`): the same pixels in half of the time."""

    def __call__(self, image: Image.Image) -> Float[Tensor, "channels height width"]:
        """Return `image` (RGB, or L: three equal channels, resized once) as the model's float32 input."""
        pixels = np.empty((1, *self.pixel_shape), np.uint8)
        self.fill_pixels(image, pixels[0])
        return self.normalize(torch.from_numpy(pixels))[0]

    @property
    def pixel_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the pixels that the model sees."""
        return (*self.geometry.crop, self.channels)

    def fill_pixels(self, image: Image.Image, out: UInt8[np.ndarray, "height width channels"]) -> None:
        """Write the pixels that the model sees of `image`, resized and cut, into `out`. Calls nothing of torch."""
        if self.gray or (image.mode == "L" and len(set(self.fill)) > 1):
            image = image.convert("L" if self.gray else "RGB")
        if not (self.compiled and self._filled_compiled(image, out)):
            pixels = np.asarray(self._cropped(self._resized(image)))
            out[...] = pixels[..., None] if pixels.ndim == 2 else pixels

    def loaded(self) -> "Transform":
        """Return the same transform, compiled where this machine can do that: worth a second for many pictures.

        Processes that are forked after it need not load anything.
        """
        if find_spec("numba") is None:
            return self
        from saetool.vision.resample import found_order

        return replace(self, compiled=found_order((40, 30), (20, 15), self.interpolation) is not None)

    def _filled_compiled(self, image: Image.Image, out: np.ndarray) -> bool:
        """Write the pixels by compiled code, where it resizes such pictures and nothing is padded; say whether."""
        from saetool.vision.resample import fill_resized, order_of_passes

        size, (height, width) = self.geometry.resized(*image.size), self.geometry.crop
        if size == image.size or size[0] < width or size[1] < height or image.width * image.height > _COPIED_PIXELS:
            return False
        order = order_of_passes(image.size, size, self.interpolation)
        if order is None:
            return False
        pixels = np.asarray(image)
        wide = pixels[..., None] if pixels.ndim == 2 else pixels
        target = out if wide.shape[2] == self.channels else np.empty((height, width, 1), np.uint8)
        fill_resized(wide, size, self.geometry.crop_corner(*size), self.interpolation, order, target)
        if target is not out:
            out[...] = target
        return True

    def normalize(
        self, pixels: UInt8[Tensor, "batch height width channels"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return pixels as the model's float32 input, on the device they are on: the same numbers on every device."""
        if pixels.device.type == "cpu":
            tensor = np.empty((len(pixels), self.channels, *self.geometry.crop), dtype=np.float32)
            for channel, table in enumerate(self._tables):
                np.take(table, pixels.numpy()[..., channel], out=tensor[:, channel], mode="clip")
            return torch.from_numpy(tensor)
        return self._look_up(pixels)

    def _look_up(self, pixels: Tensor) -> Tensor:
        tables, first = self._device_tables(pixels.device)
        places = pixels.permute(0, 3, 1, 2).int().add_(first).contiguous()
        return tables.index_select(0, places.view(-1)).view(places.shape)

    def _device_tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return all channels' tables as one on a device, and where each channel's begins; uploaded once."""
        if device not in self._uploaded:
            first = 256 * torch.arange(self.channels, dtype=torch.int32)[:, None, None]
            self._uploaded[device] = torch.from_numpy(np.concatenate(self._tables)).to(device), first.to(device)
        return self._uploaded[device]

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

    @property
    def channels(self) -> int:
        return 1 if self.gray else 3

    @cached_property
    def _tables(self) -> list[np.ndarray]:
        # A byte has 256 values: looking its result up is exact and far cheaper than computing it for every pixel.
        values = torch.arange(256, dtype=torch.float32)
        scaled = values / 255 if self.scale == 1 / 255 else values * self.scale
        return [((scaled - mean) / std).numpy() for mean, std in zip(self.mean, self.std, strict=True)]

    @cached_property
    def _uploaded(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        return {}

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
