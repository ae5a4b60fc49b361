"""JPEGs decoded and resized by a GPU, through torchvision (nvJPEG): asked for by `images.decode: gpu`, not the default.

Its pixels are near Pillow's and not the same: what a store was made of stands in its manifest, with how far the first
slice's pixels lie apart. Pictures of any other kind than an upright RGB JPEG that ends as it should are Pillow's.
"""

import io
from collections.abc import Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from saetool.activations.decoding import Answer, DecodedSlice, Decoder
from saetool.artifacts import digest_bytes
from saetool.errors import RequestError, WorkError
from saetool.images.picture import LARGE, is_upright
from saetool.vision import Transform

_FILTERS = ("bilinear", "bicubic")
"""Those that torch resizes by as Pillow does."""
_END = b"\xff\xd9"
"""Of a JPEG. Pillow refuses a file without it; nvJPEG fills up what is missing."""


@dataclass(frozen=True)
class _Read:
    """An image on its way: what is known of it, and a JPEG's bytes, or nothing where Pillow has put the pixels in."""

    answer: Answer
    content: bytes | None


class GpuDecoder(Decoder):
    """A Decoder whose pixels are on the GPU, of JPEGs that it has decoded itself; threads read the files."""

    def __init__(self, *given: Any, device: torch.device, pinned: bool = False):
        super().__init__(*given, pinned=pinned)
        self.device = device
        require_gpu_decoding(device)
        if not hasattr(self.source, "content"):
            raise RequestError("images.decode: gpu takes folders of images, here or at an address; use decode: pillow.")
        if self.transform.gray or self.transform.interpolation not in _FILTERS:
            seen = "gray" if self.transform.gray else f"what {self.transform.interpolation} resizes"
            raise RequestError(f"images.decode: gpu cannot make what this model sees ({seen}); use decode: pillow.")
        if self.plan.settings.thumbnails:
            raise RequestError("images.decode: gpu keeps no thumbnails; leave cache.thumbnails out, or decode: pillow.")
        self._most_pixels = min(LARGE, getattr(self.source, "max_pixels", None) or LARGE)

    @property
    def workers(self) -> str:
        return f"the GPU, {self.threads} reading threads"

    def slices(self, numbers: Iterable[int]) -> Generator[DecodedSlice, None, None]:
        """Yield the slices `numbers`, in order, their pixels on the GPU."""
        return self._by_threads(numbers, self._read, self._finished)

    def _read(self, i: int, slice_: int, out: np.ndarray) -> _Read:
        """Read a file; let Pillow decode into `out` what is not the GPU's, and what cannot be read."""
        size, content = None, b""
        with suppress(WorkError):  # decoding it says what is wrong, or skips it
            content, _ = self.source.content(i)  # pyright: ignore[reportAttributeAccessIssue]
            size = _size_of_jpeg(content, self._most_pixels)
        if size is None:
            return _Read(self._decode(i, slice_, out), None)
        row = {"path": self.source.path(i), "width": size[0], "height": size[1], "digest": digest_bytes(content)}
        return _Read(Answer({**row, "slice": slice_, **self._labels(i)}, 0.0), content)

    def _finished(self, number: int, pixels: Tensor, read: list[_Read]) -> DecodedSlice:
        places = [place for place, one in enumerate(read) if one.content is not None]
        try:
            decoded = decoded_on(self.device, [read[place].content or b"" for place in places])
        except RuntimeError:  # of all together: Pillow says which file it is, or decodes it
            images = self.plan.images_of(number)
            for place in places:
                read[place] = _Read(self._decode(images[place], number, pixels.numpy()[place]), None)
            places, decoded = [], []
        result = self._slice(number, pixels, [one.answer for one in read])
        result.pixels = result.pixels.to(self.device, non_blocking=True)
        if places:
            seen = torch.tensor(places, device=self.device)
            result.pixels[seen] = torch.stack(cut(decoded, self.transform))
        return result


def require_gpu_decoding(device: torch.device) -> None:
    """Raise RequestError where a device, or torchvision as it was built, decodes no JPEG."""
    way = "Use images.decode: pillow."
    if device.type != "cuda":
        raise RequestError(f"images.decode: gpu needs a CUDA GPU, and this is {device.type}. {way}")
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "jpeg")
    try:
        decoded_on(device, [file.getvalue()])
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise RequestError(
            f"images.decode: gpu needs a torchvision that was built with nvJPEG, and this one says: {reason}. {way}"
        ) from None


def decoded_on(device: torch.device, contents: Sequence[bytes]) -> list[Tensor]:
    """Return RGB JPEGs as uint8 [3, height, width] on a GPU; RuntimeError where one cannot be decoded."""
    from torchvision.io import ImageReadMode, decode_jpeg

    files = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents]
    return decode_jpeg(files, ImageReadMode.RGB, device=device) if files else []  # pyright: ignore[reportReturnType]


def cut(pictures: Sequence[Tensor], transform: Transform) -> list[Tensor]:
    """Return pictures [3, height, width] as the model sees them, uint8 [height, width, 3]: those of a size together."""
    made: list[Tensor] = [torch.empty(0)] * len(pictures)
    alike: dict[tuple[int, int], list[int]] = {}
    for place, picture in enumerate(pictures):
        alike.setdefault((picture.shape[2], picture.shape[1]), []).append(place)
    for size, places in alike.items():
        together = _resized(
            torch.stack([pictures[place] for place in places]), transform.geometry.resized(*size), transform
        )
        for place, picture in zip(places, _cropped(together, transform), strict=True):
            made[place] = picture
    return made


def _resized(pictures: Tensor, size: tuple[int, int], transform: Transform) -> Tensor:
    """Resize [n, 3, height, width] bytes as Pillow does, whose filters these are, but rounding once, not twice."""
    if tuple(pictures.shape[:1:-1]) == size:
        return pictures
    wide = torch.nn.functional.interpolate(
        pictures.float(), size[::-1], mode=transform.interpolation, antialias=True, align_corners=False
    )
    return wide.round_().clamp_(0, 255).to(torch.uint8)


def _cropped(pictures: Tensor, transform: Transform) -> Tensor:
    """Cut or pad [n, 3, height, width] to the model's input, [n, height, width, 3]."""
    height, width = transform.geometry.crop
    left, top = transform.geometry.crop_corner(pictures.shape[3], pictures.shape[2])
    fill = torch.tensor(transform.fill, dtype=torch.uint8, device=pictures.device)
    out = fill.expand(len(pictures), height, width, 3).clone()
    seen = pictures[:, :, max(top, 0) : top + height, max(left, 0) : left + width].permute(0, 2, 3, 1)
    y, x = max(-top, 0), max(-left, 0)
    out[:, y : y + seen.shape[1], x : x + seen.shape[2]] = seen
    return out


def _size_of_jpeg(content: bytes, most_pixels: int) -> tuple[int, int] | None:
    """Return width and height of a JPEG that the GPU decodes as Pillow would; None of anything else."""
    if not content.startswith(b"\xff\xd8") or not content.rstrip(b"\0").endswith(_END):
        return None
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            usual = image.mode == "RGB" and is_upright(image) and image.width * image.height <= most_pixels
            return image.size if usual else None
    except Exception:  # of whatever kind of damage: Pillow's own words come when it decodes
        return None


def difference(decoder: Decoder, reference: Decoder) -> dict[str, float | int]:
    """Return how far the first slice's pixels lie from a reference's, in steps of a byte: mean and largest."""
    ours, theirs = (next(iter(one.slices([0]))) for one in (decoder, reference))
    pixels = [made.pixels.cpu()[made.kept].int() for made in (ours, theirs)]
    apart = (pixels[0] - pixels[1]).abs()
    return {"images": len(apart), "mean": float(apart.double().mean()), "largest": int(apart.max())}
