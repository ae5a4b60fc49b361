"""The chunks of the latent pages: each holds all that the pages of its latents show."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from saetool.report import heat
from saetool.report.chunks import pack, smallest_unsigned, text
from saetool.report.columns import Column, numbers, table_arrays
from saetool.report.facts import ImageFacts
from saetool.report.source import Examples, FeatureFiles
from saetool.report.words import Words

PAGE_BLOCK = 8
"""Latents in one chunk, about 30 kB: a link to one of them is there within two seconds on a slow line."""

TENSORS = (
    "histogram", "spatial_profile", "neighbors_decoder", "neighbors_decoder_value", "neighbors_coactivation",
    "neighbors_coactivation_value", "decoder_directions", "fires",
)  # fmt: skip
STATISTICS = (
    "images", "firing_images", "auroc", "auroc_low", "auroc_high", "held_out_auroc", "held_out_low", "held_out_high",
    "average_precision", "mass_share",
)  # fmt: skip


@dataclass(frozen=True)
class LatentPages:
    """Makes the chunks.

    `table` is that of all latents; `best` [n_latents, 2] are image and patch of each latent's strongest example, −1 for
    none.
    """

    files: FeatureFiles
    facts: ImageFacts
    words: Words
    table: pa.Table
    columns: list[Column]
    best: np.ndarray

    def chunks(self, chosen: np.ndarray) -> Iterator[tuple[int, bytes]]:
        """Yield (block, script) for every block of `PAGE_BLOCK` latents that holds a chosen one (mask [n_latents])."""
        statistics = _Statistics(self.files)
        for start, examples in self.files.examples(PAGE_BLOCK):
            stop = min(start + PAGE_BLOCK, self.files.n_latents)
            if not chosen[start:stop].any():
                continue
            arrays = self._examples(examples, start, stop) | self._row(start, stop) | statistics.arrays(start, stop)
            for name in TENSORS:
                if (tensor := self.files.tensor(name)) is not None:
                    arrays[name] = _narrow(name, tensor[start:stop])
            arrays |= self._neighbors(arrays)
            arrays["words"] = text([self.words.sentence(latent) for latent in range(start, stop)])
            yield start // PAGE_BLOCK, pack(f"latents/{start // PAGE_BLOCK}", arrays, {"start": start, "stop": stop})

    def _examples(self, examples: Examples, start: int, stop: int) -> dict[str, np.ndarray]:
        """Return the examples of latents start to stop, `example_counts` of them a latent.

        Images and maps stand once each: "image" and "map" point into `shown` (JSON) and into the heat maps.
        """
        if not examples.table.num_rows:
            return {"example_counts": np.zeros(stop - start, np.uint16), "shown": text([])}
        latent = examples.column("latent", 0, np.int64)
        image = examples.column("image", 0, np.int64)
        scale = np.zeros(stop - start, np.float32)
        scale[latent - start] = examples.column("heat_scale", 0.0, np.float32)
        rows, place = np.unique(image, return_inverse=True)
        _, first, map_ = np.unique(latent * (1 << 32) + image, return_index=True, return_inverse=True)
        arrays = {
            "example_counts": np.bincount(latent - start, minlength=stop - start).astype(np.uint16),
            "group": examples.column("place", 0, np.uint8),
            "interval": examples.column("interval", -1, np.int8),
            "image": place.reshape(-1).astype(np.uint16),
            "map": map_.reshape(-1).astype(np.uint16),
            "patch": examples.column("patch", -1, np.int16 if self.files.heat_size < 1 << 15 else np.int32),
            "value": examples.column("value", 0.0, np.float32),
            "held_out": examples.column("held_out", False, np.uint8),
            "heat_scale": scale,
            "shown": text(self.facts.shown(rows)),
            **heat.sparse(examples.heat[first]),
        }
        boxes = self.facts.boxes(rows)
        return arrays if boxes is None else arrays | {"box": boxes}

    def _row(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Return the latents' rows of the table: status, and every column in order, float64 [latents, columns]."""
        cells = [self._cells[column.key][start:stop] for column in self.columns]
        row = np.stack(cells, axis=1) if cells else np.zeros((stop - start, 0))
        return {"row": row.astype(np.float64), "status": self._cells["status"][start:stop]}

    @cached_property
    def _cells(self) -> dict[str, np.ndarray]:
        return table_arrays(self.table, self.columns)[0]

    def _neighbors(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return image, patch and box of the strongest example of each neighbor."""
        found: dict[str, np.ndarray] = {}
        for name in ("neighbors_decoder", "neighbors_coactivation"):
            if name not in arrays:
                continue
            latents = arrays[name].reshape(-1)
            image, patch = np.where(latents[:, None] >= 0, self.best[np.maximum(latents, 0)], -1).T.astype(np.int32)
            found |= {f"{name}_image": image, f"{name}_patch": patch}
            if (boxes := self.facts.boxes(image)) is not None:
                found[f"{name}_box"] = boxes
        return found


def _narrow(name: str, tensor: np.ndarray) -> np.ndarray:
    """Return a tensor in a small type: spatial profiles as bytes of their own maximum, counts as narrow as they go."""
    if name == "spatial_profile":
        peak = np.maximum(tensor.max(axis=1, keepdims=True, initial=0.0), np.finfo(np.float32).tiny)
        return np.rint(np.clip(tensor, 0, None) / peak * 255).astype(np.uint8)
    if name == "histogram":
        return tensor.astype(np.uint32 if tensor.max(initial=0) < 1 << 32 else np.float64)
    if tensor.dtype.itemsize == 1:
        return tensor
    return tensor.astype(np.float32 if tensor.dtype.kind == "f" else np.int32)


class _Statistics:
    """Label statistics, cut by latent."""

    def __init__(self, files: FeatureFiles):
        table = files.label_statistics
        self.classes: list[tuple[str, str]] = []
        self.columns: dict[str, np.ndarray] = {}
        if table is None or not table.num_rows:
            return
        self.latent = table["latent"].to_numpy()
        self.classes, codes = class_codes(table)
        self.columns = {name: numbers(table[name]) for name in STATISTICS if name in table.column_names}
        self.columns["class"] = codes.astype(smallest_unsigned(len(self.classes)))

    def arrays(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Return the statistics of latents start to stop, `label_counts` rows a latent."""
        if not self.columns:
            return {}
        low, high = np.searchsorted(self.latent, [start, stop])
        counts = np.bincount(self.latent[low:high] - start, minlength=stop - start).astype(np.uint32)
        return {"label_counts": counts} | {f"label_{k}": v[low:high] for k, v in self.columns.items()}


def class_codes(statistics: pa.Table) -> tuple[list[tuple[str, str]], np.ndarray]:
    """Return the (label, class) pairs of label_statistics.parquet in order of appearance, and each row's among them."""
    pairs = list(zip(statistics["label"].to_pylist(), statistics["class"].to_pylist(), strict=True))
    classes = list(dict.fromkeys(pairs))
    index = {pair: i for i, pair in enumerate(classes)}
    return classes, np.fromiter((index[pair] for pair in pairs), np.int64, len(pairs))


def label_classes(files: FeatureFiles) -> list[list[str]]:
    """Return the (label, class) pairs that `label_class` in the chunks points into."""
    return [list(pair) for pair in _Statistics(files).classes]
