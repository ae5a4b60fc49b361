"""Hugging Face datasets: from the hub by name and split, streaming or not, or from local Arrow or Parquet files."""

import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from saetool.artifacts import digest_bytes, hub
from saetool.errors import RequestError, SaetoolError, WorkError, first_line
from saetool.images.folder import read_regular, refuse_folder
from saetool.images.picture import Picture, read_picture
from saetool.images.settings import HUB_PREFIX, STREAM_HAS_NO_SAMPLE, ImageSettings
from saetool.images.source import (
    ImageSource,
    Label,
    LabelColumn,
    digest_labels,
    digest_listing,
    known_label,
    split_named,
)
from saetool.images.stream import RowStream
from saetool.progress import say

LABEL_NAMES = ("label", "labels", "class", "category", "fine_label", "coarse_label")
"""Columns taken for labels where a dataset declares no class labels and none are named."""
MOST_LISTED_CLASSES = 64
"""Classes of a column that lists several for an image: each becomes a label of its own, yes or no."""

DATASET_SUFFIXES = {".parquet", ".arrow"}

Listing = list[tuple[str, int]]


def data_files(path: Path) -> list[Path]:
    """Return the Parquet and Arrow files of a data set: the file itself, or those up to three folders down, sorted."""
    if path.is_file():
        return [path]
    found: list[Path] = []
    for folder, subfolders, files in os.walk(path, onerror=refuse_folder, followlinks=True):
        found += [Path(folder, name) for name in files if Path(name).suffix in DATASET_SUFFIXES]
        if len(Path(folder).relative_to(path).parts) >= 2:
            subfolders.clear()
    return sorted(found)


class DatasetSource(ImageSource):
    """Rows of a dataset, by index: the image's path is the row's number."""

    in_memory = False

    def __init__(
        self,
        rows: Any,
        name: str,
        settings: ImageSettings,
        files: Listing,
        root: str | None = None,
        times: str | None = None,
    ):
        import datasets

        self.name = name
        self.root = root
        rows = _plain(rows, name)
        self._image_column = _image_column(rows.features, settings.image_column, name)
        self._features = {column: rows.features[column] for column in _label_columns(rows.features, settings, name)}
        # Undecoded: the file's bytes are wanted for its digest, and decoding is ours.
        rows = rows.cast_column(self._image_column, datasets.Image(decode=False))
        rows = rows.select_columns([self._image_column, *self._features])
        self.sequential = settings.streaming
        self.forkable = not settings.streaming
        self._rows = RowStream(lambda i: iter(rows.skip(i)), name) if settings.streaming else _Table(rows)
        self._chosen = self._choose(rows, settings)
        self.label_columns = [made for column in self._features for made in self._label_columns(column)]
        self._files = files
        self._times = times
        self._max_pixels = settings.max_pixels

    def __len__(self) -> int:
        return len(self._chosen)

    def path(self, i: int) -> str:
        """Return the row's number with leading zeros, so that paths are in the order of rows."""
        return f"{self._chosen[i]:09d}"

    def labels(self, i: int) -> dict[str, Label]:
        """Return the row's labels: class names for class labels, integers and text; numbers for floats."""
        row = self._rows.labels(self._chosen[i], list(self._features))
        return {name: label for column in self._features for name, label in self._labels(column, row[column]).items()}

    def read(self, i: int) -> Picture:
        return read_picture(self._content(i), f"{self.name}, row {self._chosen[i]}", self._max_pixels)

    def digest(self, i: int) -> str:
        return digest_bytes(self._content(i))

    def listing(self) -> str:
        """Return a digest over the files (name, size) that hold the dataset, and how many rows are read."""
        return digest_listing([*self._files, ("", len(self))])

    def times(self) -> str | None:
        return self._times

    def labels_digest(self) -> str | None:
        if not isinstance(self._rows, _Table) or not self._features:
            return None
        names = {column: getattr(feature, "names", None) for column, feature in self._features.items()}
        columns = self._rows.columns(list(self._features))
        return digest_labels({c: [names[c], [values[i] for i in self._chosen]] for c, values in columns.items()})

    def _content(self, i: int) -> bytes:
        row = self._chosen[i]
        return _content(self._rows.row(row)[self._image_column], f"{self.name}, row {row}", self.root)

    def _choose(self, rows: Any, settings: ImageSettings) -> Sequence[int]:
        """Return the numbers of the rows to read: of a sample as many of each class as can be."""
        if settings.streaming:
            return range(_length(rows, settings, self.name))
        column = next((c for c, f in self._features.items() if getattr(f, "names", None)), None)
        if column is None or settings.limit is None:
            return settings.sample.take([None] * len(rows))
        return settings.sample.take(rows.select_columns([column])[:][column])

    def _label_columns(self, column: str) -> list[LabelColumn]:
        feature = self._features[column]
        listed = _listed_names(feature)
        if listed is not None:
            return [LabelColumn(f"{column}.{name}", "category", ["no", "yes"]) for name in listed]
        names = getattr(feature, "names", None)
        if names is not None:
            return [LabelColumn(column, "category", list(names))]
        if str(getattr(feature, "dtype", "")).startswith(("float", "double")):
            return [LabelColumn(column, "number")]
        return [LabelColumn(column, "category", None)]

    def _labels(self, column: str, value: Any) -> dict[str, Label]:
        listed = _listed_names(self._features[column])
        if listed is None:
            return {column: self._label(column, value)}
        if value is None:
            return {f"{column}.{name}": None for name in listed}
        return {f"{column}.{name}": "yes" if i in value else "no" for i, name in enumerate(listed)}

    def _label(self, column: str, value: Any) -> Label:
        names = getattr(self._features[column], "names", None)
        # Hidden labels of a test split are written as −1.
        if value is None or (names is not None and not 0 <= int(value) < len(names)):
            return None
        if names is not None:
            return names[int(value)]
        return known_label(float(value)) if isinstance(value, float) else str(value)


def _plain(rows: Any, name: str) -> Any:
    """Return rows as Python's own values, whatever format they were given; RequestError where they are made anew."""
    if (getattr(rows, "format", None) or {}).get("type") == "custom":
        raise RequestError(
            f"images: {name} has a transform of its own (with_transform), which would not be kept: give the data set "
            "without it, or a list of what it makes"
        )
    return rows.with_format(None)


class _Table:
    """Rows that can be read in any order."""

    def __init__(self, rows: Any):
        self._rows = rows
        self._labels: dict[tuple[str, ...], Any] = {}

    def row(self, i: int) -> dict:
        return self._rows[i]

    def columns(self, columns: list[str]) -> dict[str, list]:
        return self._rows.select_columns(columns)[:]

    def labels(self, i: int, columns: list[str]) -> dict:
        if not columns:
            return {}
        key = tuple(columns)
        if key not in self._labels:
            self._labels[key] = self._rows.select_columns(columns)
        return self._labels[key][i]


def open_hub(settings: ImageSettings) -> DatasetSource:
    """Open `hf/NAME`; RequestError where it has no such split, WorkError where the hub is out of reach."""
    import datasets

    name = settings.source.removeprefix(HUB_PREFIX)
    try:
        with hub.reaching():
            rows = datasets.load_dataset(name, settings.subset, split=settings.split, streaming=settings.streaming)
    except ValueError as error:
        raise RequestError(f"images: {name} cannot be opened: {first_line(error)}") from None
    except Exception as error:
        reason = hub.why_unreachable() or f"{type(error).__name__}: {first_line(error)}"
        raise WorkError(
            f"the dataset {name} could not be fetched ({reason}); without a hub, "
            "name a folder of images or of Parquet files as images.source"
        ) from None
    # The addresses of a hub dataset's files carry its revision; a stream downloads none.
    downloads = getattr(rows.info, "download_checksums", None) or {}
    files = [(address, facts.get("num_bytes") or 0) for address, facts in sorted(downloads.items())]
    return DatasetSource(rows, settings.source, settings, [(f"{name} {settings.subset} {settings.split}", 0), *files])


def open_object(rows: Any, settings: ImageSettings, name: str) -> DatasetSource:
    """Open a Dataset, an IterableDataset, or one split of a DatasetDict, that is open already."""
    import datasets

    if isinstance(rows, datasets.DatasetDict | datasets.IterableDatasetDict):
        rows = _split_among(rows, settings.split, name)
    if isinstance(rows, datasets.IterableDataset):
        if settings.limit is not None:
            raise RequestError(STREAM_HAS_NO_SAMPLE)
        settings = settings.model_copy(update={"streaming": True})
    fingerprint = getattr(rows, "_fingerprint", None) or name
    source = DatasetSource(rows, name, settings, [(fingerprint, 0)])
    source.in_memory = True
    return source


def open_local(path: Path, settings: ImageSettings) -> DatasetSource:
    """Open a folder that `save_to_disk` wrote, a folder of Parquet or Arrow files, or one such file."""
    import datasets

    try:
        saved = path.is_dir() and any((path / mark).is_file() for mark in ("state.json", "dataset_dict.json"))
        rows = datasets.load_from_disk(str(path)) if saved else _from_files(path, settings)
    except (SaetoolError, MemoryError):
        raise
    except Exception as error:  # damaged files fail in as many ways as the library has readers
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise WorkError(f"{path} cannot be read as a dataset ({reason}); fetch or write it again") from None
    if isinstance(rows, datasets.DatasetDict):
        rows = _split_among(rows, settings.split, path)
    elif saved:
        _require_split(path, settings.split, re.match(r"\w*", str(rows.split or ""))[0])  # pyright: ignore[reportOptionalSubscript]
    if settings.streaming and isinstance(rows, datasets.Dataset):
        rows = rows.to_iterable_dataset()
    found = [(str(file.relative_to(path)), file.stat()) for file in data_files(path)]
    files = [(settings.split, 0), *((name, facts.st_size) for name, facts in found)]
    times = digest_listing((name, str(facts.st_mtime_ns)) for name, facts in found)
    root = path.resolve()
    return DatasetSource(rows, root.name, settings, files, root=str(root), times=times)


def _split_among(splits: Any, asked: str, name: object) -> Any:
    if asked not in splits:
        raise RequestError(f"images.split: {name} has {', '.join(map(str, splits))}, not {asked!r}")
    return splits[asked]


def _require_split(path: Path, asked: str, found: str) -> None:
    """Raise RequestError where one saved split is another than was asked for; one without a name is `train`."""
    if (found or "train") != asked:
        has = f"is the split {found!r}" if found else "says no split, so it can only be asked for as 'train'"
        raise RequestError(f"images.split: {path} {has}, not {asked!r}")


def _from_files(path: Path, settings: ImageSettings) -> Any:
    import datasets

    files = data_files(path)
    by_kind = {kind: [f for f in files if f.suffix == f".{kind}"] for kind in ("parquet", "arrow")}
    kind = "parquet" if by_kind["parquet"] else "arrow"
    chosen = [str(file) for file in _files_of_split(path, by_kind[kind], settings)]
    return datasets.load_dataset(kind, data_files={settings.split: chosen}, split=settings.split)


def _files_of_split(path: Path, files: list[Path], settings: ImageSettings) -> list[Path]:
    """Return the files whose folders or names say the split; all of them where none says any and `train` is asked for.

    Raises RequestError where the files are another split's, naming those there are.
    """
    if path.is_file() and settings.split == "train":
        return files  # named outright
    asked = split_named(settings.split) or settings.split
    if settings.subset is not None:
        files = [file for file in files if settings.subset in file.relative_to(path).parts] or files
    splits = {file: _split_of(path, file, settings.split) for file in files}
    if not any(splits.values()) and asked == "train":
        return files
    chosen = [file for file in files if splits[file] == asked]
    if not chosen:
        named = ", ".join(sorted({split for split in splits.values() if split})) or "no split"
        raise RequestError(f"images.split: the files of {path} name {named}, not {settings.split!r}")
    return chosen


def _split_of(path: Path, file: Path, asked: str) -> str | None:
    """Return the split that a file's name or the folders above it say: of the usual ones, or the one asked for."""
    parts = file.relative_to(path).parts if path != file else (file.name,)
    for part in reversed(parts):
        if re.split(r"[-_.]", part, maxsplit=1)[0] == asked:
            return split_named(asked) or asked
        if split_named(part):
            return split_named(part)
    return None


def _image_column(features: Any, named: str | None, name: str) -> str:
    import datasets

    if features is None:
        raise RequestError(f"images: {name} does not say what its columns hold")
    if named is not None:
        if named not in features:
            raise RequestError(f"images.image_column: {name} has no column {named!r}, but {', '.join(features)}")
        if not _may_hold_pictures(features[named]):
            raise RequestError(f"images.image_column: the column {named!r} of {name} holds no pictures")
        return named
    found = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if not found:
        # Parquet files written without the library hold {"bytes", "path"} in plain columns.
        found = [column for column, feature in features.items() if isinstance(feature, dict) and "bytes" in feature]
    if len(found) != 1:
        columns = f"several image columns ({', '.join(found)})" if found else f"no images in {', '.join(features)}"
        raise RequestError(f"images: {name} has {columns}; name one as images.image_column")
    return found[0]


def _may_hold_pictures(feature: Any) -> bool:
    import datasets

    return (
        isinstance(feature, datasets.Image)
        or (isinstance(feature, dict) and "bytes" in feature)
        or str(getattr(feature, "dtype", "")).endswith("binary")
    )


def _listed_names(feature: Any) -> list[str] | None:
    """Return the classes of a column that lists several for an image, None for any other."""
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) and feature else None)
    return getattr(inner, "names", None)


def _label_columns(features: Any, settings: ImageSettings, name: str) -> list[str]:
    import datasets

    if settings.label_columns is not None:
        for column in settings.label_columns:
            if column not in features:
                raise RequestError(f"images.label_columns: {name} has no column {column!r}, but {', '.join(features)}")
            feature = features[column]
            if not isinstance(feature, datasets.Value | datasets.ClassLabel) and _listed_names(feature) is None:
                raise RequestError(
                    f"images.label_columns: the column {column!r} of {name} holds no labels (a class, text or a number)"
                )
        return settings.label_columns
    listed = {column: names for column, f in features.items() if (names := _listed_names(f)) is not None}
    declared = [column for column, f in features.items() if isinstance(f, datasets.ClassLabel) or column in listed]
    long = [column for column, names in listed.items() if len(names) > MOST_LISTED_CLASSES]
    if long:
        say(f"{name}: {', '.join(long)} lists more than {MOST_LISTED_CLASSES} classes; name it in images.label_columns")
    declared = [column for column in declared if column not in long]
    return declared or [column for column in LABEL_NAMES if isinstance(features.get(column), datasets.Value)]


def _length(rows: Any, settings: ImageSettings, name: str) -> int:
    """Return how many rows of a stream are read; RequestError where nobody says."""
    split = (getattr(rows.info, "splits", None) or {}).get(settings.split)
    declared = getattr(split, "num_examples", None)
    if declared is None and settings.first is None:
        raise RequestError(f"images.first: {name} does not say how many images it streams; give a number")
    return min(number for number in (declared, settings.first) if number is not None)


def _content(image: Any, name: str, root: str | None) -> bytes:
    if isinstance(image, dict) and image.get("bytes") is not None:
        return image["bytes"]
    if isinstance(image, dict) and image.get("path"):
        file = _below(image["path"], name, root)
        try:
            return read_regular(file)
        except OSError as error:
            raise WorkError(f"{name}: {file} cannot be read: {error.strerror}") from None
    if isinstance(image, bytes):
        return image
    if isinstance(image, Image.Image):
        file = io.BytesIO()
        image.save(file, "png")
        return file.getvalue()
    raise WorkError(f"{name} holds no image ({type(image).__name__})")


def _below(path: str, name: str, root: str | None) -> Path:
    """Return where a path that stands in the data leads; WorkError where that is not among the data themselves."""
    import datasets.config

    places = [Path(root)] if root else [datasets.config.HF_DATASETS_CACHE, datasets.config.HF_CACHE_HOME]
    places = [Path(place).resolve() for place in places]
    places = [place if place.is_dir() else place.parent for place in places]
    if "\0" in path:
        raise WorkError(f"{name} names a picture {path!r}, which no file can be called")
    file = (places[0] / path).resolve()
    if not any(file.is_relative_to(place) for place in places):
        raise WorkError(f"{name} names a picture outside of the data, {path!r}, which is not read")
    return file
