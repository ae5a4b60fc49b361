"""A store made from tensors: anything with rows can be stored, trained on and indexed like activations."""

import os
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from saetool.activations.moments import LARGEST, SiteMoments
from saetool.activations.row_images import Pictures, RowImages, content_of, describe_rows
from saetool.activations.settings import CacheSettings
from saetool.activations.shard import DTYPES
from saetool.activations.store import KIND, ActivationStore
from saetool.activations.writer import WRITERS, Plan, ShardContent, StoreWriter, require_folder_name
from saetool.artifacts import Partial, Stage, digest_bytes, digest_json, run_stage
from saetool.errors import RequestError, shown, type_name
from saetool.images.registry import registered_in
from saetool.settings import Settings
from saetool.threads import ordered
from saetool.validation import request

Rows = Shaped[Tensor | np.ndarray, "images tokens d"]


def write_store(
    out: str | os.PathLike,
    tokens: "Rows | dict[str, Rows]",
    *,
    images: Any = None,
    labels: Sequence[dict[str, Any]] = (),
    thumbnails: Sequence[Any] | None = None,
    root: str | os.PathLike | None = None,
    grid: tuple[int, int] | None = None,
    geometry: dict[str, Any] | None = None,
    settings: CacheSettings | Mapping[str, Any] | None = None,
    force: bool = False,
) -> ActivationStore:
    """Store rows made elsewhere, and return the opened store: anything can be trained on and indexed like activations.

    tokens: a tensor or numpy array [images, tokens, d], or [images, d] where an image is one row; by site folder where
    there are several. Values are converted to `settings.dtype`.
    images: the pictures that the rows come from, in their order, as anything that `open_source` takes (a folder, a list
    of paths, a data set, an array), which gives names, sizes and labels too; or a dictionary an image with any of path,
    width, height, digest (default: of its values) and the labels. root: the folder that the paths lie below; a report
    reads the pictures there. thumbnails: a picture an image, small or not, that the store keeps for reports.
    labels: [{"name", "kind": "category" | "number", "classes"}].

    Raises RequestError for values that are not finite, labels of no class, and shapes that do not fit together.

    >>> rows, pictures = np.random.rand(3, 4, 16), np.zeros((3, 32, 32), np.uint8)        # images, tokens, d
    >>> store = saetool.write_store("runs/rows/activations", rows, images=pictures, grid=(2, 2))
    >>> store.site().rows(0, 2).shape
    torch.Size([2, 4, 16])
    """
    given = {"dtype": "float32"} if settings is None else settings
    cache = request(_Request, "write_store", {"cache": given}, {}).cache
    if cache.thumbnails and images is None and thumbnails is None:
        raise RequestError(
            "cache.thumbnails: a store made from rows has no pictures to keep; give thumbnails or images."
        )
    sites = _sites(tokens, grid)
    stored = {folder: rows.detach().to(DTYPES[cache.dtype]).contiguous() for folder, rows in sites.items()}
    pictures = Pictures(images, thumbnails, root, cache.thumbnails)
    known = describe_rows(next(iter(stored.values())).cpu(), pictures, labels)
    facts = {"grid": list(grid) if grid else None, "token_kind": "rows", "geometry": geometry, **known.facts()}
    stage = _stage(stored, known, cache.model_copy(update={"thumbnails": bool(known.thumbnails)}), facts)
    return ActivationStore(run_stage(stage, out, force=force))


class _Request(Settings):
    cache: CacheSettings


def _stage(stored: dict[str, Tensor], known: RowImages, settings: CacheSettings, facts: dict[str, Any]) -> Stage:
    """Return the stage that writes rows, in their stored type, as a store."""
    sites = [_site(folder, rows) for folder, rows in stored.items()]
    plan = Plan(len(known.table), sites, settings)
    contents = {folder: digest_bytes(content_of(rows)) for folder, rows in stored.items()}

    def build(partial: Partial) -> dict[str, Any]:
        writer = StoreWriter(partial, plan, known.labels)
        # Measured here, a shard after the other: that is many small steps, for which threads would only take turns.
        measured = ((shard, *_measured(plan, shard, stored, known)) for shard in range(plan.n_shards))
        deque(ordered(lambda made: writer.write_shard(*made), measured, WRITERS), maxlen=0)
        if known.source is not None:
            partial.note("images_root", known.source.root)
            partial.note("images_registered", registered_in(known.source.name))
        return writer.finish(facts)

    config = {"source": "tensors", "sites": plan.sites, "contents": contents, **settings.content(), **facts}
    config |= {"images": digest_json(known.table), "labels": known.labels}
    if known.thumbnails:
        config["pictures"] = digest_json([digest_bytes(small) for small in known.thumbnails])
    return Stage(KIND, config, build)


def _sites(tokens: Any, grid: tuple[int, int] | None) -> dict[str, Tensor]:
    """Return the tensors by site folder; RequestError where there is one that is no store's."""
    sites = dict(tokens) if isinstance(tokens, dict) else {"rows": tokens}
    for name, rows in sites.items():
        require_folder_name(name)
        if isinstance(rows, np.ndarray) and rows.dtype.kind in "fiub":
            sites[name] = rows = torch.from_numpy(rows)
        if not isinstance(rows, Tensor) or rows.is_complex() or rows.is_meta:
            kind = rows.dtype if isinstance(rows, Tensor) else type_name(rows)
            raise RequestError(f"write_store takes tensors or numpy arrays [images, tokens, d], not {kind}.")
        sites[name] = rows[:, None] if rows.ndim == 2 else rows
    if not sites:
        raise RequestError("write_store takes tensors or numpy arrays [images, tokens, d], not nothing.")
    n_images = len(next(iter(sites.values())))
    if any(rows.ndim != 3 or len(rows) != n_images for rows in sites.values()):
        raise RequestError("Each site needs a tensor [images, tokens, d], with the same number of images.")
    empty = next((name for name, rows in sites.items() if 0 in rows.shape[1:]), None)
    if empty is not None:
        raise RequestError(f"{empty}: shape {list(sites[empty].shape)} has no tokens or no width.")
    n_tokens = next(iter(sites.values())).shape[1]
    pair = isinstance(grid, tuple | list) and len(grid) == 2 and all(isinstance(side, int) for side in grid)
    if grid is not None and not pair:
        raise RequestError(f"write_store: grid is (rows, columns), not {shown(grid)}.")
    if grid is not None and grid[0] * grid[1] != n_tokens:
        raise RequestError(f"A grid of {grid[0]} × {grid[1]} has other than {n_tokens} tokens.")
    return sites


def _measured(
    plan: Plan, shard: int, stored: dict[str, Tensor], known: RowImages
) -> tuple[dict[str, list[Tensor]], ShardContent]:
    """Return the rows of a shard by site folder, and what is known of them; RequestError where some are not finite."""
    slices = plan.slices_of(shard)
    parts = [plan.images_of(slice_) for slice_ in slices]
    tokens = {folder: rows[parts[0].start : parts[-1].stop] for folder, rows in stored.items()}
    moments = {folder: SiteMoments.of(rows.flatten(0, 1)) for folder, rows in tokens.items()}
    for folder, moment in moments.items():
        if not moment.finite:
            raise RequestError(
                f"{folder}: some values are not finite and below {LARGEST:g} (in {plan.settings.dtype})."
            )
    rows = [{**known.table[i], "slice": slice_} for slice_, part in zip(slices, parts, strict=True) for i in part]
    small = known.thumbnails[parts[0].start : parts[-1].stop]
    content = ShardContent(rows, [len(part) for part in parts], moments, thumbnails=small)
    return {folder: [found.cpu()] for folder, found in tokens.items()}, content


def _site(folder: str, rows: Tensor) -> dict[str, Any]:
    identity = {"weights": None, "module": folder, "tokens": "rows", "preprocessing": None, "d": rows.shape[2]}
    facts = {"backbone": None, "folder": folder, "layer": None, "label": folder, "n_tokens": rows.shape[1]}
    return {**facts, **identity, "digest": digest_json(identity)}
