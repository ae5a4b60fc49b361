"""Labels from a table beside the images: a CSV or Parquet file whose rows name image files."""

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saetool.errors import RequestError, first_line
from saetool.images.source import Label, LabelColumn
from saetool.progress import say

if TYPE_CHECKING:
    import pyarrow

Columns = dict[str, list[Any]]
FEW_CLASSES = 20
"""Whole numbers of more values than this are numbers, not names of classes."""
MANY_CLASSES = 1000
"""Text of more values than this, or of more than FEW_CLASSES and a new one in most rows, is no label unasked."""
KEY_NAMES = ("file", "filename", "file_name", "path", "name", "image", "image_id", "id", "index", "key")
"""What a column of whole numbers is called that names images; of text the values tell."""
EMPTY = frozenset(("", "NA", "N/A", "n/a", "#N/A", "#NA", "NaN", "nan", "NULL", "null"))
"""Cells of a CSV file that hold no value; of a column of text it is told."""
EXACT = 2**53
"""Whole numbers from this on are names: a float does not tell them apart."""
_WHOLE = re.compile(r"\s*[+-]?(0|[1-9]\d*)\s*")
_NUMBER = re.compile(r"\s*[+-]?(((0|[1-9]\d*)(\.\d*)?|\.\d+)(e[+-]?\d+)?|inf(inity)?)\s*", re.IGNORECASE)
TAKEN = ("id", "path", "width", "height", "digest", "slice", "image", "held_out")
"""What a store's own columns are called."""


@dataclass(frozen=True)
class Labels:
    """Label columns, and the value of each for every image of a listing; None where there is none."""

    columns: list[LabelColumn]
    values: dict[str, list[Label]]

    def of(self, place: int) -> dict[str, Label]:
        """Return the labels of the image at a place of the listing."""
        return {column.name: self.values[column.name][place] for column in self.columns}

    def take(self, places: Sequence[int]) -> "Labels":
        return Labels(self.columns, {name: [values[i] for i in places] for name, values in self.values.items()})


def read_labels(file: Path, paths: Sequence[str], wanted: Sequence[str] | None = None) -> Labels:
    """Return the labels that a table's rows hold for the images at `paths`, by their path or their file name.

    The column whose values name most images says which image a row is about. Cells may be empty and rows missing.
    Raises RequestError where no row names an image, or one image has several.
    """
    table = _read(file, wanted or ())
    key, rows = _join(table, paths, file)
    columns = _chosen(table, key, wanted, file)
    missing = sum(row is None for row in rows)
    if missing:
        say(f"{file}: {missing:,} of {len(paths):,} images have no row and so no label")
    found = {name: [None if row is None else values[row] for row in rows] for name, values in columns.items()}
    return label_columns(found, wanted, str(file))


def label_columns(found: Columns, wanted: Sequence[str] | None, name: str) -> Labels:
    """Return columns of values as labels, each of the kind that its values say; those that say nothing are left out."""
    columns, kept, left_out = [], {}, []
    for column, values in found.items():
        kind = _kind(values)
        if wanted is None and (kind is None or column in TAKEN or (kind == "category" and _is_free_text(values))):
            left_out.append(column)
            continue
        kept[column] = [_label(value, kind or "category") for value in values]
        classes = sorted({label for label in kept[column] if isinstance(label, str)}, key=_natural)
        columns.append(LabelColumn(column, kind or "category", classes if (kind or "category") == "category" else None))
    if left_out:
        say(f"{name}: {', '.join(left_out)} are no labels (free text, no values, or a name that the store uses)")
    return Labels(columns, kept)


def _read(file: Path, wanted: Sequence[str]) -> Columns:
    """Return a table's columns; of a Parquet file those that may be labels, and the wanted ones."""
    import pyarrow.parquet as parquet

    if not file.is_file():
        raise RequestError(f"images.labels: there is no file {file}")
    try:
        table = parquet.read_table(file) if file.suffix == ".parquet" else _read_csv(file)
    except UnicodeError:
        raise RequestError(f"images.labels: {file} is not UTF-8 text: save it as UTF-8 (or UTF-16)") from None
    except Exception as error:  # Arrow has an error of its own for each kind of damage
        raise RequestError(
            f"images.labels: {file} cannot be read as a table ({first_line(error)}): give a CSV file with a line of "
            "names, or a Parquet file"
        ) from None
    names = table.column_names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RequestError(f"images.labels: two columns of {file} are called {twice!r}: rename one")
    if file.suffix == ".parquet":
        return {n: table[n].to_pylist() for n in names if n in wanted or _may_be_label(table.schema.field(n).type)}
    return {name: _cells(name, table[name].to_pylist(), file) for name in names}


def _read_csv(file: Path) -> "pyarrow.Table":
    """Return a CSV file's cells as text: what a column holds is seen when all of it is there."""
    import pyarrow as pa
    import pyarrow.csv as arrow_csv

    data = file.read_bytes()
    text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    names = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
    return arrow_csv.read_csv(
        io.BytesIO(text.encode()),
        parse_options=arrow_csv.ParseOptions(delimiter=delimiter),
        convert_options=arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
    )


def _may_be_label(kind: "pyarrow.DataType") -> bool:
    import pyarrow as pa

    return not (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _cells(name: str, texts: Sequence[str], file: Path) -> list[Any]:
    """Return a column's cells as what all of them are: whole numbers, numbers, true or false, or text."""
    cells = [None if text in EMPTY else text for text in texts]
    known = [cell for cell in cells if cell is not None]
    if name.lower() not in KEY_NAMES:  # 0007 names an image and is no number
        for pattern, made in ((_WHOLE, int), (_NUMBER, float)):
            if known and all(pattern.fullmatch(cell) for cell in known):
                return [None if cell is None else made(cell) for cell in cells]
        if known and all(cell.lower() in ("true", "false") for cell in known):
            return [None if cell is None else cell.lower() == "true" for cell in cells]
    words = [text for text, cell in zip(texts, cells, strict=True) if cell is None and text]
    if words and known:
        say(f"{file}: {len(words):,} cells of {name} say {words[0]} and are no label")
    return cells


def _join(table: Columns, paths: Sequence[str], file: Path) -> tuple[str, list[int | None]]:
    """Return the column that names images, and each image's row."""
    names = _names_of(paths)
    best: dict[int, int] = {}
    key, repeated = "", None
    for column, values in table.items():
        # A number may name an image, but most numbers are labels.
        kinds = {type(value) for value in values if value is not None}
        if not (kinds == {str} or (kinds == {int} and column.lower() in KEY_NAMES)):
            continue
        rows: dict[int, int] = {}
        twice = None
        for row, value in enumerate(values):
            place = names.get(str(value).replace("\\", "/").removeprefix("./"))
            if place is not None:
                twice = place if place in rows else twice
                rows.setdefault(place, row)
        if len(rows) > len(best):
            best, key, repeated = rows, column, twice
    if not best:
        shown = next((values[0] for values in table.values() if values), None)
        raise RequestError(
            f"images.labels: no row of {file} names an image: its first cell is {shown!r}, an image is {paths[0]!r}; "
            "give paths below images.source, or file names, in one column"
        )
    if repeated is not None:
        raise RequestError(f"images.labels: several rows of {file} name {paths[repeated]!r}: keep one of them")
    return key, [best.get(place) for place in range(len(paths))]


def _names_of(paths: Sequence[str]) -> dict[str, int]:
    """Return every name that tells one image: its path, then what is left of it, while no other is called so."""
    names = {path: place for place, path in enumerate(paths)}
    shorter = (
        lambda path: path.rpartition(".")[0],
        lambda path: path.rpartition("/")[2],
        lambda path: path.rpartition("/")[2].rpartition(".")[0],
    )
    for shorten in shorter:
        seen: dict[str, int | None] = {}
        for place, path in enumerate(paths):
            seen[shorten(path)] = None if shorten(path) in seen else place
        names = {name: place for name, place in seen.items() if name and place is not None} | names
    return names


def _chosen(table: Columns, key: str, wanted: Sequence[str] | None, file: Path) -> Columns:
    for column in wanted or ():
        if column not in table:
            raise RequestError(f"images.label_columns: {file} has no column {column!r}: {', '.join(table)}")
    names = wanted if wanted is not None else [name for name in table if name != key]
    return {name: table[name] for name in names}


def _kind(values: Sequence[Any]) -> Any:
    """Return "category" or "number" as the values say; None where there are no values, or of no such kind."""
    known = [value for value in values if value is not None and not (isinstance(value, float) and math.isnan(value))]
    if not known or any(not isinstance(value, str | bool | int | float) for value in known):
        return None
    if any(isinstance(value, str | bool) for value in known):
        return "category"
    if any(isinstance(value, int) and abs(value) >= EXACT for value in known):
        return "category"
    whole = all(float(value).is_integer() for value in known)
    return "category" if whole and len(set(known)) <= FEW_CLASSES else "number"


def _is_free_text(values: Sequence[Any]) -> bool:
    known = [value for value in values if value is not None]
    distinct = len(set(known))
    return distinct > MANY_CLASSES or (distinct > FEW_CLASSES and distinct > len(known) / 2)


def _label(value: Any, kind: str) -> Label:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if kind == "number":
        return float(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _natural(label: str) -> tuple[int, int | str]:
    return (0, int(label)) if label.isdecimal() else (1, label)
