"""From the bytes of an image file to an upright picture, RGB or gray."""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from saetool.artifacts import digest_bytes
from saetool.errors import WorkError

SIXTEEN_BIT_MODES = {"I", "I;16", "I;16B", "I;16L", "I;16N"}
BACKGROUND = (255, 255, 255, 255)
"""What shows through transparent pixels: white, as on a page."""


@dataclass(frozen=True)
class Picture:
    """An image as a person sees it."""

    image: Image.Image
    """RGB, or L where the file is gray; upright (EXIF orientation applied); the first frame of an animation."""
    width: int
    height: int
    digest: str
    """`xxh3-128:…` of the file's bytes."""


def read_picture(content: bytes, name: str) -> Picture:
    """Decode an image file's bytes; `name` is what the WorkError calls it when it is corrupt or no image at all."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                return picture_of(image, digest_bytes(content))
    except WorkError as error:
        raise WorkError(f"{name}: {error}") from None
    except Exception as error:
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error … for damaged files.
        what = "is empty" if not content else f"cannot be read as an image ({_reason(error)})"
        raise WorkError(
            f"{name} {what}. With images.on_error=skip the work goes on from here without it; a file that is repaired "
            "or removed makes another list of files, and the work begins anew"
        ) from None


def picture_of(image: Image.Image, digest: str) -> Picture:
    """Return a decoded image, of whatever mode, as an upright picture, RGB or L."""
    # Reading EXIF walks the whole file: most files say by their format that there is none.
    if image.getexif():
        image = ImageOps.exif_transpose(image)
    image = _as_rgb_or_gray(image)
    return Picture(image, image.width, image.height, digest)


def picture_of_array(array: np.ndarray) -> Picture:
    """Return a uint8 array [height, width] or [height, width, 3] as a picture; the digest is of its bytes."""
    image = Image.fromarray(np.ascontiguousarray(array))
    return picture_of(image, digest_bytes(array.tobytes()))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # its own message names an object in memory
        return "the content is of no kind of image that is known"
    return f"{type(error).__name__}: {error}"


def _as_rgb_or_gray(image: Image.Image) -> Image.Image:
    if image.mode in SIXTEEN_BIT_MODES:
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise WorkError("floating-point pixels have no known range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image).convert("RGB")
    return image if image.mode in ("RGB", "L") else image.convert("RGB")
