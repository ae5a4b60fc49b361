"""Loops that numba compiles for the CPU; `backend` calls them with torch's tensors. Importing this needs numba.

They share one file because numba's cache notices a change only in the file of the function that is called.

`bits` are bfloat16 numbers read as int16, or float32 ones as int32: those that are not negative order like them.
Strided blocks of a row (block i holds every latent l with l mod n_blocks = i) have their maxima taken in one pass over
the row; of the maxima, which are few, the k-th largest says how far down the row's k largest can be.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

BLOCKS = 1024
"""Strided blocks a row: as fast as 2,048 in two levels, a tenth faster than 512 (measured, 12,288 latents)."""

LESS_HALF = np.float32(1 - 2.0**-8)
"""A number that was rounded to bfloat16 was at least so much of what it is now."""

INFINITY = 0x7F80
"""Bits of the largest bfloat16 number, float32's upper ones; above are those that are no numbers (NaN)."""

Count = np.uintp
"""Counters that index: what has no sign needs no check for being negative, which takes a third of such loops."""

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
    """Return the float32 number of 32 bits (the low ones of 64), or of the 16 bits of bfloat16."""
    del typing_context

    def convert(context, builder, signature, values):
        (value,) = values
        match bits:
            case numba.int16:
                value = builder.shl(builder.zext(value, WORD), ir.Constant(WORD, 16))
            case numba.int64:
                value = builder.trunc(value, WORD)
        return builder.bitcast(value, FLOAT)

    return numba.float32(bits), convert


def _compare_words(typing_context, address, floor):
    """Return which of the 64 int16 or int32 numbers at an address exceed another one, as bits."""
    del typing_context

    def compare(context, builder, signature, values):
        numbers = ir.VectorType(ir.IntType(floor.bitwidth), 64)
        single = builder.insert_element(ir.Constant(numbers, ir.Undefined), values[1], ir.Constant(WORD, 0))
        least = builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(WORD, 64), [0] * 64))
        pointer = builder.inttoptr(values[0], numbers.as_pointer())
        exceeds = builder.icmp_signed(">", builder.load(pointer, align=2), least)
        return builder.bitcast(exceeds, ir.IntType(64))

    return numba.uint64(numba.intp, floor), compare


def _count_zeros(typing_context, bits):
    """Return the place of the lowest bit that is set, 64 where none is."""
    del typing_context
    return numba.uint64(bits), lambda context, builder, signature, values: builder.cttz(
        values[0], ir.Constant(ir.IntType(1), 0)
    )


def _count_ones(typing_context, bits):
    """Return how many bits are set."""
    del typing_context
    return numba.uint64(bits), lambda context, builder, signature, values: builder.ctpop(values[0])


_which_above: Any = intrinsic(_compare_words)
_lowest_place: Any = intrinsic(_count_zeros)
_how_many: Any = intrinsic(_count_ones)
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
def _without_nans(row, maxima):
    """Where a NaN, whose bits are above all numbers', is among the maxima: take them again without."""
    largest, infinity = maxima[0], INFINITY << (8 * maxima.itemsize - 16)
    for i in range(maxima.shape[0]):
        largest = max(largest, maxima[i])
    if largest <= infinity:
        return
    maxima[:] = 0
    for i in range(row.shape[0]):
        block = Count(i % maxima.shape[0])
        if row[i] <= infinity:
            maxima[block] = max(maxima[block], row[i])


@compiled
def _kth_largest_of_bits(bits, k):
    """Return the k-th largest of integers that are not negative, 0 where there are fewer than k."""
    kind = bits.dtype.type
    found = kind(0)
    for place in range(8 * bits.itemsize - 2, -1, -1):
        trial = kind(found | (kind(1) << place))
        count = kind(0)
        for i in range(bits.shape[0]):
            count = kind(count + kind(bits[i] >= trial))
        if count >= k:
            found = trial
    return found


@compiled
def _kth_largest(values, k):
    """Return the k-th largest of float32 numbers, 0 where fewer than k are positive."""
    return _number(_kth_largest_of_bits(values.view(np.int32), k))


@compiled
def _places_above(row, floor, places):
    """Write where the row exceeds `floor` ≥ 0, ascending; return how many. `places` has two to spare."""
    found, one = Count(0), np.uint64(1)
    whole = row.shape[0] // 64 * 64
    address = row.ctypes.data
    for start in range(0, whole, 64):
        bits = _which_above(address + row.itemsize * start, floor)
        count = _how_many(bits)
        # Two at once, as more are rare: a loop that ends differently each time costs more than a write too many.
        places[found] = start + _lowest_place(bits)
        bits &= bits - one
        places[found + Count(1)] = start + _lowest_place(bits)
        for i in range(2, count):
            bits &= bits - one
            places[found + Count(i)] = start + _lowest_place(bits)
        found += count
    for place in range(whole, row.shape[0]):
        places[found] = place
        found += Count(row[place] > floor)
    return np.int64(found)


@compiled
def _dots(x, weight, index, values, first, last):
    """Write x · weight[index[e]] for the entries e from `first` to `last`, four at a time.

    A last group of fewer repeats its last entry, so that a value's bits do not depend on which others there are.
    """
    end = last - 1
    for e in range(first, last, 4):
        e1, e2, e3 = min(e + 1, end), min(e + 2, end), min(e + 3, end)
        w0, w1, w2, w3 = weight[index[e]], weight[index[e1]], weight[index[e2]], weight[index[e3]]
        s0 = s1 = s2 = s3 = np.float32(0)
        for i in range(x.shape[0]):
            s0 += x[i] * w0[i]
            s1 += x[i] * w1[i]
            s2 += x[i] * w2[i]
            s3 += x[i] * w3[i]
        values[e], values[e1], values[e2], values[e3] = s0, s1, s2, s3


@compiled
def sampled(left, offsets, right, index, values, first, last):
    """Write left[g] · right[index[e]] for the entries e of the groups g from `first` to `last`."""
    for g in range(first, last):
        _dots(left[g], right, index, values, offsets[g], offsets[g + 1])


@compiled
def by_latent(rows, latents, n_latents):
    """Return (order, rows, offsets) of entries in latent order, see `support.ByLatent`: counted first, then dealt."""
    offsets = np.zeros(n_latents + 1, np.int64)
    for e in range(latents.shape[0]):
        offsets[Count(latents[e]) + Count(1)] += 1
    for j in range(n_latents):
        offsets[j + 1] += offsets[j]
    following = offsets.copy()
    order, rows_by_latent = np.empty_like(latents), np.empty_like(rows)
    for e in range(latents.shape[0]):
        latent = Count(latents[e])
        place = Count(following[latent])
        following[latent] += 1
        order[place], rows_by_latent[place] = e, rows[e]
    return order, rows_by_latent, offsets


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
def squared_error(latents, values, offsets, weight, bias, x, errors, residual, slopes, first, last):
    """Write r = x − bias − Σ values[e] · weight[latents[e]] for the rows from `first` to `last`, its square, and its
    product with the weight of every entry."""
    for r in range(first, last):
        error = residual[r]
        _weighted_sum(latents, values, weight, offsets[r], offsets[r + 1], error)
        for i in range(error.shape[0]):
            error[i] = x[r, i] - bias[i] - error[i]
        errors[r] = _dot(error, error)
        _dots(error, weight, latents, slopes, offsets[r], offsets[r + 1])


@compiled
def update(weight, moments, squares, gradient, numbers, unit_rows, before, after, half, first, last):
    """Take Adam's step for the rows from `first` to `last` of a weight [n_latents, d_in], one after the other.

    `gradient` is (index, weights, offsets, table): row j is Σ weights[e] · table[index[e]] over the latent's entries.
    `numbers` are (step size, β₁, β₂, √(1 − β₂ᵗ), ε). With `unit_rows` the step keeps rows at norm 1. Arrays that are
    not empty: `before` and `after` are `plain.Scales`, `half` is the bfloat16 copy with its two columns of norms.
    """
    index, weights, offsets, table = gradient
    step_size, beta1, beta2, correction, eps = numbers
    d_in = weight.shape[1]
    grad = np.empty(d_in, np.float32)
    one, scaled = np.float32(1), before.shape[0] > 0
    for j in range(first, last):
        row, moment, square = weight[j], moments[j], squares[j]
        _weighted_sum(index, weights, table, offsets[j], offsets[j + 1], grad)
        if scaled:
            for i in range(d_in):
                grad[i] *= before[j]
                row[i] /= before[j]
        elif unit_rows:
            along = _dot(grad, row)
            for i in range(d_in):
                grad[i] -= along * row[i]
        for i in range(d_in):
            moment[i] += (one - beta1) * (grad[i] - moment[i])
            square[i] = beta2 * square[i] + (one - beta2) * grad[i] * grad[i]
            row[i] -= step_size * moment[i] / (np.sqrt(square[i]) / correction + eps)
        if unit_rows or scaled:
            norm = max(np.sqrt(_dot(row, row)), np.float32(1.2e-38))
            factor = one / norm if unit_rows else after[j]
            for i in range(d_in):
                row[i] *= factor
            if unit_rows and scaled:
                after[j] = norm
        if half.shape[0]:
            _copy_half(row, half[j])


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
def positive_sums(rows, bias):
    """Return the bits of max(rows + bias, 0), 0 for what is no number, written over the float32 rows."""
    for r in range(rows.shape[0]):
        for i in range(bias.shape[0]):
            total = rows[r, i] + bias[i]
            rows[r, i] = total if total > 0 else np.float32(0)
    return rows.view(np.int32)


@compiled
def above(bits, exact, cut):
    """Return (counts, latents, values) of each row's entries that may be above their latent's cut, in row order.

    bits [rows, n_latents] bound x·wᵀ + bias − cut from above. Unless `exact`, they are taken for it, and values read
    off them.
    """
    n_rows, n = bits.shape
    counts, latents, values = _room(n_rows, 64, n)
    end = 0
    for r in range(n_rows):
        latents, values = _with_room(latents, values, end, n)
        counts[r] = _places_above(bits[r], bits.dtype.type(0), latents[end:])
        if not exact:
            for i in range(counts[r]):
                place = latents[end + i]
                values[end + i] = _number(bits[r, place]) + cut[place]
        end += counts[r]
    return counts, latents[:end], values[: 0 if exact else end]


@compiled
def _room(n_rows, share, n):
    """Return arrays for the counts of rows, and for so many latents and values of each, see `_with_room`."""
    latents = np.empty(share * n_rows + n + 2, np.int64)
    return np.empty(n_rows, np.int64), latents, np.empty(latents.shape[0], np.float32)


@compiled
def _with_room(latents, values, end, n):
    """Return both arrays, made longer where a row of n more, and two to spare, may not fit."""
    if end + n + 2 <= latents.shape[0]:
        return latents, values
    return _larger(latents, 2 * end + n + 2), _larger(values, 2 * end + n + 2)


@compiled
def _larger(array, size):
    longer = np.empty(size, array.dtype)
    longer[: array.shape[0]] = array
    return longer


@compiled
def largest(bits, exact, slack, k):
    """Return (counts, latents, values) of each row's entries that may be among its k largest and positive, in order.

    bits [rows, n_latents] bound x·wᵀ + bias from above, by at most `slack` [rows] and their rounding. Unless `exact`,
    they are taken for it, and values read off them: the k largest are returned, among equals the lowest latent first.
    """
    n_rows, n = bits.shape
    maxima = np.empty(min(n, max(BLOCKS, 8 * k)), bits.dtype)
    places, numbers = np.empty(n + 2, np.int64), np.empty(n + 2, np.float32)
    counts, latents, values = _room(n_rows, 2 * k, n)
    end = 0
    for r in range(n_rows):
        row = bits[r]
        latents, values = _with_room(latents, values, end, n)
        _block_maxima(row, maxima)
        _without_nans(row, maxima)
        sure = _kth_largest_of_bits(maxima, k)  # at least k entries reach it
        if exact:
            lowest = max(_number(sure) * LESS_HALF - slack[r], np.float32(0))
            counts[r] = _places_above(row, np.int16(max(_bits_of(lowest) >> 16, 1) - 1), latents[end:])
        else:
            found = _places_above(row, bits.dtype.type(max(sure, 1) - 1), places)
            for i in range(found):
                numbers[i] = _number(row[places[i]])
            counts[r] = _keep_largest(places, numbers, found, k, latents[end:], values[end:])
        end += counts[r]
    return counts, latents[:end], values[: 0 if exact else end]


@compiled
def decide(x, weight, bias, cut, k, offsets, latents, first, last):
    """Return (counts, latents, values) of the entries of rows from `first` to `last` whose x·w + bias is above the
    latent's cut, computed in float32; with k, the k largest of those above 0, among equals the lowest latent first.

    offsets [rows + 1] say where each row's candidates stand in `latents`.
    """
    begin, end = offsets[first], offsets[last]
    kept, values = np.empty(end - begin + 1, np.int64), np.empty(end - begin + 1, np.float32)
    counts = np.empty(last - first, np.int64)
    n = 0
    for r in range(first, last):
        found = latents[offsets[r] : offsets[r + 1]]
        numbers = np.empty(found.shape[0], np.float32)
        _dots(x[r], weight, found, numbers, 0, found.shape[0])
        for i in range(found.shape[0]):
            numbers[i] += bias[Count(found[i])]
        if k:
            counts[r - first] = _keep_largest(found, numbers, found.shape[0], k, kept[n:], values[n:])
        else:
            here = Count(n)
            for i in range(found.shape[0]):
                kept[here], values[here] = found[i], numbers[i]
                here += Count(numbers[i] > cut[Count(found[i])])
            counts[r - first] = np.int64(here) - n
        n += counts[r - first]
    return counts, kept[:n], values[:n]


@compiled
def _keep_largest(places, numbers, n, k, latents, values):
    """Write the places and numbers of the k largest positive ones of n, in order; return how many.

    `latents` and `values` have one to spare. A NaN is not among the largest, and is written over.
    """
    for i in range(n):
        if numbers[i] != numbers[i]:
            numbers[i] = np.float32(-1)
    least = _kth_largest(numbers[:n], k)
    room = k
    for i in range(n):
        room -= numbers[i] > least
    kept = Count(0)
    for i in range(n):
        equal = (numbers[i] == least) & (least > 0) & (room > 0)
        latents[kept], values[kept] = places[i], numbers[i]
        room -= equal
        kept += Count((numbers[i] > least) | equal)
    return np.int64(kept)
