"""A store made from tensors: anything with rows can be stored, trained on and indexed like activations."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from saetool.activations.moments import LARGEST, SiteMoments
from saetool.activations.settings import CacheSettings
from saetool.activations.store import KIND, ActivationStore
from saetool.activations.writer import Plan, ShardContent, StoreWriter, require_folder_name
from saetool.artifacts import Partial, Stage, digest_bytes, digest_json, run_stage
from saetool.errors import RequestError, type_name
from saetool.images.source import require_text, stored_label


def write_store(
    out: str | os.PathLike,
    tokens: "Shaped[Tensor, 'images tokens d'] | dict[str, Shaped[Tensor, 'images tokens d']]",
    *,
    images: Sequence[dict[str, Any]] | None = None,
    labels: Sequence[dict[str, Any]] = (),
    grid: tuple[int, int] | None = None,
    geometry: dict[str, Any] | None = None,
    settings: CacheSettings | None = None,
    force: bool = False,
) -> ActivationStore:
    """Store tensors [images, tokens, d], by site folder where there are several, and return the opened store.

    `images`: a dictionary an image with any of path, width, height, digest (default: of its values) and the labels;
    `labels`: [{"name", "kind": "category" | "number", "classes"}]. Values are converted to `settings.dtype`.
    Raises RequestError for values that are not finite, labels of no class, and shapes that do not fit together.

    >>> store = saetool.write_store("runs/rows/activations", torch.randn(10, 4, 16))      # images, tokens, d
    >>> store.site().rows(0, 2).shape
    torch.Size([2, 4, 16])
    """
    settings = settings or CacheSettings(dtype="float32")
    if settings.thumbnails:
        raise RequestError("cache.thumbnails: a store made from tensors has no pictures to keep; leave it out.")
    sites = _sites(tokens, grid)
    n_images = len(next(iter(sites.values())))
    plan = Plan(n_images, [_site(folder, rows) for folder, rows in sites.items()], settings)
    stored = {folder: rows.detach().to(plan.dtype).contiguous() for folder, rows in sites.items()}
    contents = {folder: digest_bytes(_bytes(rows)) for folder, rows in stored.items()}
    labels = _require_labels(labels)
    table = _table(images, next(iter(stored.values())), labels)
    facts = {"grid": list(grid) if grid else None, "token_kind": "rows", "geometry": geometry, "source": None}

    def build(partial: Partial) -> dict[str, Any]:
        writer = StoreWriter(partial, plan, labels)
        for shard in range(plan.n_shards):
            _write(writer, shard, stored, table)
        return writer.finish(facts)

    config = {"source": "tensors", "sites": plan.sites, "contents": contents, **settings.content(), **facts}
    config |= {"images": digest_json(table), "labels": labels}
    return ActivationStore(run_stage(Stage(KIND, config, build), out, force=force))


def _sites(tokens: Any, grid: tuple[int, int] | None) -> dict[str, Tensor]:
    """Return the tensors by site folder; RequestError where there is one that is no store's."""
    given = tokens if isinstance(tokens, dict) else {"rows": tokens}
    numbers = {name: isinstance(rows, np.ndarray) and rows.dtype.kind in "fiub" for name, rows in given.items()}
    sites = {name: torch.from_numpy(rows) if numbers[name] else rows for name, rows in given.items()}
    for name in sites:
        require_folder_name(name)
    wrong = [rows for rows in sites.values() if not isinstance(rows, Tensor) or rows.is_complex() or rows.is_meta]
    if wrong or not sites:
        kind = type_name(wrong[0]) if sites else "nothing"
        kind = str(wrong[0].dtype) if wrong and isinstance(wrong[0], Tensor) else kind
        raise RequestError(f"write_store takes tensors or numpy arrays [images, tokens, d], not {kind}.")
    n_images = len(next(iter(sites.values())))
    if any(rows.ndim != 3 or len(rows) != n_images for rows in sites.values()):
        raise RequestError("Each site needs a tensor [images, tokens, d], with the same number of images.")
    empty = next((name for name, rows in sites.items() if 0 in rows.shape[1:]), None)
    if empty is not None:
        raise RequestError(f"{empty}: shape {list(sites[empty].shape)} has no tokens or no width.")
    n_tokens = next(iter(sites.values())).shape[1]
    if grid is not None and grid[0] * grid[1] != n_tokens:
        raise RequestError(f"A grid of {grid[0]} × {grid[1]} has other than {n_tokens} tokens.")
    return sites


def _write(writer: StoreWriter, shard: int, stored: dict[str, Tensor], table: list[dict[str, Any]]) -> None:
    slices = writer.plan.slices_of(shard)
    parts = [writer.plan.images_of(slice_) for slice_ in slices]
    tokens = {folder: rows[parts[0].start : parts[-1].stop] for folder, rows in stored.items()}
    moments = {folder: SiteMoments.of(rows.flatten(0, 1)) for folder, rows in tokens.items()}
    for folder, moment in moments.items():
        if not moment.finite:
            raise RequestError(
                f"{folder}: some values are not finite and below {LARGEST:g} (in {writer.plan.settings.dtype})."
            )
    rows = [{**table[i], "slice": slice_} for slice_, part in zip(slices, parts, strict=True) for i in part]
    pieces = {folder: [piece.cpu()] for folder, piece in tokens.items()}
    writer.write_shard(shard, pieces, ShardContent(rows, [len(part) for part in parts], moments))


def _site(folder: str, rows: Tensor) -> dict[str, Any]:
    identity = {"weights": None, "module": folder, "tokens": "rows", "preprocessing": None}
    size = {"n_tokens": rows.shape[1], "d": rows.shape[2]}
    fields = {"backbone": None, "folder": folder, "layer": None, "label": folder}
    return {**fields, **size, **identity, "digest": digest_json({**identity, "d": rows.shape[2]})}


def _table(
    images: Sequence[dict[str, Any]] | None, rows: Tensor, labels: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    entries = images if images is not None else [{} for _ in rows]
    if len(entries) != len(rows):
        raise RequestError(f"{len(entries)} images are described, {len(rows)} are given.")
    table = []
    for i, (entry, values) in enumerate(zip(entries, rows, strict=True)):
        row = {"path": f"{i:06d}", "width": None, "height": None, **{label["name"]: None for label in labels}, **entry}
        row.setdefault("digest", digest_bytes(_bytes(values)))
        try:
            require_text(row["path"])
            for column in labels:
                name, kind, classes = column["name"], column["kind"], column.get("classes")
                row[name] = stored_label(row[name], name, kind, classes)
        except ValueError as error:
            raise RequestError(f"Image {i}: {error}.") from None
        table.append(row)
    return table


def _require_labels(labels: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the label columns; raise RequestError unless each has a name, a kind, and its classes where it has any."""
    for label in labels:
        name, kind, classes = (label.get(key) for key in ("name", "kind", "classes"))
        if not isinstance(name, str) or kind not in ("category", "number"):
            raise RequestError(f"A label is {{name, kind: category or number, classes}}, not {label}.")
        if kind == "category" and not (isinstance(classes, list | tuple) and all(isinstance(c, str) for c in classes)):
            raise RequestError(f"Label {name!r}: give its classes, a list of texts, not {classes!r}.")
    return [dict(label) for label in labels]


def _bytes(rows: Tensor) -> memoryview:
    return rows.reshape(-1).view(torch.uint8).numpy().data
