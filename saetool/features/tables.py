"""From arrays to the tables of the artifact: declared columns only, NaN becomes null."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from saetool.features.columns import EXAMPLES, IMAGES, LABEL_STATISTICS, LABELED, LATENTS, Column
from saetool.features.labels import LabelColumn, LabelStatistics, benjamini_hochberg
from saetool.features.ranking import GROUPS, Chosen

WITHOUT_Q = tuple(column for column in LABEL_STATISTICS if column.name != "q_value")
_OF_CLASSES = [column.name for column in WITHOUT_Q if column.name not in ("latent", "label", "class", "images")]


def table(columns: Sequence[Column], values: Mapping[str, Any]) -> pa.Table:
    """Build a table with exactly `columns`, in their order."""
    fields = [pa.field(column.name, column.arrow) for column in columns]
    return pa.Table.from_arrays([_array(values[column.name], column) for column in columns], schema=pa.schema(fields))


def _array(values: Any, column: Column) -> pa.Array | pa.ChunkedArray:
    if not isinstance(values, np.ndarray):
        return values.cast(column.arrow) if isinstance(values, pa.Array) else pa.array(values, column.arrow)
    missing = np.isnan(values) if values.dtype.kind == "f" else None
    return pa.array(values, column.arrow, mask=missing)


class TableWriter:
    """Writes a long table a piece at a time, in row groups of fixed size: the same file for any cut into pieces.

    `notes` is what the file says of itself beside its columns.
    """

    ROWS = 8192

    def __init__(self, path: Path, columns: Sequence[Column], rows: int = ROWS, notes: dict[str, str] | None = None):
        schema = pa.schema([pa.field(column.name, column.arrow) for column in columns])
        self._rows = rows
        self._writer = parquet.ParquetWriter(path, schema, compression="zstd", store_schema=False)
        if notes:
            self._writer.add_key_value_metadata(notes)
        self._waiting = schema.empty_table()

    def write(self, piece: pa.Table) -> None:
        self._waiting = pa.concat_tables([self._waiting, piece])
        while len(self._waiting) >= self._rows:
            self._writer.write_table(self._waiting.slice(0, self._rows).combine_chunks(), row_group_size=self._rows)
            self._waiting = self._waiting.slice(self._rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if len(self._waiting):
            self._writer.write_table(self._waiting.combine_chunks(), row_group_size=self._rows)
        self._writer.close()


def label_numbers(column: LabelColumn, found: LabelStatistics) -> dict[str, np.ndarray]:
    """Return what latents.parquet says of one label for a block of latents, best_class as its index (−1 for none)."""
    best = found.best()
    rows = np.arange(len(best))

    def of_best(statistic: np.ndarray) -> np.ndarray:
        if not statistic.shape[1]:
            return np.full(len(best), np.nan)
        return np.where(best >= 0, statistic[rows, best], np.nan)

    named = {
        "best_class": best,
        "auroc": of_best(found.auroc),
        "held_out_auroc": of_best(found.held_out_auroc),
        "average_precision": of_best(found.average_precision),
        "p_value": of_best(found.p_value),
        "purity": found.purity(),
        "entropy": found.entropy(),
        "spearman": found.spearman,
    }
    return {f"{column.name}.{name}": values for name, values in named.items()}


def latents_table(
    numbers: Mapping[str, np.ndarray], labels: Sequence[LabelColumn], discoveries: Mapping[str, "Discoveries"]
) -> pa.Table:
    """Build latents.parquet from its plain columns and, of every label column, its `label_numbers`.

    `discoveries` of each label know the p of all latents and classes.
    """
    columns = list(LATENTS)
    values: dict[str, Any] = dict(numbers)
    for column in labels:
        best = values[f"{column.name}.best_class"].tolist()
        values[f"{column.name}.best_class"] = [column.names[i] if i >= 0 else None for i in best]
        values[f"{column.name}.q_value"] = discoveries[column.name].q(values[f"{column.name}.p_value"])
        columns += [replace(declared, name=declared.name.format(label=column.name)) for declared in LABELED]
    return table(columns, values)


class Discoveries:
    """The tests of one label, of all latents and classes: from the p of any of them to its q."""

    def __init__(self, p: np.ndarray):
        self._p = np.sort(p[~np.isnan(p)], axis=None)
        self._q = benjamini_hochberg(self._p)

    def q(self, p: np.ndarray) -> np.ndarray:
        """Return the q of some of the tests (Benjamini & Hochberg 1995), NaN where p is."""
        if not len(self._p):
            return np.full(len(p), np.nan)
        last = np.searchsorted(self._p, p, side="right") - 1
        return np.where(np.isnan(p), np.nan, self._q[np.clip(last, 0, None)])


def with_q_values(rows: Path, path: Path, discoveries: Mapping[str, Discoveries]) -> None:
    """Write label_statistics.parquet from its rows without q_value, some of them at a time."""
    with TableWriter(path, LABEL_STATISTICS) as writer:
        for batch in parquet.ParquetFile(rows).iter_batches(TableWriter.ROWS):
            label, p = batch["label"].to_numpy(zero_copy_only=False), batch["p_value"].to_numpy(zero_copy_only=False)
            q = np.full(len(p), np.nan)
            for name, found in discoveries.items():
                q[label == name] = found.q(p[label == name])
            values = {name: batch[name] for name in batch.schema.names}
            writer.write(table(LABEL_STATISTICS, {**values, "q_value": q}))


def label_table(labels: Sequence[tuple[LabelColumn, LabelStatistics]], keep: int, first: int) -> pa.Table:
    """Build the rows of label_statistics.parquet for a block of latents from `first`, but for q_value.

    Every latent that fires on labeled images has rows for its `keep` classes of largest AUROC on training images.
    """
    parts = [_label_rows(column, found, keep, first) for column, found in labels]
    joined = pa.concat_tables(parts)
    order = np.lexsort((np.repeat(np.arange(len(parts)), [len(part) for part in parts]), joined["latent"].to_numpy()))
    return joined.take(pa.array(order))


def _label_rows(column: LabelColumn, found: LabelStatistics, keep: int, first: int) -> pa.Table:
    alive = found.firing_images.sum(1) > 0
    kept = largest_of_rows(found.chosen_by(), keep)
    latent, class_ = np.nonzero(kept & alive[:, None])
    images = np.bincount(column.classes[column.classes >= 0], minlength=len(column.names))
    names = pa.DictionaryArray.from_arrays(pa.array(class_, pa.int32()), pa.array(column.names, pa.string()))
    values = {
        "latent": latent + first,
        "label": pa.repeat(pa.scalar(column.name, pa.string()), len(latent)),
        "class": names,
        "images": images[class_],
        **{name: getattr(found, name)[latent, class_] for name in _OF_CLASSES},
    }
    return table(WITHOUT_Q, values)


def largest_of_rows(values: np.ndarray, k: int) -> np.ndarray:
    """Return which entries [rows, columns] are among the k largest of their row, of equal ones the first."""
    columns = values.shape[1]
    if columns <= k:
        return np.ones(values.shape, bool)
    last = np.partition(values, columns - k, axis=1)[:, columns - k, None]
    above, equal = values > last, values == last
    return above | (equal & (np.cumsum(equal, axis=1) <= k - above.sum(1, keepdims=True)))


def examples_table(
    records: np.ndarray, chosen: Chosen, scale: np.ndarray, held_out: np.ndarray, heat: np.ndarray | None
) -> pa.Table:
    """Build the rows of examples.parquet for a block of latents, of their chosen records.

    heat: [rows, tokens] bytes, None without a grid.
    """
    groups = pa.DictionaryArray.from_arrays(pa.array(chosen.group, pa.int8()), pa.array(GROUPS))
    nothing = pa.nulls(len(records))
    values = {
        "latent": records["latent"],
        "group": groups,
        "interval": pa.array(chosen.interval, pa.int8(), mask=chosen.interval < 0),
        "rank": chosen.rank,
        "image": records["image"],
        "patch": nothing if heat is None else records["patch"],
        "value": records["value"],
        "held_out": held_out[records["image"]],
        "heat": nothing if heat is None else _binary(heat),
        "heat_scale": scale[records["latent"]],
    }
    return table(EXAMPLES, values)


def _binary(rows: np.ndarray) -> pa.Array:
    """Return bytes [rows, width] as a column of binary values without copying each."""
    offsets = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(rows))]
    return pa.Array.from_buffers(pa.binary(), len(rows), buffers)


def images_table(images: pa.Table, held_out: np.ndarray, labels: Sequence[str]) -> pa.Table:
    values = {
        column.name: images[column.name].combine_chunks() for column in IMAGES if column.name in images.column_names
    }
    values |= {"image": np.arange(len(images)), "held_out": held_out}
    made = table(IMAGES, values)
    for name in labels:
        made = made.append_column(name, images[name])
    return made
