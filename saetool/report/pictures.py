"""The chunks of the image pages: every image's facts and strongest latents, and the strongest latents of patches."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import safe_open

from saetool.features.reading import latents_of_image
from saetool.report.chunks import pack, smallest_unsigned, text
from saetool.report.facts import ImageFacts

FACTS_BLOCK = 128
PATCHES_BLOCK = 4
SHARE_STEPS = 255
"""Steps of a value between 0 and its patch's strongest, which is exact: finer than a page prints next to that one."""
STRONGEST = 12
"""Latents that stand beside an image's facts: every image has as many, whether or not its patches are there."""


def facts_chunks(facts: ImageFacts, held_out: np.ndarray, strongest: np.ndarray | None) -> Iterator[tuple[str, bytes]]:
    """Yield (name, script) with what is said of every image, `FACTS_BLOCK` a chunk.

    `strongest` [images, `STRONGEST`] are records of latent (−1 for none), value and patch.
    """
    for start in range(0, len(facts.paths), FACTS_BLOCK):
        rows = np.arange(start, min(start + FACTS_BLOCK, len(facts.paths)))
        arrays = {"shown": text(facts.shown(rows)), "held_out": held_out[rows].astype(np.uint8)}
        if (boxes := facts.boxes(rows)) is not None:
            arrays["box"] = boxes
        if strongest is not None:
            mine = strongest[rows]
            arrays |= {name: np.ascontiguousarray(mine[name]) for name in ("latent", "value", "patch")}
        name = f"images/{start // FACTS_BLOCK}"
        yield name, pack(name, arrays, {"start": start})


def strongest_latents(path: Path, rarity: np.ndarray) -> np.ndarray:
    """Return each image's latents by their largest activation times `rarity` [n_latents], largest first.

    Records of latent, value and patch [images, `STRONGEST`]; from the strongest latents of every patch.
    """
    kind = np.dtype([("latent", np.int32), ("value", np.float32), ("patch", np.int32)])
    with safe_open(path, "np") as file:
        latents, values = file.get_slice("latents"), file.get_slice("values")
        found = np.zeros((latents.get_shape()[0], STRONGEST), kind)
        found["latent"] = -1
        for image in range(len(found)):
            latent, value, patch, _ = latents_of_image(latents[image], values[image])
            kept = np.lexsort((latent, -value * rarity[latent]))[:STRONGEST]
            for name, numbers in (("latent", latent), ("value", value), ("patch", patch)):
                found[name][image, : len(kept)] = numbers[kept]
    return found


def rarity_of(image_counts: np.ndarray, images: int) -> np.ndarray:
    """Return ln(1 / share of images) of every latent: 0 of one that fires on all, or on none."""
    return np.log(images / np.clip(image_counts, 1, images)) * (image_counts > 0)


def patches_chunks(path: Path, chosen: np.ndarray, n_latents: int) -> Iterator[tuple[np.ndarray, str, bytes]]:
    """Yield (rows, name, script) with the strongest latents of every patch, `PATCHES_BLOCK` images a chunk.

    Chunks come in the order in which `chosen` first names one of their images. A patch's strongest value is exact,
    the others are multiples of its `SHARE_STEPS`-th part.
    """
    kind = smallest_unsigned(n_latents)
    with safe_open(path, "np") as file:
        latents, values = file.get_slice("latents"), file.get_slice("values")
        blocks, first = np.unique(chosen // PATCHES_BLOCK, return_index=True)
        wanted = np.zeros(latents.get_shape()[0], bool)
        wanted[chosen] = True
        for block in blocks[np.argsort(first)]:
            rows = np.arange(block * PATCHES_BLOCK, min((block + 1) * PATCHES_BLOCK, len(wanted)))
            rows = rows[wanted[rows]]
            ids = np.stack([latents[int(row)] for row in rows])
            strength = np.stack([values[int(row)] for row in rows]).astype(np.float32)
            strength = np.where(ids >= 0, strength, 0)
            top = strength.max(axis=2, initial=0.0)
            share = np.rint(strength / np.maximum(top, np.finfo(np.float32).tiny)[..., None] * SHARE_STEPS)
            # 0 is "none"; latents count from 1 here.
            arrays = {"rows": rows.astype(np.int32), "top": top, "latent": (ids + 1).astype(kind)}
            arrays["share"] = share.astype(np.uint8)
            values_ = {"tokens": ids.shape[1], "strongest": ids.shape[2], "steps": SHARE_STEPS}
            yield rows, f"patches/{block}", pack(f"patches/{block}", arrays, values_)
