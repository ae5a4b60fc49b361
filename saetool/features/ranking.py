"""Which images stand for a latent: the strongest, members of each interval of (0, max], random firing ones, and the
strongest that training never saw.

Everything is a stable sort of the image maxima of a block of latents, so ties go to the lower image row. It is done
where the maxima are; what is chosen comes to the CPU.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from saetool import seeding
from saetool.features.maxima import Maxima, ordered_bits
from saetool.features.runs import heads_of, order_of, spread_over
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
    descending: Tensor,
    hashes: Tensor,
    settings: IndexSettings,
    seed: int,
    held_out: Tensor | None = None,
) -> Chosen:
    """Choose every latent's examples.

    `descending` is `by_value(maxima)`; `hashes` [images] int64 are the images' seeded hashes, on the maxima's device;
    `held_out` [images] says which of them training never saw, None where none is to be shown apart.
    """
    ranked = descending if settings.top_by == "max" else by_value(maxima, "mass")
    parts = [_first(ranked, maxima.latent[ranked], settings.top, "top")]
    if settings.intervals or settings.random:
        mixed = _hashes(maxima, hashes, seed)
    if settings.intervals:
        cell = maxima.latent * settings.intervals + interval_of(maxima, settings.intervals)
        order = _by_cell(cell, mixed, maxima.n_latents * settings.intervals)
        parts.append(_first(order, cell[order], settings.interval_examples, "interval", settings.intervals))
    if settings.random:
        order = _by_cell(maxima.latent, mixed, maxima.n_latents)
        parts.append(_first(order, maxima.latent[order], settings.random, "random"))
    if held_out is not None:
        unseen = ranked[held_out[maxima.image[ranked]]]
        parts.append(_first(unseen, maxima.latent[unseen], HELD_OUT, "held_out"))
    latent, record, group, interval, rank = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.lexsort((rank, interval, group, latent))
    return Chosen(record[order], group[order], interval[order], rank[order])


def _by_cell(cell: Tensor, hashes: Tensor, cells: int) -> Tensor:
    """Return the order by cell, then hash, then position."""
    if cells > _PACKED_CELLS:
        order = order_of(hashes)
        return order[order_of(cell[order])]
    return order_of((cell << _HASH_BITS) | hashes)  # one key sorts twice as fast as two


def by_value(maxima: Maxima, column: str = "value") -> Int[Tensor, "records"]:
    """Return the order of the records by latent, then falling value, or `mass` over the image's tokens, then image."""
    return order_of((maxima.latent << 32) | (0x7FFFFFFF - ordered_bits(maxima.column(column))))


def largest(maxima: Maxima) -> Tensor:
    """Return each latent's largest value, float32 [latents], 0 where it never fires."""
    values = torch.zeros(maxima.n_latents, device=maxima.device)
    return values.scatter_reduce_(0, maxima.latent, maxima.column("value"), "amax")


def interval_of(maxima: Maxima, intervals: int) -> Int[Tensor, "records"]:
    """Return the interval of every record's value: i where i/n < value/max <= (i + 1)/n, int64."""
    # value·n and max·i are exact in float64, so the division cannot cross a border.
    position = maxima.column("value").double() * intervals / largest(maxima)[maxima.latent].double()
    return (position.ceil().long() - 1).clamp_(0, intervals - 1)


def image_hashes(digests: list[str], seed: int) -> Int[Tensor, "images"]:
    """Return one seeded 64-bit hash an image file, as int64: equal files are equal."""
    hashes = np.array([seeding.derive(seed, "examples", digest) for digest in digests], dtype=np.uint64)
    return torch.from_numpy(hashes.view(np.int64))


def _hashes(maxima: Maxima, hashes: Tensor, seed: int) -> Tensor:
    """Return hash(seed, latent, file digest) of every record, int64 of _HASH_BITS bits."""
    latents = torch.arange(maxima.first, maxima.stop, device=maxima.device) + _signed(seeding.derive(seed, "latents"))
    mixed = _mix(hashes[maxima.image] ^ _mix(latents)[maxima.latent])
    return _shifted(mixed, 64 - _HASH_BITS)


def _mix(x: Tensor) -> Tensor:
    """Scramble 64-bit numbers (the finalizer of SplitMix64, Steele, Lea & Flood 2014); int64 wraps as uint64 does."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _signed(number: int) -> int:
    """Return the int64 of the same 64 bits."""
    return number - (1 << 64) if number >= 1 << 63 else number


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift 64-bit numbers to the right as if they had no sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _first(order: Tensor, cell: Tensor, count: int, group: str, intervals: int = 0) -> tuple[np.ndarray, ...]:
    """Keep the first `count` of each run of equal `cell` (which ascends): (latent, record, group, interval, rank)."""
    heads = heads_of(cell)
    rank = torch.arange(len(cell), device=cell.device) - spread_over(heads, heads, len(cell))
    kept = (rank < count).nonzero().squeeze(1)
    cells, record, ranks = (part[kept].cpu().numpy() for part in (cell, order, rank))
    interval = cells % intervals if intervals else np.full(len(cells), _NO_INTERVAL)
    return cells // max(intervals, 1), record, np.full(len(cells), GROUPS.index(group)), interval, ranks
