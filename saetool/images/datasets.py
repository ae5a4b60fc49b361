"""Hugging Face datasets: from the hub by name and split, streaming or not, or from local Arrow or Parquet files."""

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from saetool import hub
from saetool.errors import RequestError, WorkError, first_line
from saetool.images.picture import Picture, read_picture
from saetool.images.settings import HUB_PREFIX, ImageSettings
from saetool.images.source import Label, LabelColumn, SourceError, digest_listing

LABEL_NAMES = ("label", "labels", "class", "category", "fine_label", "coarse_label")
"""Columns taken for labels where a dataset declares no class labels and none are named."""
STREAM_BUFFER = 1024
"""Examples of a stream kept after they were read: threads ask a little out of order, labels are asked for later."""


DATASET_SUFFIXES = {".parquet", ".arrow"}

Listing = list[tuple[str, int]]


class DatasetSource:
    """Rows of a dataset, by index: the image's path is the row's number."""

    attribution: str | None = None

    def __init__(self, rows: Any, name: str, settings: ImageSettings, files: Listing, root: str | None = None):
        import datasets

        self.name = name
        self.root = root
        self._image_column = _image_column(rows.features, settings.image_column, name)
        self._features = {column: rows.features[column] for column in _label_columns(rows.features, settings, name)}
        # Undecoded: the file's bytes are wanted for its digest, and decoding is ours.
        rows = rows.cast_column(self._image_column, datasets.Image(decode=False))
        rows = rows.select_columns([self._image_column, *self._features])
        self.sequential = settings.streaming
        self._rows = _Stream(rows, name) if settings.streaming else _Table(rows)
        self._length = _length(rows, settings, name)
        self.label_columns = [self._label_column(column) for column in self._features]
        self._files = files

    def __len__(self) -> int:
        return self._length

    def path(self, i: int) -> str:
        """Return the row's number with leading zeros, so that paths are in the order of rows."""
        return f"{i:09d}"

    def size_hint(self, i: int) -> int:
        """Return 0: a dataset does not say before it is read."""
        return 0

    def labels(self, i: int) -> dict[str, Label]:
        """Return the row's labels: class names for class labels, integers and text; numbers for floats."""
        row = self._rows.labels(i, list(self._features))
        return {column: self._label(column, row[column]) for column in self._features}

    def read(self, i: int) -> Picture:
        """Decode the row's image; WorkError names the row when it is corrupt."""
        name = f"{self.name}, row {i}"
        image = self._rows.row(i)[self._image_column]
        return read_picture(_content(image, name), name)

    def listing(self) -> str:
        """Return a digest over the files (name, size) that hold the dataset, and how many rows are read."""
        return digest_listing([*self._files, ("", self._length)])

    def _label_column(self, column: str) -> LabelColumn:
        feature = self._features[column]
        names = getattr(feature, "names", None)
        if names is not None:
            return LabelColumn(column, "category", list(names))
        if str(getattr(feature, "dtype", "")).startswith(("float", "double")):
            return LabelColumn(column, "number")
        return LabelColumn(column, "category", None)

    def _label(self, column: str, value: Any) -> Label:
        names = getattr(self._features[column], "names", None)
        # Hidden labels of a test split are written as −1.
        if value is None or (names is not None and not 0 <= int(value) < len(names)):
            return None
        if names is not None:
            return names[int(value)]
        return float(value) if isinstance(value, float) else str(value)


class _Table:
    """Rows that can be read in any order."""

    def __init__(self, rows: Any):
        self._rows = rows
        self._labels: dict[tuple[str, ...], Any] = {}

    def row(self, i: int) -> dict:
        return self._rows[i]

    def labels(self, i: int, columns: list[str]) -> dict:
        if not columns:
            return {}
        key = tuple(columns)
        if key not in self._labels:
            self._labels[key] = self._rows.select_columns(columns)
        return self._labels[key][i]


class _Stream:
    """Rows that arrive in order; a row behind the buffer starts the stream again there."""

    def __init__(self, rows: Any, name: str):
        self._rows = rows
        self._name = name
        self._lock = threading.Lock()
        self._iterator: Iterator[dict] = iter(())
        self._next = -1
        self._end: str | None = None
        self._kept: OrderedDict[int, dict] = OrderedDict()

    def row(self, i: int) -> dict:
        with self._lock:
            if i not in self._kept:
                self._read_up_to(i)
            return self._kept[i]

    def labels(self, i: int, columns: list[str]) -> dict:
        row = self.row(i) if columns else {}
        return {column: row[column] for column in columns}

    def _read_up_to(self, i: int) -> None:
        # Skipping ahead would read all rows from the first again: reading on is cheaper, however far.
        if self._end is None and not 0 <= self._next <= i:
            self._iterator, self._next = iter(self._rows.skip(i)), i
        while self._next <= i or self._end:
            self._kept[self._next] = self._read()
            self._next += 1
            if len(self._kept) > STREAM_BUFFER:
                self._kept.popitem(last=False)

    def _read(self) -> dict:
        """Return the next row. What ends the stream ends it for every thread: none begins it again."""
        if self._end is None:
            try:
                row = next(self._iterator, None)
            except Exception as error:  # each place that data come from has its own errors
                reason = f"{type(error).__name__}: {first_line(error)}"
                self._end = f"broke off at row {self._next:,} ({reason}). Run the same command again: it resumes"
            else:
                if row is not None:
                    return row
                self._end = f"ended at row {self._next:,}: it is shorter than it was said to be (images.limit)"
        raise SourceError(f"the stream of {self._name} {self._end}")


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


def open_local(path: Path, settings: ImageSettings) -> DatasetSource:
    """Open a folder that `save_to_disk` wrote, a folder of Parquet or Arrow files, or one such file."""
    import datasets
    from datasets.exceptions import DatasetGenerationError

    try:
        saved = path.is_dir() and any((path / mark).is_file() for mark in ("state.json", "dataset_dict.json"))
        rows = datasets.load_from_disk(str(path)) if saved else _from_files(path, settings)
    except (OSError, ValueError, DatasetGenerationError) as error:
        raise WorkError(f"{path} cannot be read as a dataset: {first_line(error)}") from None
    if isinstance(rows, datasets.DatasetDict):
        if settings.split not in rows:
            raise RequestError(f"images.split: {path} has {', '.join(map(str, rows))}, not {settings.split!r}")
        rows = rows[settings.split]
    if settings.streaming and isinstance(rows, datasets.Dataset):
        rows = rows.to_iterable_dataset()
    files = [(str(file.relative_to(path)), file.stat().st_size) for file in _data_files(path)]
    return DatasetSource(rows, path.resolve().name, settings, [(settings.split, 0), *files], root=str(path.resolve()))


def _from_files(path: Path, settings: ImageSettings) -> Any:
    import datasets

    files = _data_files(path)
    by_kind = {kind: [str(f) for f in files if f.suffix == f".{kind}"] for kind in ("parquet", "arrow")}
    kind = "parquet" if by_kind["parquet"] else "arrow"
    chosen = [file for file in by_kind[kind] if Path(file).name.startswith(settings.split)] or by_kind[kind]
    return datasets.load_dataset(kind, data_files={settings.split: chosen}, split=settings.split)


def _data_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(file for pattern in ("*", "*/*") for file in path.glob(pattern) if file.suffix in DATASET_SUFFIXES)


def _image_column(features: Any, named: str | None, name: str) -> str:
    import datasets

    if features is None:
        raise RequestError(f"images: {name} does not say what its columns hold")
    if named is not None:
        if named not in features:
            raise RequestError(f"images.image_column: {name} has no column {named!r}, but {', '.join(features)}")
        return named
    found = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if not found:
        # Parquet files written without the library hold {"bytes", "path"} in plain columns.
        found = [column for column, feature in features.items() if isinstance(feature, dict) and "bytes" in feature]
    if len(found) != 1:
        columns = f"several image columns ({', '.join(found)})" if found else f"no images in {', '.join(features)}"
        raise RequestError(f"images: {name} has {columns}; name one as images.image_column")
    return found[0]


def _label_columns(features: Any, settings: ImageSettings, name: str) -> list[str]:
    import datasets

    if settings.label_columns is not None:
        for column in settings.label_columns:
            if column not in features:
                raise RequestError(f"images.label_columns: {name} has no column {column!r}, but {', '.join(features)}")
        return settings.label_columns
    declared = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    return declared or [column for column in LABEL_NAMES if isinstance(features.get(column), datasets.Value)]


def _length(rows: Any, settings: ImageSettings, name: str) -> int:
    if not settings.streaming:
        return len(rows) if settings.limit is None else min(len(rows), settings.limit)
    split = (getattr(rows.info, "splits", None) or {}).get(settings.split)
    declared = getattr(split, "num_examples", None)
    if declared is None and settings.limit is None:
        raise RequestError(f"images.limit: {name} does not say how many images it streams; give a number")
    return min(number for number in (declared, settings.limit) if number is not None)


def _content(image: Any, name: str) -> bytes:
    if isinstance(image, dict) and image.get("bytes") is not None:
        return image["bytes"]
    if isinstance(image, dict) and image.get("path"):
        try:
            return Path(image["path"]).read_bytes()
        except OSError as error:
            raise WorkError(f"{name}: {image['path']} cannot be read: {error.strerror}") from None
    if isinstance(image, bytes):
        return image
    if isinstance(image, Image.Image):
        file = io.BytesIO()
        image.save(file, "png")
        return file.getvalue()
    raise WorkError(f"{name} holds no image ({type(image).__name__})")
