"""Writing a store: shards of whole slices, each its own unit of resuming, then the tables that cover all of them.

The manifest's content: images (rows of images.parquet), tokens (an image, at the first site), dtype, sites [{folder,
layer, module, d, n_tokens, digest, …}], grid, token_kind, geometry, labels [{name, kind, classes}], slices and shards
(images in each), skipped [{index in the source, path}], source. Why images were skipped stands in the manifest's notes
(skip_reasons, by path): such words may name places on one machine.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from saetool.activations import thumbnails
from saetool.activations.moments import SiteMoments
from saetool.activations.settings import CacheSettings
from saetool.activations.shard import DTYPES, shard_bytes, shard_name
from saetool.artifacts import Partial
from saetool.errors import RequestError, WorkError, printable

_COLUMNS = ("id", "path", "width", "height", "digest", "slice", "image", "held_out")
"""Columns of images.parquet and of the index made from it."""
_FILES = ("manifest.json", "images.parquet", thumbnails.FOLDER)
"""What stands beside the sites' folders."""
_LONGEST = 200
"""Bytes of a folder's name: file systems take 255, and a suffix may be added."""
WRITERS = 4
"""Shards written at once: some are handed to the system while others are being made durable."""
_TABLE_ROWS = 65536
"""Images in a row group of images.parquet: what finishing holds in memory."""


def require_folder_name(name: object) -> None:
    """Raise RequestError unless a site's folder can have this name."""
    if not _is_folder_name(name) or name in _FILES:
        raise RequestError(f"{str(name)[:80]!r} cannot name a site's folder in a store: rename it.")


def _is_folder_name(name: object) -> bool:
    """Say whether a folder of this name lies where it is made, on any file system, and can be written down."""
    if not isinstance(name, str) or not name or name.startswith(".") or printable(name) != name:
        return False
    return not any(sign in name for sign in "/\\\n\t") and len(name.encode()) <= _LONGEST


@dataclass(frozen=True)
class Plan:
    """How the images of a source fall into slices and shards; the same for every process and every attempt."""

    n_images: int
    """Images in the source, before any is skipped."""
    sites: list[dict[str, Any]]
    """Each with folder, n_tokens and d, as the manifest will hold them."""
    settings: CacheSettings

    def __post_init__(self) -> None:
        """Raise RequestError where a site has no values, or no name that a folder can have."""
        names = [site["folder"] for site in self.sites]
        for site, name in zip(self.sites, names, strict=True):
            require_folder_name(name)
            if names.count(name) > 1:
                raise RequestError(f"{name!r} names two sites: a store keeps each in a folder of its own.")
            if not site["n_tokens"] or not site["d"]:
                raise RequestError(f"{name}: {site['n_tokens']} tokens of width {site['d']} hold nothing to store.")

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.settings.dtype]

    @property
    def slices_per_shard(self) -> int:
        """Slices in a shard: as many as the widest site's share of `shard_mb` holds, at least one."""
        image_bytes = max(site["n_tokens"] * site["d"] for site in self.sites) * self.dtype.itemsize
        return max(1, int(self.settings.shard_mb * 2**20 / (image_bytes * self.settings.batch_size)))

    @property
    def n_slices(self) -> int:
        return math.ceil(self.n_images / self.settings.batch_size)

    @property
    def n_shards(self) -> int:
        return math.ceil(self.n_slices / self.slices_per_shard)

    def slices_of(self, shard: int) -> range:
        return range(shard * self.slices_per_shard, min((shard + 1) * self.slices_per_shard, self.n_slices))

    def images_of(self, slice_: int) -> range:
        """Return the source's images in a slice."""
        size = self.settings.batch_size
        return range(slice_ * size, min((slice_ + 1) * size, self.n_images))


@dataclass
class ShardContent:
    """What is known of a finished shard."""

    images: list[dict[str, Any]]
    """A row of images.parquet each, without id."""
    slices: list[int]
    """Images kept of each slice."""
    moments: dict[str, SiteMoments]
    """By site folder."""
    skipped: list[dict[str, Any]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    """Why, for each that was skipped."""
    thumbnails: list[bytes] = field(default_factory=list)
    """Of each image, where `cache.thumbnails` asks for them."""


class StoreWriter:
    """Writes the shards of a plan in any order, from any process; `finish` puts them under one roof."""

    def __init__(self, partial: Partial, plan: Plan, labels: list[dict[str, Any]]):
        taken = [label["name"] for label in labels if label["name"] in _COLUMNS]
        if taken:
            raise RequestError(f"Label column {taken[0]!r} has a name that the store uses itself: rename it.")
        self.partial = partial
        self.plan = plan
        self.labels = labels

    def is_done(self, shard: int) -> bool:
        """Say whether a shard was finished by an earlier attempt, and still has the bytes that it wrote."""
        folders = [site["folder"] for site in self.plan.sites]
        folders += [thumbnails.FOLDER] if self.plan.settings.thumbnails else []
        whole = (self.partial.is_whole(shard_name(folder, shard)) for folder in folders)
        return self.partial.unit_of(f"shards/{shard:05d}") is not None and all(whole)

    def write_shard(self, shard: int, tokens: Mapping[str, Sequence[Tensor]], content: ShardContent) -> None:
        """Write a shard of every site, then record it as done; from any thread.

        tokens: by site folder, pieces [images, tokens, d] in the stored dtype on the CPU, which follow one another.
        """
        for folder in (site["folder"] for site in self.plan.sites):
            self.partial.write_bytes(shard_name(folder, shard), *shard_bytes(tokens[folder]))
        if self.plan.settings.thumbnails:
            small = thumbnails.tensors_of(content.thumbnails)
            self.partial.write_tensors(shard_name(thumbnails.FOLDER, shard), small)
        self.partial.record(
            f"shards/{shard:05d}",
            {
                "images": content.images,
                "slices": content.slices,
                "skipped": content.skipped,
                "reasons": content.reasons,
                "moments": {folder: moments.to_json() for folder, moments in content.moments.items()},
            },
        )

    def finish(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Merge all shards' records, in order: images.parquet, statistics, the manifest's content with `facts`."""
        slices: list[int] = []
        shards: list[int] = []
        skipped: list[dict[str, Any]] = []
        reasons: dict[str, str] = {}
        moments = {site["folder"]: SiteMoments.none(site["d"]) for site in self.plan.sites}
        table = _ImageTable(self.partial, self.labels)
        for shard in range(self.plan.n_shards):
            record = self.partial.record_of(f"shards/{shard:05d}")
            slices += record["slices"]
            shards.append(sum(record["slices"]))
            skipped += record["skipped"]
            paths = [image["path"] for image in record["skipped"]]
            reasons |= dict(zip(paths, record.get("reasons", ()), strict=False))
            for folder, value in record["moments"].items():
                moments[folder] = moments[folder].merge(SiteMoments.from_json(value))
            table.add(record["images"])
        table.close()
        if reasons:
            self.partial.note("skip_reasons", reasons)
        if skipped and not sum(shards):
            why = f", the first because: {next(iter(reasons.values()))}" if reasons else ""
            raise WorkError(f"{self.partial.out}: not one of the {self.plan.n_images:,} images could be read{why}")
        for folder, value in moments.items():
            self.partial.write_tensors(f"{folder}/stats.safetensors", value.tensors())
        return {
            "images": sum(shards),
            "tokens": self.plan.sites[0]["n_tokens"],
            "dtype": self.plan.settings.dtype,
            "sites": self.plan.sites,
            "labels": self.labels,
            "slices": slices,
            "shards": shards,
            "skipped": skipped,
            **({"thumbnails": True} if self.plan.settings.thumbnails else {}),
            **facts,
        }


class _ImageTable:
    """images.parquet, written a row group at a time."""

    def __init__(self, partial: Partial, labels: list[dict[str, Any]]):
        import pyarrow as pa
        import pyarrow.parquet as parquet

        types = {"category": pa.string(), "number": pa.float64()}
        fields = [("id", pa.int64()), ("path", pa.string())]
        fields += [(label["name"], types[label["kind"]]) for label in labels]
        fields += [("width", pa.int32()), ("height", pa.int32()), ("digest", pa.string()), ("slice", pa.int32())]
        self._schema = pa.schema(fields)
        path = partial.file("images.parquet")
        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd", store_schema=False)
        self._rows: list[dict[str, Any]] = []
        self._written = 0

    def add(self, rows: list[dict[str, Any]]) -> None:
        self._rows += rows
        while len(self._rows) >= _TABLE_ROWS:
            self._flush(_TABLE_ROWS)

    def close(self) -> None:
        self._flush(len(self._rows))
        self._writer.close()

    def _flush(self, count: int) -> None:
        import pyarrow as pa

        rows = [{"id": self._written + i, **row} for i, row in enumerate(self._rows[:count])]
        self._writer.write_table(pa.Table.from_pylist(rows, schema=self._schema))
        self._written += count
        self._rows = self._rows[count:]
