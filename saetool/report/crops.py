"""What a crop is cut by: image, patch and the box of the patch grid; pages cut 7 × 7 patches around the patch."""

from collections.abc import Iterator

import numpy as np

from saetool.report.chunks import pack
from saetool.report.facts import ImageFacts

GLIMPSE_BLOCK = 64
"""Latents in one chunk of glimpses, about 2 kB: a list entry loads no more for its pictures."""
GLIMPSE_IMAGES = 4


def crops(facts: ImageFacts, images: np.ndarray, patches: np.ndarray) -> dict[str, np.ndarray]:
    """Return the arrays of some crops: image and patch (−1 for none), and the box where there is a grid."""
    rows = images.reshape(-1)
    arrays = {"image": rows.astype(np.int32), "patch": patches.reshape(-1).astype(np.int32)}
    boxes = facts.boxes(rows)
    return arrays if boxes is None else arrays | {"box": boxes}


def glimpses(facts: ImageFacts, images: np.ndarray, patches: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """Yield (name, script) with the crops that stand for a latent in lists, [n_latents, `GLIMPSE_IMAGES`]."""
    for start in range(0, len(images), GLIMPSE_BLOCK):
        span = slice(start, start + GLIMPSE_BLOCK)
        name = f"glimpses/{start // GLIMPSE_BLOCK}"
        yield name, pack(name, crops(facts, images[span], patches[span]), {"start": start})
