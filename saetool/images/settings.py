"""The `images` section of a config."""

import re
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from saetool.settings import Settings

HUB_PREFIX = "hf/"
"""Before the name of a dataset on the Hugging Face hub; a folder of that name is `./hf/…`."""


def is_named(source: str) -> bool:
    """Say whether `images.source` is a name that means the same everywhere, no place on this machine."""
    return source in ("elpv", "digits", "mnist") or source.startswith(HUB_PREFIX)


class Grouping(Settings):
    """Which images belong together: cells of one module, frames of one video. Exactly one of the rules."""

    column: str | None = None
    """The label column whose value names the group."""
    folder: PositiveInt | None = None
    """The folder at this level below the root, counted from 1."""
    pattern: str | None = None
    """A regular expression, searched in the path: its first group, or all it matches, names the group."""
    block: PositiveInt | None = None
    """So many neighbors in the order of the images: a stand-in where nothing says what belongs together."""

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
    """`elpv`, `digits`, `mnist`, `hf/NAME` (a dataset on the Hugging Face hub), or the path of a folder of images, of a
    folder of Parquet or Arrow files, or of one such file, or the address of a folder of images that an installed fsspec
    driver reads: `s3://bucket/images`, `file://…`."""
    limit: int | None = Field(default=None, ge=1)
    """N images only: the first, or of several classes as many of each, their first ones."""
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
    """Of a dataset; null: every class label, or a column named like one."""

    def content(self) -> dict[str, Any]:
        """Return what determines the pictures, as JSON types; `source` is as given.

        What happens at a corrupt or an immense image is no part of it: work that stopped at one resumes. Nor is which
        images belong together: that is the training's.
        """
        usual = {"decode"} if self.decode == "pillow" else set()
        return self.model_dump(mode="json", exclude={"on_error", "max_pixels", "group"} | usual)
