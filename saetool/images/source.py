"""What every source of images answers."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, Protocol

import xxhash

from saetool.errors import WorkError
from saetool.images.picture import Picture

Label = str | float | None

_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation", "dev"), "validation"
)


def split_named(name: str) -> str | None:
    """Return which split a folder's name, or the beginning of a file's, says: train, validation or test."""
    return _SPLITS.get(re.split(r"[-_.\d]", name.lower(), maxsplit=1)[0])


def known_label(value: Any) -> Label:
    """Return a label as it can be stored: NaN and infinities, which say nothing, become None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def stored_label(value: Any, name: str, kind: str, classes: Sequence[str] | None) -> Label:
    """Return a label as the column `name` stores it; ValueError where it is of another kind, or no class of it."""
    if value is None:
        return None
    if kind == "number":
        if not isinstance(value, Real) or isinstance(value, bool):
            raise ValueError(f"{name} is a column of numbers, and {value!r} is none")
        return known_label(float(value))
    if not isinstance(value, str):
        raise ValueError(f"{name} is a column of classes, which are text; {value!r} is not: str() it")
    require_text(value)
    if classes and value not in classes:
        raise ValueError(f"{name} is {value!r}, which is none of its classes ({', '.join(classes[:8])})")
    return value


def require_text(value: str) -> None:
    """Raise ValueError for text that no table can hold: with half of a character."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{value!r} is no text that a table can hold (half of a character)") from None


class SourceError(WorkError):
    """The source itself failed, not one image of it: nothing that `on_error: skip` may pass over."""


@dataclass(frozen=True)
class LabelColumn:
    """A label that every image may carry: a class by name, or a number."""

    name: str
    kind: Literal["category", "number"]
    classes: list[str] | None = None
    """The names in their order, where they are known before reading."""


class ImageSource(Protocol):
    """Images in a fixed order (by the UTF-8 bytes of their paths), each read on its own, from any thread.

    What is inherited is right where a source knows no more than it must. One whose attribute `forkable` is true may be
    read in forked processes too: nothing that it has open is shared.
    """

    name: str
    label_columns: list[LabelColumn]
    root: str | None = None
    """Where the images are; it says nothing about what they are."""
    sequential: bool = False
    """Whether images come in order and going back costs reading again from the first: a stream."""
    on_error: Literal["fail", "skip"] | None = None
    """What was asked for at an image that cannot be read; None: what whoever reads it asks for."""
    attribution: str | None = None
    """What must stand beside a picture that is shown, where its license asks for it."""

    def __len__(self) -> int: ...

    def path(self, i: int) -> str:
        """Return image `i`'s path below the root, with forward slashes, or its index in a dataset."""
        ...

    def size_hint(self, i: int) -> int:
        """Return the bytes of image `i` on disk; 0 where that is not known without reading it."""
        return 0

    def labels(self, i: int) -> dict[str, Label]:
        """Return image `i`'s label in each column; None where it has none."""
        ...

    def read(self, i: int) -> Picture:
        """Decode image `i`; WorkError names the file when it is corrupt, SourceError when no more can be read."""
        ...

    def listing(self) -> str:
        """Return a digest over what there is to read, cheap: nothing is opened."""
        ...

    def times(self) -> str | None:
        """Return a digest over when each was last written; None where that is not known."""
        return None

    def labels_digest(self) -> str | None:
        """Return a digest over all labels; None where only reading every image tells them."""
        return None

    def digest(self, i: int) -> str:
        """Return image `i`'s digest as `read` gives it, perhaps without decoding; WorkError where it cannot be read."""
        return self.read(i).digest


def digest_labels(columns: Mapping[str, Sequence[Any]]) -> str:
    """Return a digest over columns of labels and their names."""
    return "xxh3-128:" + xxhash.xxh3_128(json.dumps(columns, default=str).encode()).hexdigest()


def digest_listing(entries: Iterable[tuple[str, int | str]]) -> str:
    """Return `xxh3-128:…` over (path, size) pairs, or (path, time), in their order."""
    state = xxhash.xxh3_128()
    for path, fact in entries:
        state.update(f"{path}\0{fact}\n".encode("utf-8", "surrogateescape"))
    return f"xxh3-128:{state.hexdigest()}"
