"""From the bytes of an image file to an upright picture, RGB or gray."""

import base64
import io
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from threading import Lock

import numpy as np
from PIL import Image, UnidentifiedImageError

from saetool.artifacts import digest_bytes
from saetool.errors import WorkError

SIXTEEN_BIT_MODES = {"I", "I;16", "I;16B", "I;16L", "I;16N"}
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "JPEG2000", "PPM", "TGA", "TIFF", "WEBP", "AVIF", "MPO")
"""What is decoded, whatever a file is called: no format that starts a program (EPS runs Ghostscript)."""
MAX_PIXELS = 178_956_970
"""Of an image unless told otherwise, as Pillow has it: 1.3 GB while it is decoded."""
LARGE = 33_554_432
"""Pixels from which images are decoded one at a time, so that memory does not grow with the number of threads."""
_STRIP = 1 << 22
"""Pixels that are laid on the background at once: whole copies of a large image would be held four times."""
_one_large: AbstractContextManager = Lock()
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation, and what undoes it."""
_ORIENTATION = 0x0112
THUMBNAIL_PX = 240
"""Longest side: the tiles of a latent page at their natural size on most screens, 2 to 8 kB each."""
_THUMBNAIL_QUALITY = 75
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt")
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


def take_turns(lock: AbstractContextManager) -> None:
    """Let large images be decoded one at a time among all processes that were given this lock."""
    global _one_large
    _one_large = lock


def read_picture(content: bytes, name: str, max_pixels: int | None = MAX_PIXELS, *, of_a_run: bool = True) -> Picture:
    """Decode an image file's bytes; `name` is what the WorkError calls it when it is corrupt or no image at all.

    An image of more than `max_pixels` pixels is refused before it is decoded. Of one that is `of_a_run` the error
    names the settings that a run goes on with.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(content, max_pixels)
    except WorkError as error:
        raise WorkError(f"{name}: {error}") from None
    except Image.DecompressionBombError as error:
        advice = ", raise images.max_pixels, or set images.on_error=skip" if of_a_run else ""
        limit = "" if max_pixels is None else f" than {max_pixels:,}"
        raise WorkError(f"{name}: more pixels{limit}, which guards memory ({error}): make it smaller{advice}") from None
    except Exception as error:
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error … for damaged files.
        what = "is empty" if not content else f"cannot be read as an image ({_reason(error)})"
        advice = (
            ". With images.on_error=skip the work goes on from here without it; a file that is repaired "
            "or removed makes another list of files, and the work begins anew"
        )
        raise WorkError(f"{name} {what}{advice if of_a_run else ''}") from None


def _decode(content: bytes, max_pixels: int | None) -> Picture:
    digest = digest_bytes(content)
    try:
        return _open(content, digest, max_pixels)
    except ValueError:
        # Pillow refuses a PNG for the length of its text, which nobody reads here.
        if not content.startswith(_PNG):
            raise
        return _open(_without_text(content), digest, max_pixels)


def _open(content: bytes, digest: str, max_pixels: int | None) -> Picture:
    if max_pixels is None or max_pixels > MAX_PIXELS:
        # Pillow's own limit is a global: it goes where somebody asked for more, and the one below stands in for it.
        Image.MAX_IMAGE_PIXELS = None
    Image.init()
    known = [format_ for format_ in FORMATS if format_ in Image.OPEN]
    with Image.open(io.BytesIO(content), formats=known) as image:
        pixels = image.width * image.height
        if max_pixels is not None and pixels > max_pixels:
            raise Image.DecompressionBombError(f"{pixels} here")
        with _one_large if pixels > LARGE else nullcontext():
            image.load()
            return picture_of(image, digest)


def _without_text(content: bytes) -> bytes:
    """Return a PNG without its chunks of text."""
    kept, at = [_PNG], len(_PNG)
    while at + 8 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        if content[at + 4 : at + 8] not in _PNG_TEXT:
            kept.append(content[at:end])
        at = end
    return b"".join(kept)


def is_upright(image: Image.Image) -> bool:
    """Say whether an image needs no turning."""
    return _orientation(image) not in _UPRIGHT


def picture_of(image: Image.Image, digest: str) -> Picture:
    """Return a decoded image, of whatever mode, as an upright picture, RGB or L."""
    turn = _UPRIGHT.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    image = _as_rgb_or_gray(image)
    return Picture(image, image.width, image.height, digest)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1, upright, where there is none that can be read."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # metadata of any kind of damage are no reason to refuse the picture
        return 1
    return found if isinstance(found, int) else 1


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
        return _on_background(image)
    return image if image.mode in ("RGB", "L") else image.convert("RGB")


def _on_background(image: Image.Image) -> Image.Image:
    """Return a picture with transparency as it shows on the background, strip by strip."""
    shown = Image.new("RGB", image.size)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        shown.paste(Image.alpha_composite(Image.new("RGBA", strip.size, BACKGROUND), strip).convert("RGB"), (0, top))
    return shown


def thumbnail_of(image: Image.Image) -> bytes:
    """Return an image (RGB or L) as a WebP file whose longer side has at most THUMBNAIL_PX pixels."""
    small = image.convert("RGB") if image.mode != "RGB" else image.copy()
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=_THUMBNAIL_QUALITY, method=2)
    return file.getvalue()


def as_address(image: Image.Image, most_px: int, quality: int) -> str:
    """Return a small copy of a picture, a JPEG of at most `most_px` a side, as an address that holds it."""
    small, file = image.convert("RGB"), io.BytesIO()
    small.thumbnail((most_px, most_px))
    small.save(file, "JPEG", quality=quality)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
