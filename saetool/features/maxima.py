"""Sparse image maxima: for every latent, the images on which it fires and how."""

from dataclasses import dataclass

import numpy as np

RECORD = np.dtype(
    [
        ("latent", np.int32),
        ("image", np.int32),
        ("patch", np.int32),
        ("tokens", np.int32),
        ("value", np.float32),
        ("mass", np.float32),
    ]
)
"""One (latent, image) pair with at least one firing token: the position of the strongest token (the first of equals),
the number of firing tokens, the largest value and the sum of all values."""


@dataclass(frozen=True)
class Maxima:
    """The image maxima of latents `first` to `stop`, sorted by latent, then image.

    `starts` [latents + 1]: the records of latent `first + i` are starts[i] to starts[i + 1].
    """

    records: np.ndarray
    first: int
    stop: int
    starts: np.ndarray

    @classmethod
    def of(cls, records: np.ndarray, first: int, stop: int) -> "Maxima":
        """Group records that are sorted by latent, then image."""
        counts = np.bincount(records["latent"] - first, minlength=stop - first)
        return cls(records, first, stop, np.concatenate([[0], np.cumsum(counts)]))

    @property
    def n_latents(self) -> int:
        """The number of latents in this block."""
        return self.stop - self.first

    @property
    def counts(self) -> np.ndarray:
        """The number of images on which each latent fires, int64 [latents]."""
        return np.diff(self.starts)

    @property
    def latent(self) -> np.ndarray:
        """The latent of every record, counted from `first`, int64."""
        return self.records["latent"].astype(np.int64) - self.first

    def column(self, name: str) -> np.ndarray:
        """Return one field of the records as a contiguous array."""
        return np.ascontiguousarray(self.records[name])


def ordered_bits(values: np.ndarray) -> np.ndarray:
    """Map positive float32 values to int64 in the same order."""
    return np.ascontiguousarray(values, dtype=np.float32).view(np.int32).astype(np.int64)
