"""What the report reads from a features artifact, as tables and arrays; large files a piece at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import safe_open

from saetool.artifacts import Artifact
from saetool.errors import RequestError
from saetool.features.ranking import GROUPS
from saetool.report.columns import places
from saetool.report.heat import dense_bytes
from saetool.report.places import COLUMNS, Places

REQUIRED = {
    "latents.parquet": ("status", "token_frequency", "image_count", "image_frequency", "decoder_norm"),
    "examples.parquet": (*COLUMNS, "interval", "value", "heat", "heat_scale"),
    "label_statistics.parquet": ("latent", "label", "class", "images", "auroc", "auroc_low"),
    "images.parquet": ("held_out",),
}
"""What no report can do without, of the tables that an index has; all else is left out where it is not there."""


def require_columns(features: Artifact) -> None:
    """Raise RequestError when an index lacks what every report reads: another version of saetool made it."""
    for name, wanted in REQUIRED.items():
        if name not in features.files:
            continue
        known = pq.read_schema(features.file(name)).names
        if missing := [column for column in wanted if column not in known]:
            raise RequestError(
                f"{features.path}: {name} has no column {missing[0]!r}: it was made by saetool "
                f"{features.manifest['saetool']} before there was one. Make it again (`saetool index … --force`)."
            )


@dataclass(frozen=True)
class Examples:
    """The examples of some latents, in order of latent, group, interval, rank; heat is bytes [rows, tokens]."""

    table: pa.Table
    heat: np.ndarray

    def column(self, name: str, missing: float, dtype: type) -> np.ndarray:
        """Return a column with null as `missing`."""
        return pc.fill_null(self.table[name], missing).to_numpy(zero_copy_only=False).astype(dtype)


@dataclass(frozen=True)
class FeatureFiles:
    """A features artifact's files."""

    artifact: Artifact

    @property
    def content(self) -> dict:
        return self.artifact.content

    @property
    def n_latents(self) -> int:
        return self.content["n_latents"]

    @property
    def n_images(self) -> int:
        return self.content["images"]

    @property
    def heat_size(self) -> int:
        """Bytes of one heat map: the patches of an image; 0 without a grid."""
        grid = self.content["grid"]
        return grid[0] * grid[1] if grid else 0

    @cached_property
    def latents(self) -> pa.Table:
        """`latents.parquet`, one row a latent; and for each label the lower end of its best class's AUROC."""
        table = with_sure_excess(self.artifact.read_table("latents.parquet"))
        return with_lower_ends(table, self.label_statistics, [label["name"] for label in self.content["labels"]])

    @cached_property
    def label_statistics(self) -> pa.Table | None:
        """`label_statistics.parquet` in order of latent, where there are labels."""
        if "label_statistics.parquet" not in self.artifact.files:
            return None
        return self.artifact.read_table("label_statistics.parquet").sort_by("latent")

    @cached_property
    def places(self) -> Places:
        """Which images serve as examples, without the heat maps."""
        return Places.of(self.artifact.read_table("examples.parquet", columns=COLUMNS))

    @cached_property
    def held_out(self) -> np.ndarray:
        """Which images training never saw, bool [images]; none where the index does not tell."""
        if "images.parquet" not in self.artifact.files:
            return np.zeros(self.n_images, bool)
        return self.artifact.read_table("images.parquet", columns=["held_out"])["held_out"].to_numpy(
            zero_copy_only=False
        )

    def examples(self, block: int) -> Iterator[tuple[int, Examples]]:
        """Yield (first latent, examples) for every `block` latents; the file is read a piece at a time."""
        file = pq.ParquetFile(self.artifact.file("examples.parquet"))
        starts = range(0, self.n_latents, block)
        stops = np.searchsorted(file.read(["latent"])["latent"].to_numpy(), [start + block for start in starts])
        batches, waiting, done = file.iter_batches(batch_size=16_384), file.schema_arrow.empty_table(), 0
        for start, stop in zip(starts, stops.tolist(), strict=True):
            while done + waiting.num_rows < stop:
                waiting = pa.concat_tables([waiting, pa.Table.from_batches([next(batches)])])
            yield start, self._examples(waiting.slice(0, stop - done))
            waiting, done = waiting.slice(stop - done), stop

    def _examples(self, table: pa.Table) -> Examples:
        if table.num_rows:
            place = places(table["group"].to_pylist(), GROUPS)
            table = table.append_column("place", pa.array(place))
            interval = pc.fill_null(table["interval"], -1).to_numpy()
            table = table.take(np.lexsort((table["rank"], interval, place, table["latent"])))
        heat = dense_bytes(table["heat"], self.heat_size) if table.num_rows else np.zeros((0, self.heat_size), np.uint8)
        return Examples(table, heat)

    def tensor(self, name: str) -> np.ndarray | None:
        """Return a tensor of `tensors.safetensors`, None where it was not made."""
        return self._tensors.get(name)

    @cached_property
    def _tensors(self) -> dict[str, np.ndarray]:
        with safe_open(self.artifact.file("tensors.safetensors"), "np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    @property
    def patches_file(self) -> Path | None:
        """`patches.safetensors`: the strongest latents of each token."""
        name = "patches.safetensors"
        return self.artifact.file(name) if name in self.artifact.files else None


def with_sure_excess(latents: pa.Table) -> pa.Table:
    """Add "monosemanticity_low": the excess over chance less two of its standard deviations; what it is sorted by."""
    if "monosemanticity_excess" not in latents.column_names:
        return latents
    names = ("monosemanticity_excess", "monosemanticity_spread")
    excess, spread = (latents[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in names)
    return latents.append_column("monosemanticity_low", pa.array(excess - 2 * spread, from_pandas=True))


def with_lower_ends(latents: pa.Table, statistics: pa.Table | None, labels: list[str]) -> pa.Table:
    """Add "L.auroc_low" (null where there is none) to the table of latents: L's "auroc_low" for "L.best_class"."""
    for label in labels:
        names = latents.column_names
        if statistics is None or f"{label}.best_class" not in names or f"{label}.auroc_low" in names:
            continue
        rows = statistics.filter(pc.field("label").cast(pa.string()) == label)
        best = latents[f"{label}.best_class"].cast(pa.string()).take(rows["latent"])
        rows = rows.append_column("best", best).filter(pc.field("class").cast(pa.string()) == pc.field("best"))
        low = np.full(latents.num_rows, np.nan)
        low[rows["latent"].to_numpy()] = rows["auroc_low"].cast(pa.float64()).to_numpy(zero_copy_only=False)
        latents = latents.append_column(f"{label}.auroc_low", pa.array(low, from_pandas=True))
    return latents
