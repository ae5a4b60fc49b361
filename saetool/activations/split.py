"""Which images are held out: decided by their content, so that duplicates and other stores agree."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from saetool import seeding


def is_held_out(digest: str, seed: int, share: float) -> bool:
    """Say whether an image is held out by its own hash, whatever other images there are."""
    return _hash(digest, seed) < share * 2.0**63


def held_out_mask(digests: Sequence[str], seed: int, share: float) -> Bool[np.ndarray, "images"]:
    """Say for each image, by its file digest, whether it is held out: hash(seed, digest) below `share`.

    When none qualifies and `share` is above 0, the image with the smallest hash is held out (with its duplicates).
    """
    hashes = np.array([_hash(digest, seed) for digest in digests], dtype=np.int64)
    mask = hashes < share * 2.0**63
    if share > 0 and len(hashes) and not mask.any():
        mask = hashes == hashes.min()
    return mask


def _hash(digest: str, seed: int) -> int:
    """Return the image's place among all, from 0 to 2⁶³ − 1."""
    return seeding.derive(seed, "held out", digest)
