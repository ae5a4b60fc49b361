"""A small picture of an image, as reports show it."""

import io

from PIL import Image

PX = 240
"""Longest side: the tiles of a latent page at their natural size on most screens, 2 to 8 kB each."""
QUALITY = 75


def thumbnail_of(image: Image.Image) -> bytes:
    """Return an image (RGB or L) as a WebP file whose longer side has at most PX pixels."""
    small = image.convert("RGB") if image.mode != "RGB" else image.copy()
    small.thumbnail((PX, PX), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=QUALITY, method=2)
    return file.getvalue()
