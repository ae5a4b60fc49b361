"""Reading a features artifact: the few questions one asks of latents, images and labels. Made for notebooks."""

import html
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from safetensors import safe_open

from saetool.artifacts import Artifact, artifact_of
from saetool.artifacts.artifact import OpenArtifact
from saetool.artifacts.remote import is_remote
from saetool.errors import RequestError, printable, shown
from saetool.vision.geometry import Geometry

if TYPE_CHECKING:
    from PIL import Image

    from saetool.features.sheet import Strip
    from saetool.images import ImageSource

_SHOWN = 40
"""Rows of a table that are printed."""


class Rows:
    """A small table: prints well, iterates over dictionaries, `column(name)` is a list, `table` the Arrow table."""

    def __init__(self, table: pa.Table):
        self.table = table

    def __len__(self) -> int:
        return self.table.num_rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.table.to_pylist())

    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            return self.table.to_pylist()[place]
        return self.table.slice(range(len(self))[place], 1).to_pylist()[0]

    def column(self, name: str) -> list:
        return self.table[name].to_pylist()

    def to_pandas(self) -> Any:
        """Return a pandas data frame (pandas must be installed)."""
        return self.table.to_pandas()

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        names = [name for name in self.table.column_names if not pa.types.is_binary(self.table.schema.field(name).type)]
        rows = self.table.select(names).slice(0, _SHOWN).to_pylist()
        return names, [[_text(row[name]) for name in names] for row in rows]

    def __repr__(self) -> str:
        names, rows = self._cells()
        widths = [max(len(row[i]) for row in [names, *rows]) for i in range(len(names))]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in [names, *rows]
        ]
        return "\n".join([*lines, *self._more()])

    def _repr_html_(self) -> str:
        names, rows = self._cells()
        head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        return f"<table><tr>{head}</tr>{body}</table>" + "".join(f"<p>{line}</p>" for line in self._more())

    def _more(self) -> list[str]:
        return [f"… {len(self) - _SHOWN:,} more rows"] if len(self) > _SHOWN else []


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else printable(str(value))


class Features:
    """A sealed features artifact, opened for reading: it stays what it was when another takes its place.

    `latents`, `label_statistics`, `images` are the tables of docs/tables.md. Images are named by row or by path.

    >>> rows = torch.randn(40, 4, 16, generator=torch.Generator().manual_seed(0))      # images, tokens, d
    >>> store = saetool.write_store("runs/read/activations", rows)
    >>> model = saetool.train(store, kind="topk", k=4, n_latents=32, tokens=512, batch_size=64, out="runs/read/model")
    >>> features = saetool.Features(saetool.index(model, store, "runs/read/features"))
    >>> features.latent(7)["latent"], len(features.top(7, 3)), len(features.firing(0, 5))
    (7, 3, 5)
    """

    def __init__(self, path: Artifact | str | os.PathLike):
        artifact = artifact_of(path, "features", "Features")
        self.artifact = artifact if is_remote(artifact.path) else OpenArtifact.of(artifact)
        self.content = self.artifact.content
        self.n_latents: int = self.content["n_latents"]
        self.grid: list[int] | None = self.content["grid"]

    @property
    def geometry(self) -> Geometry | None:
        """How pictures became the model's input, where they were pictures."""
        return Geometry.from_dict(self.content["geometry"]) if self.content["geometry"] else None

    @cached_property
    def latents(self) -> pa.Table:
        """One row a latent: every number there is."""
        return self.artifact.read_table("latents.parquet")

    @cached_property
    def images(self) -> pa.Table:
        """One row an image: path, size, digest, held_out, labels."""
        return self.artifact.read_table("images.parquet")

    @cached_property
    def label_statistics(self) -> pa.Table:
        """One row a latent and class; raises RequestError where the images have no labels."""
        if "label_statistics.parquet" not in self.artifact.files:
            raise RequestError(f"{self.artifact.path}: its images have no labels.")
        return self.artifact.read_table("label_statistics.parquet")

    def latent(self, latent: int) -> dict[str, Any]:
        """Return everything latents.parquet says of one latent."""
        return self.latents.slice(self._checked(latent), 1).to_pylist()[0]

    def top(self, latent: int, count: int | None = None) -> Rows:
        """Return a latent's strongest images: image, path, patch, value, held_out, heat, heat_scale; best first."""
        return self.examples(latent, "top", count)

    def examples(self, latent: int, group: str = "top", count: int | None = None) -> Rows:
        """Return a latent's examples of one group (top, interval, random, held_out), with the images' paths."""
        from saetool.features.ranking import GROUPS

        if group not in GROUPS:
            raise RequestError(f"There is no group {shown(group)} of examples; there are {', '.join(GROUPS)}.")
        filters = [("latent", "=", self._checked(latent)), ("group", "=", group)]
        table = self.artifact.read_table("examples.parquet", filters=filters)
        table = table if count is None else table.slice(0, _count(count))
        paths = self.images["path"].take(table["image"])
        return Rows(table.add_column(table.schema.get_field_index("image") + 1, "path", paths))

    def show(
        self,
        latent: int,
        count: int = 8,
        group: str = "top",
        images: "ImageSource | str | os.PathLike | None" = None,
    ) -> "Strip":
        """Return a latent's examples as a strip of pictures, where it fires drawn over them: a notebook shows it.

        `images` says where the pictures are, if they have moved and the store keeps no thumbnails of them.
        """
        from saetool.features.sheet import reader, strip_of

        return strip_of(self, latent, count, group, self._picture if images is None else reader(self, images))

    @cached_property
    def _picture(self) -> Callable[[int], "Image.Image"]:
        from saetool.features.sheet import reader

        return reader(self, None)

    def heat(self, row: dict[str, Any]) -> np.ndarray:
        """Return the heat map of one example as activations, float32 [rows, columns]; raises without a grid."""
        if not isinstance(row, Mapping):
            raise RequestError(f"heat: {shown(row)} is no example; give a row of Features.examples().")
        if self.grid is None or row.get("heat") is None:
            raise RequestError(f"{self.artifact.path}: these tokens have no grid, so there are no heat maps.")
        return np.frombuffer(row["heat"], np.uint8).reshape(self.grid) * np.float32(row["heat_scale"] / 255)

    def firing(self, image: int | str, count: int = 20) -> Rows:
        """Return the strongest latents of an image: latent, value and patch of its maximum, number of patches.

        Only the strongest latents of each patch are kept (`index.strongest`), so `patches` counts those.
        """
        row = self.row_of(image)
        with safe_open(self.artifact.file("patches.safetensors"), "np") as file:
            latents, values = (file.get_slice(name)[row] for name in ("latents", "values"))
        latent, value, patch, patches = latents_of_image(latents, values)
        strongest = np.lexsort((latent, -value))[: _count(count)]
        columns = {"latent": latent, "value": value, "patch": patch, "patches": patches}
        table = pa.table({name: pa.array(values[strongest]) for name, values in columns.items()})
        return Rows(table if self.grid else table.drop_columns(["patch", "patches"]))

    def for_label(self, label: str, class_: str | int | None = None, count: int = 20) -> Rows:
        """Return the latents with the largest AUROC for a class of a label column (None: for any of its classes).

        They are chosen on training images (`train_auroc`) and scored on held-out ones (`held_out_auroc`, with its 95 %
        interval); `q_value` is corrected over all latents and classes. Where nothing was held out, or training images
        lack the classes, all images choose (`auroc`); so they do in an older index, which has no `train_auroc`.
        """
        table = self.label_statistics.filter(pc.field("label") == self._label(label))
        if class_ is not None:
            table = table.filter(pc.field("class") == str(class_))
            if table.num_rows == 0:
                classes = next(info["classes"] for info in self.content["labels"] if info["name"] == label)
                raise RequestError(f"{label!r} has no class {class_!r} here. Classes: {', '.join(classes)}.")
        known = "train_auroc" in table.column_names and table["train_auroc"].null_count < table.num_rows
        order = [("train_auroc" if known else "auroc", "descending"), ("latent", "ascending")]
        return Rows(table.sort_by(order).slice(0, _count(count)))

    def similar(self, latent: int, by: str = "decoder", count: int | None = None) -> Rows:
        """Return a latent's neighbors, most similar first: `by` decoder (cosine) or coactivation (Jaccard).

        As many as the index keeps (`index.neighbors`), or the first `count` of them.
        """
        if by not in ("decoder", "coactivation"):
            raise RequestError(f"Latents are compared by decoder or by coactivation, not by {by!r}.")
        with safe_open(self.artifact.file("tensors.safetensors"), "np") as file:
            latents = file.get_slice(f"neighbors_{by}")[self._checked(latent)]
            values = file.get_slice(f"neighbors_{by}_value")[latent]
        kept = np.flatnonzero(latents >= 0)[: None if count is None else _count(count)]
        return Rows(pa.table({"latent": latents[kept], "similarity": values[kept]}))

    def histogram(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (counts [bins], edges [bins + 1]) of a latent's positive activations."""
        with safe_open(self.artifact.file("tensors.safetensors"), "np") as file:
            return file.get_slice("histogram")[self._checked(latent)], file.get_tensor("histogram_edges")

    def _checked(self, latent: int) -> int:
        if isinstance(latent, bool) or not isinstance(latent, Integral) or not 0 <= latent < self.n_latents:
            raise RequestError(f"There is no latent {shown(latent)}; they go from 0 to {self.n_latents - 1}.")
        return int(latent)

    def _label(self, label: str) -> str:
        names = [info["name"] for info in self.content["labels"]]
        if label not in names:
            raise RequestError(f"There is no label {label!r}. Labels: {', '.join(names) or 'none'}.")
        return label

    def row_of(self, image: int | str) -> int:
        """Return the row of an image named by row or by path; RequestError where there is none."""
        if isinstance(image, str):
            row = pc.index(self.images["path"], image).as_py()
            if row < 0:
                raise RequestError(f"There is no image {image!r} in this index; see Features.images['path'].")
            return row
        if isinstance(image, bool) or not isinstance(image, Integral) or not 0 <= image < self.images.num_rows:
            raise RequestError(f"There is no image {shown(image)}; rows go from 0 to {self.images.num_rows - 1}.")
        return int(image)

    def __repr__(self) -> str:
        counts = ", ".join(f"{n:,} {name}" for name, n in self.content["counts"].items())
        images = f"{self.content['images']:,} images"
        return f"Features({str(self.artifact.path)!r}): {self.n_latents:,} latents ({counts}), {images}"


def _count(given: int) -> int:
    """Return how many rows are asked for; RequestError where it is no such number."""
    if isinstance(given, bool) or not isinstance(given, Integral) or given < 0:
        raise RequestError(f"count: {shown(given)} is no number of rows; give 0 or more.")
    return int(given)


def latents_of_image(latents: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the latents among the strongest of an image's tokens [tokens, k], rising; of each its maximum, the first
    patch that has it, and the number of patches."""
    patch, place = np.nonzero(latents >= 0)
    latent, value = latents[patch, place], values[patch, place]
    order = np.lexsort((patch, -value, latent))
    found, first, patches = np.unique(latent[order], return_index=True, return_counts=True)
    best = order[first]
    return found, value[best], patch[best], patches
