"""The pictures behind an index or a store: found in the image source by path, and only as they were cached."""

import pyarrow as pa
from PIL import Image

from saetool.errors import RequestError
from saetool.images import ImageSource


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
