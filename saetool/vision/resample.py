"""Resizing as Pillow does it, bit for bit, of only what is cut out of the resized picture.

Pillow resizes bytes in two passes, across and down, each with weights in fixed point (Resample.c). This is the same
arithmetic, on many rows side by side, which processors do in one step. Importing it needs numba. Which pass comes first
depends on Pillow's version and the sizes: it is found out for each pair of sizes, from what Pillow makes of noise.
"""

import math
from functools import cache, lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from saetool.sparse.backends.cpu.compiled import compiled

_BITS = 22
"""Bits of a weight behind the point: 8 of a value and 2 of overshoot leave so many of 32."""
_HALF = 1 << (_BITS - 1)
_LANES = 64
"""Rows that are resized across side by side."""
_WORTH_FINDING = 8
"""Pictures of a size, in a process, before it is found out for them: that takes as long as some pictures."""
_met: dict[tuple[tuple[int, int], tuple[int, int], str], int] = {}

Order = Literal["across", "down"]
"""Which of the two passes comes first: between them values are rounded to bytes."""


def _cubic(x: float) -> float:
    x = abs(x)
    if x < 1:
        return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0


def _triangle(x: float) -> float:
    return max(0.0, 1 - abs(x))


_FILTERS = {"bicubic": (_cubic, 2.0), "bilinear": (_triangle, 1.0)}
"""Each with half of its width. Of others, sines decide, of which a library's last bit is its own."""


@lru_cache(maxsize=1024)
def _weights(
    size: int, resized: int, first: int, count: int, filter_: str
) -> tuple[Int[np.ndarray, "count"], Int[np.ndarray, "count"], Int[np.ndarray, "count taps"]]:
    """Return, of `count` resized places from `first`: their first source places, how many each has, their weights."""
    function, support = _FILTERS[filter_]
    scale = size / resized
    stretch = max(scale, 1.0)
    support *= stretch
    starts, lengths = np.zeros(count, np.int64), np.zeros(count, np.int64)
    weights = np.zeros((count, math.ceil(support) * 2 + 1), np.int32)
    for i in range(count):
        center = (first + i + 0.5) * scale
        start, stop = max(int(center - support + 0.5), 0), min(int(center + support + 0.5), size)
        found = [function((x - center + 0.5) * (1.0 / stretch)) for x in range(start, stop)]
        total = 0.0
        for weight in found:
            total += weight
        shares = [weight / total if total else weight for weight in found]
        starts[i], lengths[i] = start, stop - start
        weights[i, : stop - start] = [int(share * (1 << _BITS) + math.copysign(0.5, share)) for share in shares]
    return starts, lengths, weights


def order_of_passes(size: tuple[int, int], resized: tuple[int, int], interpolation: str) -> Order | None:
    """Return the order in which Pillow resizes pictures of a size, once a few of them have come by; None before that.

    None too where it cannot be told. The sizes decide, and Pillow's version.
    """
    key = size, resized, interpolation
    _met[key] = _met.get(key, 0) + 1
    return found_order(*key) if _met[key] > _WORTH_FINDING else None


@cache
def found_order(size: tuple[int, int], resized: tuple[int, int], interpolation: str) -> Order | None:
    """Return the order of passes that gives what Pillow makes of noise; None where neither does."""
    if interpolation not in _FILTERS:
        return None
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    theirs = np.asarray(Image.fromarray(noise).resize(resized, Image.Resampling[interpolation.upper()]))
    ours = np.empty_like(theirs)
    for order in ("across", "down"):
        fill_resized(noise, resized, (0, 0), interpolation, order, ours)
        if np.array_equal(ours, theirs):
            return order
    return None


def fill_resized(
    pixels: UInt8[np.ndarray, "rows columns channels"],
    size: tuple[int, int],
    corner: tuple[int, int],
    interpolation: str,
    first: Order,
    out: UInt8[np.ndarray, "height width channels"],
) -> None:
    """Write into `out`, contiguous, what is at `corner` (left, top) of `pixels` resized to `size` (width, height)."""
    assert out.flags.c_contiguous
    height, width, channels = out.shape
    across = _weights(pixels.shape[1], size[0], corner[0], width, interpolation)
    down = _weights(pixels.shape[0], size[1], corner[1], height, interpolation)
    (left, right), (top, bottom) = (_seen(*places[:2]) for places in (across, down))
    seen = np.array(pixels[top:bottom, left:right], order="C").reshape(bottom - top, -1)
    across, down = (across[0] - left, *across[1:]), (down[0] - top, *down[1:])
    made = out.reshape(height, -1)
    if first == "across":
        between = np.empty((bottom - top, width * channels), np.uint8)
        _across(seen, *across, between)
        _down(between, *down, made)
    else:
        between = np.empty((height, seen.shape[1]), np.uint8)
        _down(seen, *down, between)
        _across(between, *across, made)


def _seen(starts: Int[np.ndarray, "count"], lengths: Int[np.ndarray, "count"]) -> tuple[int, int]:
    """Return the source places, first and end, of which the resized ones are made."""
    return int(starts[0]), int((starts + lengths).max())


@compiled
def _across(pixels, starts, lengths, weights, out):
    """Fill out [rows, x · channels] from pixels [rows, columns · channels], `_LANES` rows side by side."""
    channels = np.uintp(out.shape[1] // starts.shape[0])
    columns = np.uintp(pixels.shape[1])
    turned = np.empty((columns, np.uintp(_LANES)), np.uint8)
    totals = np.empty(_LANES, np.int32)
    for first in range(np.uintp(0), np.uintp(out.shape[0]), np.uintp(_LANES)):
        rows = min(np.uintp(_LANES), np.uintp(out.shape[0]) - first)
        for begin in range(np.uintp(0), columns, np.uintp(_LANES)):
            end = min(begin + np.uintp(_LANES), columns)
            for row in range(rows):
                for place in range(begin, end):
                    turned[place, row] = pixels[first + row, place]
        for x in range(np.uintp(starts.shape[0])):
            for channel in range(channels):
                place = np.uintp(starts[x]) * channels + channel
                totals[:] = np.int32(_HALF)
                for k in range(np.uintp(lengths[x])):
                    weight = weights[x, k]
                    for lane in range(np.uintp(_LANES)):
                        totals[lane] += np.int32(turned[place + k * channels, lane]) * weight
                for row in range(rows):
                    out[first + row, x * channels + channel] = min(max(totals[row] >> _BITS, 0), 255)


@compiled
def _down(rows, starts, lengths, weights, out):
    """Fill out [y, columns] from [rows, columns]."""
    totals = np.empty(rows.shape[1], np.int32)
    columns = np.uintp(rows.shape[1])
    for y in range(np.uintp(starts.shape[0])):
        totals[:] = np.int32(_HALF)
        for k in range(np.uintp(lengths[y])):
            weight, row = weights[y, k], np.uintp(starts[y]) + k
            for x in range(columns):
                totals[x] += np.int32(rows[row, x]) * weight
        for x in range(columns):
            out[y, x] = min(max(totals[x] >> _BITS, 0), 255)
