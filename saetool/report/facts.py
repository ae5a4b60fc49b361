"""What pages say of single images: path, size, labels, and where the patch grid lies in the picture."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from saetool.features.labels import LabelColumn
from saetool.vision.geometry import Geometry

BOX_STEPS = 8192
"""Boxes are kept in steps of 1/8192 of the picture's side: a quarter of a pixel of 2,048."""


@dataclass(frozen=True)
class ImageFacts:
    """The images of a store, by row: `table` is its images.parquet, `labels` and `geometry` the index's."""

    table: pa.Table
    labels: list[dict]
    geometry: dict | None

    @cached_property
    def paths(self) -> list[str]:
        """Where each image lies below its source."""
        return self.table["path"].to_pylist()

    @cached_property
    def sizes(self) -> np.ndarray:
        """Width and height, int32 [images, 2]; 0 of what is no picture."""
        return np.stack([pc.fill_null(self.table[name], 0).to_numpy() for name in ("width", "height")], axis=1).astype(
            np.int32
        )

    @cached_property
    def label_values(self) -> list[tuple[str, list]]:
        """The label columns as JSON values: NaN is null."""
        names = [label["name"] for label in self.labels if label["name"] in self.table.column_names]
        return [(name, [None if v != v else v for v in self.table[name].to_pylist()]) for name in names]

    @cached_property
    def columns(self) -> list[LabelColumn]:
        """The label columns as classes, as the index saw them."""
        kinds = {label["name"]: label for label in self.labels}
        return [LabelColumn.of(kinds[name], values) for name, values in self.label_values]

    def with_base_rates(self, latents: pa.Table) -> pa.Table:
        """Add "L.base_rate" to a table of latents: the share of images labeled L that are of "L.best_class"."""
        for column in self.columns:
            if f"{column.name}.best_class" not in latents.column_names:
                continue
            shares = dict(zip(column.names, column.shares(), strict=True))
            best = latents[f"{column.name}.best_class"].to_pylist()
            latents = latents.append_column(
                f"{column.name}.base_rate", pa.array([shares.get(name) for name in best], pa.float64())
            )
        return latents

    def boxes(self, rows: np.ndarray) -> np.ndarray | None:
        """Return the box of the patch grid of some images (rows of −1 have none), int16 [rows, 4]; None without one.

        Left, top, right, bottom in steps of the picture's width and height.
        """
        if self.geometry is None:
            return None
        shape = Geometry.from_dict(self.geometry)
        kinds, inverse = np.unique(self.sizes[np.maximum(rows, 0)], axis=0, return_inverse=True)
        scale = np.concatenate([kinds, kinds], axis=1)
        boxes = np.array([shape.grid_box(max(int(w), 1), max(int(h), 1)) for w, h in kinds]).reshape(-1, 4)
        steps = np.rint(np.clip(boxes / np.maximum(scale, 1), -3.9, 3.9) * BOX_STEPS).astype(np.int16)
        return steps[inverse.reshape(-1)]

    def shown(self, rows: np.ndarray) -> list[list[Any]]:
        """Return what a tile says of some images, as JSON: row, path, width, height, label values."""
        values = [column for _, column in self.label_values]
        return [
            [int(i), self.paths[i], *self.sizes[i].tolist(), [column[i] for column in values]] for i in rows.tolist()
        ]
