"""Loops that numba compiles for the CPU; `compiled` calls them with torch's tensors. Importing this needs numba.

They share one file because numba's cache notices a change only in the file of the function that is called.

`bits` are bfloat16 numbers read as int16: those that are not negative order like them. A row's strided blocks (block i
holds every latent l with l mod n_blocks = i) have their maxima taken in one pass over the row; the maxima then say
where to look again, so that the row itself is hardly looked at twice.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

BLOCKS = 1024
"""Strided blocks a row: as fast as 2,048 in two levels, a tenth faster than 512 (measured, 12,288 latents)."""

BELOW = 16
"""The first look for a row's largest outputs goes so many bfloat16 steps (about 8 %) below what is sure to be kept:
where the exact values then ask for no less than that, as they mostly do, there is no second look."""

TOGETHER = 4
"""Rows whose bounds are computed in one pass over the latents' numbers; `_bounds` is written out for so many."""

COARSE, FINE = 10, 0
"""The lowest bit that a search for the k-th largest float32 number settles: below sure bounds it may be coarse."""

Count = np.uintp
"""Counters that index: what has no sign needs no check for being negative, which takes a third of such loops."""

LITTLE_LESS = np.float32(1 - 2.0**-20)
"""Covers the rounding of one product."""

compiled = numba.njit(
    nogil=True, cache=True, boundscheck=False, error_model="numpy", fastmath={"reassoc", "contract", "nsz"}
)


FLOAT, WORD = ir.FloatType(), ir.IntType(32)
"""LLVM's types."""


def _cast_to_bits(typing_context, value):
    """Return the bits of a float32 number."""
    del typing_context
    return numba.int32(value), lambda context, builder, signature, values: builder.bitcast(values[0], WORD)


def _cast_to_number(typing_context, bits):
    """Return the float32 number of 32 bits (the low ones of 64), or of the 16 bits of bfloat16; a number as it is; and
    what an int8 stands for, itself."""
    del typing_context

    def convert(context, builder, signature, values):
        (value,) = values
        match bits:
            case numba.float32:
                return value
            case numba.int8:
                return builder.sitofp(value, FLOAT)
            case numba.int16:
                value = builder.shl(builder.zext(value, WORD), ir.Constant(WORD, 16))
            case numba.int64:
                value = builder.trunc(value, WORD)
        return builder.bitcast(value, FLOAT)

    return numba.float32(bits), convert


_bits_of: Any = intrinsic(_cast_to_bits)  # of one argument, inside compiled loops
_number: Any = intrinsic(_cast_to_number)


@compiled
def _block_maxima(row, maxima):
    """Write the maximum of each strided block, at least 0."""
    n, blocks = row.shape[0], maxima.shape[0]
    for i in range(blocks):
        maxima[i] = 0
    whole = n // blocks * blocks
    for start in range(0, whole, blocks):
        part = row[start : start + blocks]
        for i in range(blocks):
            maxima[i] = max(maxima[i], part[i])
    for i in range(n - whole):
        maxima[i] = max(maxima[i], row[whole + i])


@compiled
def _kth_largest_of_maxima(maxima, k):
    """Return the k-th largest of int16 numbers that are not negative, 0 where there are fewer than k."""
    found = np.int16(0)
    for place in range(14, -1, -1):
        trial = np.int16(found | np.int16(1 << place))
        count = np.int16(0)
        for i in range(maxima.shape[0]):
            count = np.int16(count + np.int16(maxima[i] >= trial))
        if count >= k:
            found = trial
    return found


@compiled
def _kth_largest(values, n, k, last):
    """Return the bits, down to the bit `last`, of the k-th largest of the first n float32 numbers, none negative.

    The bits below are 0; all are where there are fewer numbers than k.
    """
    bits = values.view(np.int32)
    found = np.int32(0)
    for place in range(30, last - 1, -1):
        trial = np.int32(found | np.int32(1 << place))
        count = np.int32(0)
        for i in range(n):
            count = np.int32(count + np.int32(bits[i] >= trial))
        if count >= k:
            found = trial
    return found


@compiled
def _places_above(row, maxima, floor, hits, places):
    """Write where the row exceeds `floor` ≥ 0, ascending; return how many. `hits` and `places` have one to spare."""
    blocks = maxima.shape[0]
    n_hits = Count(0)
    for i in range(blocks):
        hits[n_hits] = i
        n_hits += Count(maxima[i] > floor)
    found = Count(0)
    whole = row.shape[0] // blocks * blocks
    for start in range(0, whole, blocks):
        part = row[start : start + blocks]
        for i in range(n_hits):
            hit = hits[i]
            places[found] = start + hit
            found += Count(part[Count(hit)] > floor)
    for place in range(whole, row.shape[0]):
        places[found] = place
        found += Count(row[place] > floor)
    return np.int64(found)


@compiled
def _between(row, places, n, lowest, below, kept):
    """Write those of n places where the row is at least `lowest` and less than `below`; return how many.

    `kept` has one to spare.
    """
    n_kept = Count(0)
    for i in range(n):
        bits = row[Count(places[i])]
        kept[n_kept] = places[i]
        n_kept += Count(bits >= lowest) & Count(bits < below)
    return np.int64(n_kept)


@compiled
def _dots(x, weight, index, values, first, last):
    """Write x · weight[index[e]] for the entries e from `first` to `last`, four at a time.

    The weight is in float32 or int8.
    A last group of fewer repeats its last entry, so that a value's bits do not depend on which others there are.
    """
    end = last - 1
    for e in range(first, last, 4):
        e1, e2, e3 = min(e + 1, end), min(e + 2, end), min(e + 3, end)
        w0, w1, w2, w3 = weight[index[e]], weight[index[e1]], weight[index[e2]], weight[index[e3]]
        s0 = s1 = s2 = s3 = np.float32(0)
        for i in range(x.shape[0]):
            s0 += x[i] * _number(w0[i])
            s1 += x[i] * _number(w1[i])
            s2 += x[i] * _number(w2[i])
            s3 += x[i] * _number(w3[i])
        values[e], values[e1], values[e2], values[e3] = s0, s1, s2, s3


@compiled
def sampled(left, offsets, right, index, values, first, last):
    """Write left[g] · right[index[e]] for the entries e of the groups g from `first` to `last`."""
    for g in range(first, last):
        _dots(left[g], right, index, values, offsets[g], offsets[g + 1])


@compiled
def _weighted_sum(index, weights, table, first, last, total):
    """Write the sum of weights[e] · table[index[e]] over the entries e from `first` to `last`, four at a time."""
    for i in range(total.shape[0]):
        total[i] = 0
    e = first
    while e + 4 <= last:
        t0, t1, t2, t3 = table[index[e]], table[index[e + 1]], table[index[e + 2]], table[index[e + 3]]
        w0, w1, w2, w3 = weights[e], weights[e + 1], weights[e + 2], weights[e + 3]
        for i in range(total.shape[0]):
            total[i] += w0 * t0[i] + w1 * t1[i] + w2 * t2[i] + w3 * t3[i]
        e += 4
    while e < last:
        t, w = table[index[e]], weights[e]
        for i in range(total.shape[0]):
            total[i] += w * t[i]
        e += 1


@compiled
def _dot(a, b):
    total = np.float32(0)
    for i in range(a.shape[0]):
        total += a[i] * b[i]
    return total


@compiled
def decoding_error(latents, values, offsets, weight, bias, x, errors, residual, pulls, first, last):
    """Write r = x − bias − Σ values[e] · weight[latents[e]] for the rows from `first` to `last`, its square, and its
    product with the weight of every entry."""
    for r in range(first, last):
        error = residual[r]
        _weighted_sum(latents, values, weight, offsets[r], offsets[r + 1], error)
        for i in range(error.shape[0]):
            error[i] = x[r, i] - bias[i] - error[i]
        errors[r] = _dot(error, error)
        _dots(error, weight, latents, pulls, offsets[r], offsets[r + 1])


@compiled
def update(weight, moments, squares, gradient, numbers, unit_rows, half, coded, first, last):
    """Take Adam's step for the rows from `first` to `last` of a weight [n_latents, d_in], one after the other.

    `gradient` is (index, weights, offsets, table): row j is Σ weights[e] · table[index[e]] over the latent's entries.
    `numbers` are (step size, β₁, β₂, √(1 − β₂ᵗ), ε). With `unit_rows` the step keeps rows at norm 1. `half`, where it
    has rows, is the weight's bfloat16 copy with its two columns of norms; `coded`, likewise, is the int8 copy and its
    numbers [3, n_latents].
    """
    index, weights, offsets, table = gradient
    step_size, beta1, beta2, correction, eps = numbers
    d_in = weight.shape[1]
    grad = np.empty(d_in, np.float32)
    one = np.float32(1)
    for j in range(first, last):
        row, moment, square = weight[j], moments[j], squares[j]
        _weighted_sum(index, weights, table, offsets[j], offsets[j + 1], grad)
        if unit_rows:
            along = _dot(grad, row)
            for i in range(d_in):
                grad[i] -= along * row[i]
        for i in range(d_in):
            moment[i] += (one - beta1) * (grad[i] - moment[i])
            square[i] = beta2 * square[i] + (one - beta2) * grad[i] * grad[i]
            row[i] -= step_size * moment[i] / (np.sqrt(square[i]) / correction + eps)
        if unit_rows:
            factor = one / max(np.sqrt(_dot(row, row)), np.float32(1.2e-38))
            for i in range(d_in):
                row[i] *= factor
        if half.shape[0]:
            _copy_half(row, half[j])
        if coded[0].shape[0]:
            _copy_bytes(row, coded[0][j], coded[1][:, j])


@compiled
def _copy_half(row, copy):
    """Write a row in bfloat16 (to nearest, ties to even), its norm and that of what rounding changed, both up."""
    error = _round_half(row, copy)
    copy[row.shape[0]] = _ceil_half(np.sqrt(_dot(row, row)))
    copy[row.shape[0] + 1] = _ceil_half(error)


@compiled
def _round_half(row, copy):
    """Write a row in bfloat16, to nearest, ties to even; return the norm of what rounding changed."""
    bits = row.view(np.int32)
    error = np.float32(0)
    for i in range(row.shape[0]):
        word = np.int32((bits[i] + np.int32(0x7FFF) + ((bits[i] >> 16) & np.int32(1))) >> 16)
        copy[i] = np.int16(word)
        rest = row[i] - _number(np.int32(word << 16))
        error += rest * rest
    return np.sqrt(error)


@compiled
def _ceil_half(value):
    """Return the bits of the smallest bfloat16 number that is not below a value that is not negative."""
    return np.int16((_bits_of(value) + np.int32(0xFFFF)) >> 16)


@compiled
def _copy_bytes(row, copy, numbers):
    """Write a row as int8 numbers; and its scale, its norm and the norm of what rounding changed.

    What cannot be coded (nearly 0, or not finite) becomes 0, and all of it counts as changed.
    """
    bits = row.view(np.int32)
    most = np.int32(0)
    for i in range(bits.shape[0]):
        most = max(most, bits[i] & np.int32(0x7FFFFFFF))
    largest = _number(most)
    if not np.float32(1e-30) < largest < np.float32(1e15):
        for i in range(row.shape[0]):
            copy[i] = 0
        norm = np.sqrt(_dot(row, row))
        norm = norm + np.float32(1e-30) if norm < np.float32(1e15) else np.float32(1e30)
        numbers[0], numbers[1], numbers[2] = np.float32(1), norm, norm
        return
    scale, inverse = largest / np.float32(127), np.float32(127) / largest
    error = np.float32(0)
    for i in range(row.shape[0]):
        whole = np.rint(row[i] * inverse)
        copy[i] = np.int8(np.int32(whole))
        rest = row[i] - whole * scale
        error += rest * rest
    numbers[0], numbers[1], numbers[2] = scale, np.sqrt(_dot(row, row)), np.sqrt(error)


@compiled
def to_bytes(rows, copy, numbers):
    """Write every row in int8, and its numbers [3, rows]: see `_copy_bytes`."""
    for r in range(rows.shape[0]):
        _copy_bytes(rows[r], copy[r], numbers[:, r])


@compiled
def above(bits, exact, x, weight, bias, cut):
    """Return (rows, latents, values) of the entries above their latent's cut, in row order.

    bits [rows, n_latents] bound x·wᵀ + bias − cut from above. Values x·w + bias are computed in float32 if `exact`, and
    decide; else values are read off the positive bits.
    """
    n_rows, n = bits.shape
    maxima, hits = np.empty(min(n, BLOCKS), np.int16), np.empty(min(n, BLOCKS) + 1, np.int64)
    counts = np.empty(n_rows, np.int64)
    latents = np.empty(64 * n_rows + n + 1, np.int64)
    values = np.empty(latents.shape[0], np.float32)
    end = 0
    for r in range(n_rows):
        latents, values = _with_room(latents, values, end, n)
        _block_maxima(bits[r], maxima)
        found = latents[end:]
        counts[r] = _places_above(bits[r], maxima, np.int16(0), hits, found)
        if exact:
            counts[r] = _keep_above(x[r], weight, bias, cut, found, values[end:], counts[r])
        else:
            for i in range(counts[r]):
                values[end + i] = _number(bits[r, found[i]]) + cut[found[i]]
        end += counts[r]
    return np.repeat(np.arange(n_rows), counts), latents[:end], values[:end]


@compiled
def above_bytes(sums, factors, scale, offset, norm, error, x, weight, bias, cut):
    """Do what `above` does in exact mode, from products of int8 rows (see `_bounds`)."""
    n_rows, n = sums.shape
    maxima, hits = np.empty(min(n, BLOCKS), np.int32), np.empty(min(n, BLOCKS) + 1, np.int64)
    bounds = np.empty((TOGETHER, n), np.float32)
    counts = np.empty(n_rows, np.int64)
    latents = np.empty(64 * n_rows + n + 1, np.int64)
    values = np.empty(latents.shape[0], np.float32)
    end = 0
    for r in range(n_rows):
        if r % TOGETHER == 0:
            _bounds(sums, factors, scale, offset, norm, error, r, bounds)
        latents, values = _with_room(latents, values, end, n)
        bits = bounds[r % TOGETHER].view(np.int32)
        _block_maxima(bits, maxima)
        found = latents[end:]
        counts[r] = _places_above(bits, maxima, np.int32(0), hits, found)
        counts[r] = _keep_above(x[r], weight, bias, cut, found, values[end:], counts[r])
        end += counts[r]
    return np.repeat(np.arange(n_rows), counts), latents[:end], values[:end]


@compiled
def _bounds(sums, factors, scale, offset, norm, error, first, bounds):
    """Write the bounds of `TOGETHER` rows from `first` on, so that the latents' numbers are read once for all of them.

    In units of the row's scale, with `factors` [rows, 3]: sum · scale + f₀ · offset + f₁ · norm + f₂ · error. Floats
    that are not negative order like their bits.
    """
    last = sums.shape[0] - 1
    r1, r2, r3 = min(first + 1, last), min(first + 2, last), min(first + 3, last)
    a0, a1, a2, a3 = sums[first], sums[r1], sums[r2], sums[r3]
    b0, b1, b2, b3 = bounds[0], bounds[1], bounds[2], bounds[3]
    o0, o1, o2, o3 = factors[first, 0], factors[r1, 0], factors[r2, 0], factors[r3, 0]
    n0, n1, n2, n3 = factors[first, 1], factors[r1, 1], factors[r2, 1], factors[r3, 1]
    e0, e1, e2, e3 = factors[first, 2], factors[r1, 2], factors[r2, 2], factors[r3, 2]
    for j in range(sums.shape[1]):
        s, o, n, e = scale[j], offset[j], norm[j], error[j]
        b0[j] = np.float32(a0[j]) * s + o0 * o + n0 * n + e0 * e
        b1[j] = np.float32(a1[j]) * s + o1 * o + n1 * n + e1 * e
        b2[j] = np.float32(a2[j]) * s + o2 * o + n2 * n + e2 * e
        b3[j] = np.float32(a3[j]) * s + o3 * o + n3 * n + e3 * e


@compiled
def _keep_above(x, weight, bias, cut, found, values, n):
    """Of n entries keep, in place, those whose value x·w + bias is above the cut; return how many."""
    _dots(x, weight, found, values, 0, n)
    kept = 0
    for i in range(n):
        latent, value = found[i], values[i] + bias[found[i]]
        found[kept], values[kept] = latent, value
        kept += value > cut[latent]
    return kept


@compiled
def _with_room(latents, values, end, n):
    """Return both arrays, made longer where a row of n more may not fit."""
    if end + n + 1 <= latents.shape[0]:
        return latents, values
    return _larger(latents, 2 * end + n + 1), _larger(values, 2 * end + n + 1)


@compiled
def _larger(array, size):
    longer = np.empty(size, array.dtype)
    longer[: array.shape[0]] = array
    return longer


@compiled
def largest(bits, exact, x, weight, bias, k):
    """Return (rows, latents, values) of each row's k largest outputs that are positive, in row order.

    bits [rows, n_latents] bound x·wᵀ + bias from above; with `exact`, the outputs that may be among the k largest are
    computed in float32 and those decide, else the bits do. Among equals the lowest latent goes first.
    """
    n_rows, n = bits.shape
    blocks = min(n, max(BLOCKS, 8 * k))
    maxima, hits = np.empty(blocks, np.int16), np.empty(blocks + 1, np.int64)
    places, numbers = np.empty(n + 1, np.int64), np.empty(n + 1, np.float32)
    counts = np.empty(n_rows, np.int64)
    latents, values = np.empty(n_rows * k, np.int64), np.empty(n_rows * k, np.float32)
    end = 0
    for r in range(n_rows):
        row = bits[r]
        _block_maxima(row, maxima)
        sure = _kth_largest_of_maxima(maxima, k)  # at least k entries reach it
        if exact:
            floor = np.int16(max(sure - BELOW, 1) - 1)
            known = (x[r], weight, bias, k, np.float32(1), 16)
            found = _exact_candidates(row, known, sure, floor, maxima, hits, places, numbers, None)
        else:
            found = _places_above(row, maxima, np.int16(max(sure, 1) - 1), hits, places)
            for i in range(found):
                numbers[i] = _number(row[places[i]])
        counts[r] = _keep_largest(places, numbers, found, k, latents[end:], values[end:])
        end += counts[r]
    return np.repeat(np.arange(n_rows), counts), latents[:end], values[:end]


@compiled
def largest_bytes(sums, factors, scale, offset, norm, error, spread, coded, narrow, slack, x, weight, bias, k):
    """Do what `largest` does in exact mode, from products of int8 rows (see `_bounds`).

    `spread` [rows]: about how far, in units of the row's scale, the exact outputs are below their bounds. `coded`,
    `narrow` and a row's `slack`: see `_within_reach`.
    """
    n_rows, n = sums.shape
    blocks = min(n, max(BLOCKS, 8 * k))
    maxima, hits = np.empty(blocks, np.int32), np.empty(blocks + 1, np.int64)
    bounds = np.empty((TOGETHER, n), np.float32)
    places, numbers = np.empty(n + 1, np.int64), np.empty(n + 1, np.float32)
    counts = np.empty(n_rows, np.int64)
    latents, values = np.empty(n_rows * k, np.int64), np.empty(n_rows * k, np.float32)
    end = 0
    for r in range(n_rows):
        if r % TOGETHER == 0:
            _bounds(sums, factors, scale, offset, norm, error, r, bounds)
        bits = bounds[r % TOGETHER].view(np.int32)
        _block_maxima(bits, maxima)
        sure = _kth_largest(maxima.view(np.float32), blocks, k, COARSE)  # at least k entries reach it
        below = max(_number(sure) - spread[r], np.float32(0))
        floor = np.int32(max(_bits_of(below), 1) - 1)
        known = (x[r], weight, bias, k, factors[r, 0] * LITTLE_LESS, 0)
        narrowing = coded, narrow, slack[r]
        found = _exact_candidates(bits, known, sure, floor, maxima, hits, places, numbers, narrowing)
        counts[r] = _keep_largest(places, numbers, found, k, latents[end:], values[end:])
        end += counts[r]
    return np.repeat(np.arange(n_rows), counts), latents[:end], values[:end]


@compiled
def _exact_candidates(row, known, sure, floor, maxima, hits, places, numbers, narrowing):
    """Leave in `places` and `numbers` all that may be among the k largest, with exact outputs; return how many.

    The k-th largest exact output of those that reach `sure` is at most the row's k-th largest, so that only an entry
    whose bound reaches it can still be among the k largest. `known` ends with what an output is multiplied by, and
    the shift of its bits, to compare with the row's. `narrowing` is None, or what `_within_reach` needs to leave fewer.
    """
    x, weight, bias, k, unit, shift = known
    found = _places_above(row, maxima, floor, hits, places)
    first = np.empty(found + 1, np.int64)
    n_first = _between(row, places, found, sure, np.iinfo(np.int32).max, first)
    outputs = np.empty(n_first, np.float32)
    _outputs(x, weight, bias, first, outputs, n_first)
    reached = _number(_kth_largest(outputs, n_first, k, FINE))
    lowest = max(_bits_of(reached * unit) >> shift, 1)
    if lowest <= floor:
        found = _places_above(row, maxima, row.dtype.type(lowest - 1), hits, places)
    second = np.empty(found + 1, np.int64)
    n_second = _between(row, places, found, lowest, sure, second)
    if narrowing is not None:
        n_second = _within_reach(x, narrowing, second, n_second, reached)
    more = np.empty(n_second, np.float32)
    _outputs(x, weight, bias, second, more, n_second)
    return _merged(first, outputs, n_first, second, more, n_second, places, numbers)


@compiled
def _merged(first, outputs, n_first, second, more, n_second, places, numbers):
    """Write the places of two ascending lists in order, with their numbers; return how many."""
    i = j = 0
    while i + j < n_first + n_second:
        if j == n_second or (i < n_first and first[i] < second[j]):
            places[i + j], numbers[i + j] = first[i], outputs[i]
            i += 1
        else:
            places[i + j], numbers[i + j] = second[j], more[j]
            j += 1
    return i + j


@compiled
def _within_reach(x, narrowing, places, n, least):
    """Of n places keep, in place, those whose output may be `least` or above; return how many.

    The bounds here are of x · w' + bias, with x as it is: only the latent's rounding to int8 counts. `narrowing` is the
    coded weight [n_latents, d_in], for each latent (scale, offset, error), and what the row makes of these.
    """
    coded, latents, (size, rest) = narrowing
    near = np.empty(n, np.float32)
    _dots(x, coded, places, near, 0, n)
    kept = Count(0)
    for i in range(n):
        place = places[i]
        scale, offset, error = latents[place, 0], latents[place, 1], latents[place, 2]
        places[kept] = place
        kept += Count(near[i] * scale + offset + size * error + rest >= least)
    return np.int64(kept)


@compiled
def _outputs(x, weight, bias, places, numbers, n):
    """Write max(x · weight[place] + bias[place], 0)."""
    _dots(x, weight, places, numbers, 0, n)
    for i in range(n):
        numbers[i] = max(numbers[i] + bias[places[i]], np.float32(0))


@compiled
def _keep_largest(places, numbers, n, k, latents, values):
    """Write the places and numbers of the k largest positive ones of n, in order; return how many."""
    bits = numbers.view(np.int32)
    lowest = _kth_largest(numbers, n, k, FINE)
    room = k
    for i in range(n):
        room -= bits[i] > lowest
    kept = 0
    for i in range(n):
        equal = bits[i] == lowest and lowest > 0 and room > 0
        if bits[i] > lowest or equal:
            room -= equal
            latents[kept], values[kept] = places[i], numbers[i]
            kept += 1
    return kept
