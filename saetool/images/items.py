"""Pictures that something indexable holds: a torch Dataset, a list, an array. What an item may be, and its labels."""

import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from saetool.artifacts import digest_bytes
from saetool.artifacts.manifest import digest_json
from saetool.errors import RequestError, SaetoolError, WorkError, first_line
from saetool.images.folder import read_regular
from saetool.images.labels import TAKEN
from saetool.images.picture import MAX_PIXELS, Picture, picture_of, picture_of_array, read_picture
from saetool.images.sampling import ALL, Sample
from saetool.images.source import ImageSource, Label, LabelColumn, digest_labels, digest_listing, known_label

PICTURE_KEYS = ("image", "img", "picture", "pixel_values", "jpg", "jpeg", "png", "webp")
"""What an item that is a mapping calls its picture, where not exactly one of its values is one."""
PATH_KEYS = ("path", "file_name", "__key__")
"""What it calls the picture's name."""
PROBED = 8
"""Items of a data set, spread over the whole, that show what labels are and stand for all in the listing's digest."""
_KEPT = 32
"""Items kept after they were read: an image's picture, labels and path are asked for one after another."""
_ROUNDING = 1e-3
"""How far beyond [0, 1] a resized picture of floats may lie."""


@dataclass(frozen=True)
class Item:
    """What an item of a data set holds."""

    picture: Picture
    labels: dict[str, Any]
    path: str | None = None


class ItemReader(ImageSource):
    """What a source answers whose `_item(i)` gives items and whose `_columns` say what their labels are."""

    forkable = False
    """Nobody knows what a data set has open."""
    in_memory = True
    _columns: "LabelKinds"
    _listing: str

    def _item(self, i: int) -> Item:
        raise NotImplementedError

    def labels(self, i: int) -> dict[str, Label]:
        """Return the item's labels: class names for text and whole numbers, numbers for floats."""
        return self._columns.labels(self._item(i).labels)

    def read(self, i: int) -> Picture:
        return self._item(i).picture

    def listing(self) -> str:
        """Return a digest over the content of a list's items; of a data set's over their number and some of them."""
        return self._listing


class ItemsSource(ItemReader):
    """The items of something with a length and an index, in its own order; each is read as it is asked for.

    An item is a picture, (picture, label, …) or a mapping of names to a picture and labels. A picture is a PIL image,
    an array or tensor (uint8, or floats from 0 to 1, channels first or last), an image file's bytes, or its path.
    """

    def __init__(self, items: Any, name: str, sample: Sample = ALL, max_pixels: int | None = MAX_PIXELS):
        self.name = name
        self._items, self._max_pixels = items, max_pixels
        self._lock = threading.RLock()
        self._kept: OrderedDict[int, Item] = OrderedDict()
        self._chosen = sample.take(_classes_of(items))
        if not self._chosen:
            raise RequestError(f"images: {name} holds no pictures")
        shown = self._shown()
        names = getattr(items, "classes", None)
        of_all = self._opened() if isinstance(items, list | tuple) else None
        self._columns = LabelKinds(of_all or shown, names if _are_names(names) else None)
        self.label_columns = self._columns.columns
        self._listing = self._digest(shown) if of_all is None else digest_json([item.facts() for item in of_all])

    def __len__(self) -> int:
        return len(self._chosen)

    def path(self, i: int) -> str:
        """Return the item's own name where it has one, else its index with leading zeros."""
        own = self._item(i).path if self._columns.named else None
        return own or f"{self._chosen[i]:09d}"

    def _shown(self) -> list[Item]:
        """Return some items, those that can be read; RequestError where none of them can: nothing here is a picture."""
        found, problem = [], None
        for i in _spread(len(self._chosen)):
            try:
                found.append(self._item(i))
            except WorkError as error:
                problem = problem or error
        if problem is not None and not found:
            raise RequestError(str(problem))
        return found

    def _opened(self) -> "list[Opened]":
        """Return what each item of a list holds, no picture decoded; RequestError where two have one name."""
        found = []
        for place in self._chosen:
            try:
                found.append(opened(self._items[place], f"{self.name}, item {place}"))
            except WorkError:  # `on_error` says what is done about it
                found.append(Opened(None, {}, None))
        counted = Counter(item.path for item in found if item.path is not None)
        twice = next((path for path, count in counted.items() if count > 1), None)
        if twice is not None and all(item.path is not None for item in found):
            raise RequestError(f"images: {self.name} names {twice!r} twice; an image is known by its path")
        return found

    def labels_digest(self) -> str | None:
        known = _classes_of(self._items)
        return digest_labels({"label": known}) if any(label is not None for label in known) else None

    def _digest(self, shown: Sequence[Item]) -> str:
        if hasattr(self._items, "__array__"):
            whole = np.ascontiguousarray(self._items).reshape(-1).view(np.uint8)
            return digest_listing([(digest_bytes(whole.data), len(self)), *((str(i), 0) for i in self._chosen)])
        self._kept.clear()
        if self._shown()[0].picture.digest != shown[0].picture.digest:
            raise RequestError(
                f"images: {self.name} gives another picture whenever its first item is read: leave random augmentation "
                "out of its transform, so that a report can show what was cached"
            )
        return digest_listing([(item.picture.digest, len(self)) for item in shown])

    def _item(self, i: int) -> Item:
        place = self._chosen[i]
        with self._lock:  # a data set is made for one thread at a time
            if place not in self._kept:
                self._kept[place] = self._read(place)
                if len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            return self._kept[place]

    def _read(self, place: int) -> Item:
        name = f"{self.name}, item {place}"
        try:
            given = self._items[place]
        except (SaetoolError, MemoryError):
            raise
        except Exception as error:  # another's code: it has its own errors
            raise WorkError(f"{name} cannot be read: {type(error).__name__}: {first_line(error)}") from None
        return read_item(given, name, self._max_pixels)


class LabelKinds:
    """What the labels of items are, as some of them show: names, kinds, and the names of classes where known."""

    def __init__(self, shown: "Sequence[Item | Opened]", class_names: Sequence[str] | None):
        self._class_names = class_names
        self.named = all(item.path is not None for item in shown)
        # Items of detection sets have an id, a width and a height of their own, which are no labels.
        names = dict.fromkeys(name for item in shown for name in item.labels if name not in TAKEN)
        self.columns = [self._column(name, [item.labels.get(name) for item in shown]) for name in names]

    def labels(self, given: Mapping[str, Any]) -> dict[str, Label]:
        return {column.name: self._label(given.get(column.name), column) for column in self.columns}

    def _column(self, name: str, values: Sequence[Any]) -> LabelColumn:
        if any(isinstance(value, float) for value in values):
            return LabelColumn(name, "number")
        whole = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
        known = self._class_names
        if known and name == "label" and whole and all(-1 <= value < len(known) for value in whole):
            return LabelColumn(name, "category", list(known))
        return LabelColumn(name, "category", None)

    @staticmethod
    def _label(value: Any, column: LabelColumn) -> Label:
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            return None
        if column.kind == "number":
            return float(value) if isinstance(value, int) else value
        if isinstance(value, bool):
            return "yes" if value else "no"
        if column.classes and isinstance(value, int):  # hidden labels of a test split are written as −1
            return column.classes[value] if 0 <= value < len(column.classes) else None
        return str(value) if isinstance(value, int) else value


@dataclass(frozen=True)
class Opened:
    """An item's parts: what stands for its picture, as it was given, and what else the item says."""

    picture: Any
    labels: dict[str, Any]
    path: str | None

    def facts(self) -> list[Any]:
        """Return what tells this item from another one, as JSON types; of a file its name and size."""
        return [_content_of(self.picture), {key: known_label(value) for key, value in self.labels.items()}, self.path]


def _content_of(picture: Any) -> Any:
    try:
        return _digest_of(picture)
    except (OSError, SyntaxError, TypeError, ValueError, RuntimeError):  # reading it says so, with its name
        return type(picture).__name__


def _digest_of(picture: Any) -> Any:
    if isinstance(picture, Picture):
        return picture.digest
    if isinstance(picture, str | Path):
        file = Path(picture).expanduser()
        return [str(picture), file.stat().st_size if file.is_file() else None]
    if isinstance(picture, bytes):
        return digest_bytes(picture)
    if isinstance(picture, Image.Image):
        return digest_of_pixels(picture)
    if not hasattr(picture, "__array__"):
        return type(picture).__name__
    array = np.ascontiguousarray(picture.detach().cpu() if hasattr(picture, "detach") else picture)
    return [str(array.dtype), list(array.shape), digest_bytes(array.reshape(-1).view(np.uint8).data)]


def digest_of_pixels(image: Image.Image) -> str:
    """Return the digest of a PIL image's pixels."""
    return digest_bytes(f"{image.mode} {image.size} ".encode() + image.tobytes())


def read_item(given: Any, name: str, max_pixels: int | None = MAX_PIXELS) -> Item:
    """Return what an item holds; WorkError says what was found where there is no picture in it."""
    parts = opened(given, name)
    return Item(to_picture(parts.picture, name, max_pixels), parts.labels, parts.path)


def opened(given: Any, name: str) -> Opened:
    """Return an item's parts; WorkError where nothing of a mapping is a picture, or several things are."""
    labels: dict[str, Any] = {}
    path = None
    if isinstance(given, Mapping):
        key = _picture_key(given, name)
        found = given[key]
        path = next((str(given[k]) for k in PATH_KEYS if k != key and isinstance(given.get(k), str | Path)), None)
        labels = {str(k): v for k, v in given.items() if k != key and k not in PATH_KEYS}
    elif isinstance(given, tuple | list):
        found, *rest = given or (None,)
        for number, value in enumerate(rest, 1):
            more = value if isinstance(value, Mapping) else {"label" if number == 1 else f"label_{number}": value}
            labels |= {str(k): v for k, v in more.items()}
    else:
        found = given
    known = {key: scalar for key, value in labels.items() if (scalar := _scalar(value)) is not _NONE}
    return Opened(found, known, path)


def to_picture(value: Any, name: str, max_pixels: int | None = MAX_PIXELS) -> Picture:
    """Return a picture of what may be one; WorkError names it and says what was found where it is none."""
    if isinstance(value, Picture):
        return value
    if isinstance(value, str | Path):
        file = Path(value).expanduser()
        try:
            return read_picture(read_regular(file), str(file), max_pixels)
        except OSError as error:
            raise WorkError(f"{name}: {file} cannot be read: {error.strerror}") from None
    if isinstance(value, bytes):
        return read_picture(value, name, max_pixels)
    if isinstance(value, Image.Image):
        return picture_of(value, digest_of_pixels(value))
    if not hasattr(value, "__array__"):
        raise WorkError(
            f"{name} holds no picture but {type(value).__name__}: give a PIL image, an array or tensor, a file's bytes "
            "or its path"
        )
    first = hasattr(value, "detach")  # torch's images have their channels first
    try:
        array = np.asarray(value.detach().cpu() if first else value)
    except (RuntimeError, TypeError, ValueError) as error:  # a tensor without values, of a type that numpy has not
        raise WorkError(f"{name} cannot be read as an array ({first_line(error)})") from None
    return picture_of_array(_eight_bits(_channels_last(array, name, first), name))


def _channels_last(array: np.ndarray, name: str, first: bool) -> np.ndarray:
    channels = (1, 3, 4)
    if array.ndim == 2:
        return array
    if array.ndim == 3:
        at_ends = array.shape[0] in channels, array.shape[-1] in channels
        if any(at_ends):
            moved = np.moveaxis(array, 0, -1) if at_ends == (True, False) or (first and at_ends[0]) else array
            return moved[..., 0] if moved.shape[-1] == 1 else moved
    raise WorkError(f"{name} has the shape {list(array.shape)}: a picture is [height, width] or has 1, 3 or 4 channels")


def _eight_bits(array: np.ndarray, name: str) -> np.ndarray:
    if array.size == 0:
        raise WorkError(f"{name} has no pixels (shape {list(array.shape)})")
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array * np.uint8(255)
    if array.dtype == np.uint16:
        return (array // 257).astype(np.uint8)
    low, high = float(array.min()), float(array.max())
    if array.dtype.kind == "f" and low >= -_ROUNDING and high <= 1 + _ROUNDING:
        return np.rint(array.astype(np.float64).clip(0, 1) * 255).astype(np.uint8)
    if array.dtype.kind in "iu" and low >= 0 and high <= 255:
        return array.astype(np.uint8)
    raise WorkError(
        f"{name} has {array.dtype} values from {low:.4g} to {high:.4g}: a picture has uint8 or floats from 0 to 1; "
        "take normalization out of the data set's transform, since the backbone does its own"
    )


def _picture_key(given: Mapping, name: str) -> Any:
    named = [key for key in PICTURE_KEYS if key in given]
    if named:
        return named[0]
    found = [key for key, value in given.items() if _may_be_picture(value)]
    if len(found) != 1:
        keys, count = ", ".join(map(str, given)), "several pictures" if found else "no picture"
        raise WorkError(f"{name} has {count} under {keys}: call the picture image")
    return found[0]


def _may_be_picture(value: Any) -> bool:
    return isinstance(value, Image.Image | bytes | Picture) or len(getattr(value, "shape", ())) in (2, 3)


_NONE = object()


def _scalar(value: Any) -> Any:
    """Return a label as Python's own text, number or None; _NONE for what is none of them."""
    if hasattr(value, "item") and getattr(value, "size", None) is not None:
        count = value.numel() if hasattr(value, "numel") else value.size
        value = value.item() if count == 1 else _NONE
    return value if value is None or isinstance(value, str | bool | int | float) else _NONE


def _classes_of(items: Any) -> Sequence[Any]:
    """Return each item's class where that is known without reading it, else one class for all."""
    n = len(items)
    targets = getattr(items, "targets", None)
    if targets is not None and len(targets) == n:
        return [_scalar(target) for target in targets]
    if isinstance(items, list | tuple) and all(isinstance(item, tuple) and len(item) > 1 for item in items):
        found = [_scalar(item[1]) for item in items]
        return found if not any(isinstance(label, float) for label in found) else [None] * n
    return [None] * n


def _are_names(names: Any) -> bool:
    return isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)


def _spread(n: int) -> Iterator[int]:
    """Yield up to PROBED places from 0 to n − 1, evenly spread, the first and the last among them."""
    yield from dict.fromkeys(place * (n - 1) // max(1, min(PROBED, n) - 1) for place in range(min(PROBED, n)))
