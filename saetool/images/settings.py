"""The `images` section of a config."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from saetool.errors import RequestError
from saetool.images.registry import SOURCES
from saetool.settings import Settings

if TYPE_CHECKING:
    from saetool.images.sampling import Sample

HUB_PREFIX = "hf/"
"""Before the name of a dataset on the Hugging Face hub; a folder of that name is `./hf/…`."""


NAMED = ("elpv", "digits", "mnist")
"""Sets that come with an installed package."""
STREAM_HAS_NO_SAMPLE = (
    "images.limit: takes a sample of all images, and a stream is read from its start: set images.first"
)


def is_named(source: str) -> bool:
    """Say whether `images.source` is a name that means the same everywhere, no place on this machine."""
    return source in NAMED or source.startswith(HUB_PREFIX) or SOURCES.find(source)


def is_section(given: object) -> bool:
    """Say whether something is settings or a mapping of their keys; Hugging Face's mapping of splits is none."""
    return isinstance(given, Settings | Mapping) and type(given).__module__.partition(".")[0] != "datasets"


class Grouping(Settings):
    """Which images belong together: cells of one module, frames of one video. Exactly one of the rules."""

    column: str | None = None
    """The label column whose value names the group."""
    folder: PositiveInt | None = None
    """The folder at this level below the root, counted from 1."""
    pattern: str | None = None
    """A regular expression, searched in the path: its first group, or all it matches, names the group."""
    block: PositiveInt | None = None
    """So many neighbors in the order of the images, a twentieth of all at most: a stand-in where nothing says what
    belongs together."""

    @model_validator(mode="after")
    def _one_rule(self):
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of column, folder, pattern and block, not {' and '.join(given) or 'none'}"
            )
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from None
        return self

    def rule(self) -> dict[str, Any]:
        """Return the rule that is given, as JSON types."""
        return self.model_dump(mode="json", exclude_none=True)


class ImageSettings(Settings):
    """Which images, and what happens at one that cannot be read."""

    source: str = "elpv"
    """`elpv`, `digits`, `mnist`, `hf/NAME` (a dataset on the Hugging Face hub), a name that `saetool.register_source`
    gave, or the path of a folder of images, of a folder of Parquet, Arrow or tar files (webdataset), or of one such
    file, or the address of a folder of images that an installed fsspec driver reads: `s3://bucket/images`, `file://…`."""
    limit: int | None = Field(default=None, ge=1)
    """N images only: drawn evenly from the whole listing, of several classes as many of each as can be."""
    first: int | None = Field(default=None, ge=1)
    """The first N images instead of a sample; what a stream can be asked for."""
    seed: int = Field(default=0, ge=0)
    """Of the sample that `limit` takes."""
    labels: str | None = None
    """A CSV or Parquet file with a row an image, which one column names by path or file name: labels of a folder."""
    max_pixels: int | None = Field(default=178_956_970, ge=1)
    """An image of more pixels is refused before it is decoded: it guards memory. null: no limit."""
    on_error: Literal["fail", "skip"] = "fail"
    """At an image that cannot be read: stop and name it, or record it and go on."""
    decode: Literal["pillow", "gpu"] = "pillow"
    """What decodes and resizes for caching: Pillow, or the GPU through torchvision (nvJPEG), whose pixels are near
    Pillow's: another store, which says how near."""
    group: Grouping | None = None
    """Images that depend on each other are held out of training, and drawn for intervals, as one. null: each alone."""
    split: str = "train"
    """Of a dataset with splits."""
    subset: str | None = None
    """The configuration of a hub dataset that has several."""
    streaming: bool = False
    """Read a hub dataset as it comes instead of downloading it first."""
    image_column: str | None = None
    """Of a dataset; null: the only one that holds images."""
    label_columns: list[str] | None = None
    """Of a dataset or of the table `labels`; null: every class label or a column named like one; of a table, all that
    can be labels."""

    @model_validator(mode="after")
    def _one_choice_of_images(self) -> "ImageSettings":
        if self.limit is not None and self.first is not None:
            raise ValueError("give limit (an even sample) or first (the first ones), not both")
        if self.limit is not None and self.streaming:
            raise ValueError(STREAM_HAS_NO_SAMPLE.removeprefix("images."))
        return self

    @property
    def sample(self) -> "Sample":
        """Which images of the listing are taken."""
        from saetool.images.sampling import Sample

        return Sample(self.limit, self.first, self.seed)

    def content(self) -> dict[str, Any]:
        """Return what determines the pictures, as JSON types; `source` is as given.

        What happens at a corrupt or an immense image is no part of it: work that stopped at one resumes. Nor is which
        images belong together: that is the training's.
        """
        usual = {"decode"} if self.decode == "pillow" else set()
        usual |= {name for name in ("first", "labels") if getattr(self, name) is None}
        usual |= {"seed"} if self.limit is None else set()
        content = self.model_dump(mode="json", exclude={"on_error", "max_pixels", "group"} | usual)
        return content | ({} if self.labels is None else {"labels": _digest(self.labels)})


def _digest(file: str) -> str:
    """Return the digest of a table of labels: what it says, not where it lies."""
    from saetool.artifacts import digest_bytes

    try:
        return digest_bytes(Path(file).expanduser().read_bytes())
    except OSError as error:
        raise RequestError(f"images.labels: {file} cannot be read: {error.strerror}") from None
