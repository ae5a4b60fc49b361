"""Which images are held out: decided by their content, or by their group, so that duplicates and other stores agree."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int

from saetool import seeding
from saetool.errors import RequestError
from saetool.images.settings import Grouping
from saetool.progress import say

if TYPE_CHECKING:
    from saetool.activations.store import ActivationStore


TOLD_FROM = 1.5
"""Share that a rule of groups holds out over the share that was asked for, from which on it is told."""


def is_held_out(key: str, seed: int, share: float) -> bool:
    """Say whether an image is held out by its own key (its digest, or its group), whatever other images there are."""
    return _hash(key, seed) < share * 2.0**63


def held_out_mask(keys: Sequence[str], seed: int, share: float) -> Bool[np.ndarray, "images"]:
    """Say for each image, by its file digest or its group, whether it is held out: hash(seed, key) below `share`.

    When none qualifies and `share` is above 0, the key with the smallest hash is held out, with all its images.
    """
    hashes = np.array([_hash(key, seed) for key in keys], dtype=np.int64)
    mask = hashes < share * 2.0**63
    if share > 0 and len(hashes) and not mask.any():
        mask = hashes == hashes.min()
    return mask


def held_out_images(store: "ActivationStore", held_out: Mapping[str, Any]) -> Bool[np.ndarray, "images"]:
    """Say for each image of a store whether it is held out, by {"seed", "share"} and, of groups, {"group"}: a rule.

    A duplicate of a held-out image is held out too, whatever its own group is. Of a store that the rule says nothing of
    (other images at the same site, without that label) each image is a group by itself.
    """
    digests, seed, share = np.array(store.digests), held_out["seed"], held_out["share"]
    rule = held_out.get("group")
    if rule is None or not share:
        return held_out_mask(digests.tolist(), seed, share)
    mask = held_out_mask(group_keys(store, Grouping(**rule)), seed, share)
    return mask | np.isin(digests, digests[mask])


def require_groups(store: "ActivationStore", held_out: Mapping[str, Any]) -> None:
    """Raise RequestError where training on a store cannot hold out by the rule: it fits no image, or takes them all.

    Where groups are so few that another share than the asked one is held out, it is told.
    """
    rule = held_out.get("group")
    if rule is None:
        return
    grouping = Grouping(**rule)
    names = [column["name"] for column in store.artifact.content["labels"]]
    if grouping.column is not None and grouping.column not in names:
        raise RequestError(
            f"images.group: {store.artifact.path} has no label column {grouping.column!r}. "
            f"Columns: {', '.join(names) or 'none'}."
        )
    if all(key is None for key in _named(store, grouping)):
        first = f"; the first is {store.images['path'][0].as_py()}" if "path" in store.images.column_names else ""
        raise RequestError(f"images.group {_said(rule)} fits no image of {store.artifact.path}{first}.")
    share = float(held_out_images(store, held_out).mean())
    if held_out["share"] and share == 1:
        raise RequestError(
            f"images.group {_said(rule)} holds out every image of {store.artifact.path}: there are too few groups. "
            "Choose a rule that makes more of them."
        )
    if share > TOLD_FROM * held_out["share"]:
        groups, block = len(set(group_keys(store, grouping))), _block(grouping, store.n_images)
        of = f" of {block:,}" if block is not None else ""
        say(
            f"{store.artifact.path}: images.group {_said(rule)} makes {groups:,} groups{of}, and holds out {share:.0%} "
            f"of the images, not {held_out['share']:.0%}."
        )


def image_groups(store: "ActivationStore", held_out: Mapping[str, Any]) -> Int[np.ndarray, "images"] | None:
    """Return the number of each image's group by the rule in `held_out`; None where images are on their own."""
    rule = held_out.get("group")
    if rule is None:
        return None
    return np.unique(np.array(group_keys(store, Grouping(**rule))), return_inverse=True)[1]


def group_keys(store: "ActivationStore", grouping: Grouping) -> list[str]:
    """Return what names each image's group, for `held_out_mask`; an image that the rule leaves out is one by itself."""
    return [key or digest for key, digest in zip(_named(store, grouping), store.digests, strict=True)]


def _named(store: "ActivationStore", grouping: Grouping) -> list[str | None]:
    wanted = [name for name in ("digest", "path", grouping.column or "") if name in store.images.column_names]
    rows = (row for batch in store.images.select(wanted).to_batches() for row in batch.to_pylist())
    return [group_key(row, place, grouping, store.n_images) for place, row in enumerate(rows)]


LEAST_BLOCKS = 20
"""Blocks of neighbors that any number of images falls into, as far as there are so many."""


def _block(grouping: Grouping, images: int) -> int | None:
    """Return how many images stand in a block: a twentieth of all at the most; None for other rules."""
    return None if grouping.block is None else max(1, min(grouping.block, images // LEAST_BLOCKS))


def group_key(row: Mapping[str, Any], place: int, grouping: Grouping, images: int) -> str | None:
    """Return what names an image's group: by its label, its path, or its place among all `images`; None where the rule
    says nothing of it."""
    if (block := _block(grouping, images)) is not None:
        return f"block {place // block}"
    if grouping.column is not None:
        value = row.get(grouping.column)
        return None if value is None else f"{grouping.column} {value}"
    path = str(row.get("path") or "")
    if grouping.folder is not None:
        folders = path.split("/")[:-1]
        return "/".join(folders[: grouping.folder]) if len(folders) >= grouping.folder else None
    found = re.search(str(grouping.pattern), path)
    if found is None:
        return None
    named = found[1] if found.re.groups else None  # of alternatives, another may have matched
    return f"name {found[0] if named is None else named}"


def _said(rule: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in rule.items())


def _hash(key: str, seed: int) -> int:
    """Return the key's place among all, from 0 to 2⁶³ − 1."""
    return seeding.derive(seed, "held out", key)
