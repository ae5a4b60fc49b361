"""Reading a store of activations: images, sites, rows.

activations/
  manifest.json             content: see writer.py
  images.parquet            row i is image i: id, path, labels, width, height, digest, slice
  layer-10/00000.safetensors   "tokens": [images, tokens, d]; a shard holds whole slices
  layer-10/stats.safetensors   count, mean [d], variance [d], mean_norm, max_abs, non_finite
"""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saetool.activations.shard import DTYPES, Shard, shard_name
from saetool.artifacts import Artifact
from saetool.artifacts.remote import is_remote
from saetool.errors import RequestError
from saetool.statistics import Statistics

if TYPE_CHECKING:
    import pyarrow

KIND = "activations"
_MAPPED = 16
"""Shards of a site that stay mapped: a view keeps its own mapping alive, so this bounds only what nobody uses."""
_FETCHED = 4
"""Shards of a site behind an address that stay in memory: passes over a store read them in order."""
_SKIPPED = 1 << 20
"""Bytes of unwanted images that are read along with what is wanted."""


class ActivationStore:
    """A sealed store: `n_images` images, one `SiteStore` a site."""

    def __init__(self, artifact: Artifact):
        self.artifact = artifact
        self.n_images: int = artifact.content["images"]
        self.slices = _ranges(artifact.content["slices"])
        """Image rows of each slice, the unit of every later pass; one that lost all its images is empty."""

    def __repr__(self) -> str:
        return repr(self.artifact)

    def _repr_html_(self) -> str:
        return self.artifact._repr_html_()

    @classmethod
    def open(cls, path: str | os.PathLike) -> "ActivationStore":
        """Open the store at `path` (or at an address that fsspec reads); RequestError unless it is sealed and whole."""
        return cls(Artifact.open(path, kind=KIND))

    @cached_property
    def images(self) -> "pyarrow.Table":
        """The table of images: id, path, labels, width, height, digest, slice."""
        table = self.artifact.read_table("images.parquet")
        if table.num_rows != self.n_images:
            raise RequestError(f"{self.artifact.path}: damaged: images.parquet has {table.num_rows} rows.")
        return table

    @property
    def digests(self) -> list[str]:
        """The digest of each image's file."""
        return self.images["digest"].to_pylist()

    @property
    def sites(self) -> list["SiteStore"]:
        """All sites, in the order they were asked for."""
        return [self.site(info["folder"]) for info in self.artifact.content["sites"]]

    @property
    def embedding(self) -> "SiteStore | None":
        """The site with one vector an image that was stored to embed images, where there is one."""
        folders = [info["folder"] for info in self.artifact.content["sites"] if info.get("embedding")]
        return self.site(folders[0]) if folders else None

    def site(self, name: str | int | None = None) -> "SiteStore":
        """Return a site by folder, module path or layer number; None: the only one. Embeddings go by folder only.

        Raises RequestError naming the sites there are.
        """
        infos = self.artifact.content["sites"]
        found = [info for info in infos if name is None or name in (info["folder"], info["module"], info["layer"])]
        found = [info for info in found if not info.get("embedding") or name == info["folder"]]
        if len(found) != 1:
            known = ", ".join(info["folder"] for info in infos)
            asked = "Several sites are stored; say which (training.layer)" if name is None else f"No site {name!r}"
            raise RequestError(f"{self.artifact.path}: {asked}. Stored: {known}.")
        return SiteStore(self, found[0])


class SiteStore:
    """The rows of one site: `n_images` × `tokens` rows of width `d`."""

    def __init__(self, store: ActivationStore, info: dict):
        content = store.artifact.content
        self.store = store
        self.info = info
        """The site as the manifest describes it; info["digest"] is its identity."""
        self.d: int = info["d"]
        self.tokens: int = info["n_tokens"]
        self.dtype: torch.dtype = DTYPES[content["dtype"]]
        self.grid: list[int] | None = None if info.get("embedding") else content["grid"]
        self.n_images = store.n_images
        self._shards = _ranges(content["shards"])
        self._starts = np.array([shard.start for shard in self._shards])
        self._opened = lru_cache(maxsize=None)(self._open)
        kept = _FETCHED if is_remote(store.artifact.path) else _MAPPED
        self._mapped = lru_cache(maxsize=kept)(lambda index: self._opened(index).map())

    def rows(self, start: int, stop: int) -> Float[Tensor, "images tokens d"]:
        """Return images `start` to `stop`: a view of the mapped file inside one shard, a copy across shards.

        Of a store behind an address, whole shards are fetched, and the last few of them kept.
        """
        if not 0 <= start <= stop <= self.n_images:
            raise RequestError(f"Images {start} to {stop} were asked for; the store has {self.n_images}.")
        pieces = [self._mapped(index)[a:b] for index, a, b in self._parts(start, stop)]
        if not pieces:
            return torch.empty(0, self.tokens, self.d, dtype=self.dtype)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def rows_of(self, images: Sequence[int] | np.ndarray) -> Float[Tensor, "images tokens d"]:
        """Return some images, ascending, as `rows` does: a view where they follow one another inside one shard."""
        pieces = [self.rows(start, stop) for start, stop in runs_of(images)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def in_order(self, images: Bool[np.ndarray, "images"]) -> Iterator[Float[Tensor, "rows d"]]:
        """Yield the rows of the images where `images` is true, a run of them inside a slice at a time."""
        for block in self.store.slices:
            for start, stop in runs(images[block.start : block.stop]):
                yield self.rows(block.start + start, block.start + stop).reshape(-1, self.d)

    def read_into(self, out: Float[Tensor, "images tokens d"], start: int, stop: int) -> None:
        """Read images `start` to `stop` into `out`, without mapping files: memory stays what `out` takes."""
        place = 0
        for index, a, b in self._parts(start, stop):
            self._opened(index).read_into(out[place : place + b - a], a)
            place += b - a

    def read_runs_into(self, out: Float[Tensor, "images tokens d"], wanted: Sequence[tuple[int, int]]) -> None:
        """Read runs (start, stop) of images, ascending, into `out`, one after the other, as `read_into` does.

        What little lies between two runs is read and forgotten: another call would cost more.
        """
        gap = _SKIPPED // (self.tokens * self.d * self.dtype.itemsize)
        for near in near_runs(wanted, gap):
            images = sum(stop - start for start, stop in near)
            self._read_near(out[:images], near)
            out = out[images:]

    def _read_near(self, out: Tensor, near: Sequence[tuple[int, int]]) -> None:
        (index, first, _), *others = self._parts(near[0][0], near[-1][1])
        if others:  # across shards
            for start, stop in near:
                self.read_into(out[: stop - start], start, stop)
                out = out[stop - start :]
            return
        shard, at, targets = self._opened(index), near[0][0], []
        view = out.view(torch.uint8).reshape(-1).numpy().data
        for start, stop in near:
            size = (stop - start) * shard.image_bytes
            targets += [self._skipped[: (start - at) * shard.image_bytes]] * (start > at) + [view[:size]]
            view, at = view[size:], stop
        shard.scatter(targets, first)

    @cached_property
    def _skipped(self) -> memoryview:
        """Where images go that nobody wants."""
        return np.empty(_SKIPPED, dtype=np.uint8).data

    def statistics(self, images: Bool[np.ndarray, "images"] | None = None) -> Statistics:
        """Return the moments of all rows, or of the images where `images` is true, in float64.

        For a part, the smaller of it and its complement is read; the rest follows from the stored moments.
        """
        if images is None or images.all():
            return self._stored_statistics
        if smaller_part(images) is images:
            return self._read_statistics(images)
        return self._stored_statistics.without(self._read_statistics(~images))

    @cached_property
    def _stored_statistics(self) -> Statistics:
        from safetensors.torch import load

        found = load(self.store.artifact.read_bytes(f"{self.info['folder']}/stats.safetensors"))
        return Statistics(int(found["count"]), found["mean"], found["variance"])

    def _read_statistics(self, images: np.ndarray) -> Statistics:
        total = Statistics.none(self.d)
        for rows in self.in_order(images):
            total = total.merge(Statistics.of(rows))
        return total

    def _open(self, index: int) -> Shard:
        shape = (len(self._shards[index]), self.tokens, self.d)
        return Shard.open(self.store.artifact.file(shard_name(self.info["folder"], index)), shape, self.dtype)

    def _parts(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Return (shard, first, end) for each shard that holds some of the images `start` to `stop`."""
        parts = []
        index = max(int(np.searchsorted(self._starts, start, side="right")) - 1, 0)
        while start < stop:
            shard = self._shards[index]
            end = min(stop, shard.stop)
            if end > start:
                parts.append((index, start - shard.start, end - shard.start))
                start = end
            index += 1
        return parts


def smaller_part(images: Bool[np.ndarray, "images"]) -> Bool[np.ndarray, "images"]:
    """Return `images` itself, or what it leaves out where that is less."""
    return images if images.sum() <= len(images) // 2 else ~images


def runs(mask: Bool[np.ndarray, "n"]) -> list[tuple[int, int]]:
    """Return (start, stop) of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def runs_of(numbers: Sequence[int] | np.ndarray) -> list[tuple[int, int]]:
    """Return (start, stop) of each run of consecutive numbers among ascending ones."""
    given = np.asarray(numbers)
    pieces = np.split(given, np.flatnonzero(np.diff(given) != 1) + 1)
    return [(int(run[0]), int(run[-1]) + 1) for run in pieces if len(run)]


def near_runs(wanted: Sequence[tuple[int, int]], gap: int) -> Iterator[list[tuple[int, int]]]:
    """Yield ascending runs (start, stop) in groups whose members are at most `gap` apart."""
    group: list[tuple[int, int]] = []
    for run in wanted:
        if group and run[0] - group[-1][1] > gap:
            yield group
            group = []
        group.append(run)
    if group:
        yield group


def _ranges(counts: list[int]) -> list[range]:
    ends = np.cumsum(counts).tolist()
    return [range(end - count, end) for end, count in zip(ends, counts, strict=True)]
