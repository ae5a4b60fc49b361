"""Which images stand for a latent: the strongest, members of each interval of (0, max], random firing ones, and the
strongest that training never saw.

Everything is a stable sort of the image maxima of a block of latents, so ties go to the lower image row.
"""

from dataclasses import dataclass

import numpy as np

from saetool import seeding
from saetool.features.maxima import Maxima, ordered_bits
from saetool.features.settings import IndexSettings

GROUPS = ("top", "interval", "random", "held_out")
HELD_OUT = 8
"""Images of the group "held_out": a row of them on a page."""
_HASH_BITS = 40
_NO_INTERVAL = -1
_PACKED_CELLS = 1 << (63 - _HASH_BITS)
"""Cells that fit beside a hash into a positive int64."""


@dataclass(frozen=True)
class Chosen:
    """Examples of a block of latents, by latent, group, interval, rank: `record` points into the block's maxima.

    `group` indexes GROUPS; `interval` is −1 outside the group "interval", 0 the lowest.
    """

    record: np.ndarray
    group: np.ndarray
    interval: np.ndarray
    rank: np.ndarray


def choose(
    maxima: Maxima,
    descending: np.ndarray,
    digests: np.ndarray,
    settings: IndexSettings,
    seed: int,
    held_out: np.ndarray | None = None,
) -> Chosen:
    """Choose every latent's examples.

    `descending` is `by_value(maxima)`; `digests` [images] uint64 are the images' seeded hashes; `held_out` [images]
    says which of them training never saw, None where none is to be shown apart.
    """
    ranked = descending if settings.top_by == "max" else by_mass(maxima)
    parts = [_first(ranked, maxima.latent[ranked], settings.top, "top")]
    hashes = _hashes(maxima, digests, seed)
    if settings.intervals:
        cell = maxima.latent * settings.intervals + interval_of(maxima, settings.intervals)
        order = _by_cell(cell, hashes)
        parts.append(_first(order, cell[order], settings.interval_examples, "interval", settings.intervals))
    if settings.random:
        order = _by_cell(maxima.latent, hashes)
        parts.append(_first(order, maxima.latent[order], settings.random, "random"))
    if held_out is not None:
        unseen = ranked[held_out[maxima.records["image"][ranked]]]
        parts.append(_first(unseen, maxima.latent[unseen], HELD_OUT, "held_out"))
    record, group, interval, rank = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.lexsort((rank, interval, group, maxima.latent[record]))
    return Chosen(record[order], group[order], interval[order], rank[order])


def _by_cell(cell: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Return the order by cell, then hash, then position."""
    if len(cell) and int(cell.max()) >= _PACKED_CELLS:
        return np.lexsort((hashes, cell))
    return np.argsort((cell << _HASH_BITS) | hashes, kind="stable")  # one key sorts twice as fast as two


def by_value(maxima: Maxima) -> np.ndarray:
    """Return the order of the records by latent, then falling value, then image."""
    return np.argsort((maxima.latent << 32) | (0x7FFFFFFF - ordered_bits(maxima.column("value"))), kind="stable")


def by_mass(maxima: Maxima) -> np.ndarray:
    """Return the order of the records by latent, then falling sum over the image's tokens, then image."""
    return np.argsort((maxima.latent << 32) | (0x7FFFFFFF - ordered_bits(maxima.column("mass"))), kind="stable")


def largest(maxima: Maxima) -> np.ndarray:
    """Return each latent's largest value, float32 [latents], 0 where it never fires."""
    values = np.zeros(maxima.n_latents, np.float32)
    alive = maxima.counts > 0
    if alive.any():
        values[alive] = np.maximum.reduceat(maxima.column("value"), maxima.starts[:-1][alive])
    return values


def interval_of(maxima: Maxima, intervals: int) -> np.ndarray:
    """Return the interval of every record's value: i where i/n < value/max <= (i + 1)/n, int64."""
    # value·n and max·i are exact in float64, so the division cannot cross a border.
    position = maxima.column("value").astype(np.float64) * intervals / largest(maxima)[maxima.latent]
    return np.clip(np.ceil(position).astype(np.int64) - 1, 0, intervals - 1)


def image_hashes(digests: list[str], seed: int) -> np.ndarray:
    """Return one seeded 64-bit hash an image file, uint64 [images]: equal files are equal."""
    return np.array([seeding.derive(seed, "examples", digest) for digest in digests], dtype=np.uint64)


def _hashes(maxima: Maxima, digests: np.ndarray, seed: int) -> np.ndarray:
    """Return hash(seed, latent, file digest) of every record, int64 of _HASH_BITS bits."""
    latents = maxima.column("latent").astype(np.uint64) + np.uint64(seeding.derive(seed, "latents"))
    mixed = _mix(digests[maxima.records["image"]] ^ _mix(latents))
    return (mixed >> np.uint64(64 - _HASH_BITS)).astype(np.int64)


def _mix(x: np.ndarray) -> np.ndarray:
    """Scramble 64-bit numbers (the finalizer of SplitMix64, Steele, Lea & Flood 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _first(order: np.ndarray, cell: np.ndarray, count: int, group: str, intervals: int = 0) -> tuple[np.ndarray, ...]:
    """Keep the first `count` of each run of equal `cell` (which is sorted): (record, group, interval, rank)."""
    rank = np.arange(len(cell)) - run_starts(cell)
    kept = rank < count
    interval = cell[kept] % intervals if intervals else np.full(int(kept.sum()), _NO_INTERVAL)
    return order[kept], np.full(int(kept.sum()), GROUPS.index(group)), interval, rank[kept]


def run_starts(cell: np.ndarray) -> np.ndarray:
    """Return, for every element of an array of runs, the position at which its run starts."""
    new = np.ones(len(cell), bool)
    new[1:] = cell[1:] != cell[:-1]
    return np.maximum.accumulate(np.where(new, np.arange(len(cell)), 0))
