"""Loops that numba compiles for the CPU; `compiled` calls them with torch's tensors. Importing this needs numba.

They share one file because numba's cache notices a change only in the file of the function that is called.

The product of int8 rows and latents is for CPUs that add byte products (AVX-512 VNNI, see `compiled.has_byte_unit`).
It never leaves the registers as a product: what is written is a bfloat16 bound of the output (see `byte`), half as
wide, and the maxima that the search for large ones begins with. The unit adds four products of an unsigned and a signed
byte to each of 16 sums. Latents stand as unsigned bytes, 128 too high, in panels of 64 latents: [panel, group of 4
inputs, latent, input]; each row starts at −128 Σ q, so that its sums come out right.

`bits` are bfloat16 numbers read as int16: those that are not negative order like them. Strided blocks of a row (block i
holds every latent l with l mod n_blocks = i) have their maxima taken in one pass over the row; of the maxima, which are
few, the k-th largest says how far down the row's k largest can be.
"""

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

BLOCKS = 1024
"""Strided blocks a row: as fast as 2,048 in two levels, a tenth faster than 512 (measured, 12,288 latents)."""

LESS_HALF = np.float32(1 - 2.0**-8)
"""A number that was rounded to bfloat16 was at least so much of what it is now."""

LESS_CUT = np.float32(1 - 2.0**-6)
"""What is left of a bound, and a little less, without what keeps it one when it is cut to bfloat16."""

MOST = np.iinfo(np.int16).max
"""Above all bits of bfloat16 numbers but some that are none."""

SHORTS = (2**31 - 1) // 128
"""The sum of so large int16 numbers, each times one of int8, is an int32."""

FINER = np.float32(254)
"""What a first int8 number leaves is at most half of its unit: a second one has units so many times finer."""

PANEL = 64
"""Latents that the int8 product computes together: 4 registers of 16 sums."""

TILE = 6
"""Rows it computes together: 24 of 32 registers hold sums, 4 hold latents."""

APART = 64
"""What it writes has so many more columns, of zeros: rows a multiple of 4,096 bytes apart would share few lines of the
cache."""

AT_ONCE = 48
"""Rows whose bounds by the int8 product are held at once, so few that they stay in cache (measured: a tenth faster than
384); a multiple of TILE."""

Count = np.uintp
"""Counters that index: what has no sign needs no check for being negative, which takes a third of such loops."""

compiled = numba.njit(
    nogil=True, cache=True, boundscheck=False, error_model="numpy", fastmath={"reassoc", "contract", "nsz"}
)


FLOAT, LONG, WORD, HALF, BYTE = ir.FloatType(), ir.IntType(64), ir.IntType(32), ir.IntType(16), ir.IntType(8)
SUMS, NUMBERS, HALVES = ir.VectorType(WORD, 16), ir.VectorType(FLOAT, 16), ir.VectorType(HALF, 32)
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
    """Return which of the 64 int16 numbers at an address exceed another one, as bits."""
    del typing_context

    def compare(context, builder, signature, values):
        numbers = ir.VectorType(ir.IntType(16), 64)
        pointer = builder.inttoptr(values[0], numbers.as_pointer())
        single = builder.insert_element(ir.Constant(numbers, ir.Undefined), values[1], ir.Constant(WORD, 0))
        least = builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(WORD, 64), [0] * 64))
        exceeds = builder.icmp_signed(">", builder.load(pointer, align=2), least)
        return builder.bitcast(exceeds, ir.IntType(64))

    return numba.uint64(numba.intp, numba.int16), compare


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


def _multiply_bytes(typing_context, shorts, columns, rows):
    """Return the sums of an int16 row times each of four int8 rows, all given by address; 32 divides the columns.

    For CPUs that add products of both (AVX-512 VNNI).
    """
    del typing_context

    def emit(context, builder, signature, values):
        size, sums, halves, bytes_ = (
            ir.IntType(64),
            *(ir.VectorType(t, n) for t, n in ((WORD, 16), (HALF, 32), (BYTE, 32))),
        )
        add = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(sums, [sums] * 3), "llvm.x86.avx512.vpdpwssd.512"
        )
        total = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(WORD, [sums]), "llvm.vector.reduce.add.v16i32"
        )
        addresses = cgutils.unpack_tuple(builder, values[2])
        before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
        builder.branch(loop)
        builder.position_at_end(loop)
        here = builder.phi(size)
        here.add_incoming(ir.Constant(size, 0), before)
        found = [builder.phi(sums) for _ in addresses]
        short = builder.inttoptr(builder.add(values[0], builder.mul(here, ir.Constant(size, 2))), halves.as_pointer())
        x = builder.bitcast(builder.load(short, align=2), sums)
        following = builder.add(here, ir.Constant(size, 32))
        here.add_incoming(following, loop)
        for i, address in enumerate(addresses):
            row = builder.load(builder.inttoptr(builder.add(address, here), bytes_.as_pointer()), align=1)
            added = builder.call(add, [found[i], x, builder.bitcast(builder.sext(row, halves), sums)])
            found[i].add_incoming(ir.Constant(sums, [0] * 16), before)
            found[i].add_incoming(added, loop)
            found[i] = added
        builder.cbranch(builder.icmp_signed("<", following, values[1]), loop, after)
        builder.position_at_end(after)
        return context.make_tuple(builder, signature.return_type, [builder.call(total, [one]) for one in found])

    return numba.types.UniTuple(numba.int32, 4)(numba.intp, numba.intp, rows), emit


class _Emitter:
    """Writes a tile's instructions."""

    def __init__(self, builder: ir.IRBuilder):
        self.builder = builder

    def at(self, address: Any, offset: Any, kind: ir.Type) -> Any:
        """Return a pointer so many bytes after an address."""
        offset = ir.Constant(LONG, offset) if isinstance(offset, int) else offset
        return self.builder.inttoptr(self.builder.add(address, offset), kind.as_pointer())

    def load(self, address: Any, offset: Any, kind: ir.Type, align: int = 4) -> Any:
        """Load what stands there."""
        return self.builder.load(self.at(address, offset, kind), align=align)

    def all_of(self, value: Any, kind: ir.VectorType) -> Any:
        """Return a vector of 16 times a number."""
        undefined = ir.Constant(kind, ir.Undefined)
        single = self.builder.insert_element(undefined, value, ir.Constant(WORD, 0))
        return self.builder.shuffle_vector(single, undefined, ir.Constant(SUMS, [0] * 16))

    def call(self, name: str, *values: Any) -> Any:
        """Call one of LLVM's own functions whose arguments and result are of one type."""
        kind = ir.FunctionType(values[0].type, [value.type for value in values])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), values)

    def sums(self, rows: Any, stride: Any, panel: Any, groups: Any, starts: Any) -> list[list[Any]]:
        """Return for each row of a tile the sums of 4 times 16 latents."""
        builder = self.builder
        first = [builder.add(rows, builder.mul(stride, ir.Constant(LONG, r))) for r in range(TILE)]
        start = [self.all_of(self.load(starts, 4 * r, WORD), SUMS) for r in range(TILE)]
        before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
        builder.branch(loop)
        builder.position_at_end(loop)
        group = builder.phi(LONG)
        group.add_incoming(ir.Constant(LONG, 0), before)
        sums = [[builder.phi(SUMS) for _ in range(4)] for _ in range(TILE)]
        here = builder.mul(group, ir.Constant(LONG, 4))
        place = builder.add(panel, builder.mul(here, ir.Constant(LONG, PANEL)))
        latents = [self.load(place, 64 * v, SUMS, align=64) for v in range(4)]
        following = builder.add(group, ir.Constant(LONG, 1))
        group.add_incoming(following, loop)
        for r in range(TILE):
            row = self.all_of(self.load(first[r], here, WORD), SUMS)
            for v in range(4):
                added = self.call("llvm.x86.avx512.vpdpbusd.512", sums[r][v], latents[v], row)
                sums[r][v].add_incoming(start[r], before)
                sums[r][v].add_incoming(added, loop)
                sums[r][v] = added
        builder.cbranch(builder.icmp_signed("<", following, groups), loop, after)
        builder.position_at_end(after)
        return sums

    def bound(self, sums: Any, row: list[Any], latents: list[Any]) -> Any:
        """Return the bits of sum · scale + offset + norm's and error's share."""
        (scale, norm, error), (own_scale, offset, own_norm, own_error) = row, latents
        value = self.builder.fmul(self.builder.sitofp(sums, NUMBERS), own_scale)
        value = self.call("llvm.fma.v16f32", value, scale, offset)
        value = self.call("llvm.fma.v16f32", norm, own_norm, value)
        return self.builder.bitcast(self.call("llvm.fma.v16f32", error, own_error, value), HALVES)


def _emit_tile(typing_context, inputs, numbers, output):
    """Write the bounds of `TILE` rows and `PANEL` latents to `out`, and where they exceed `maxima`, there.

    Everything is an address, or a distance in bytes; `groups` counts a row's fours of inputs.
    inputs: (rows, stride, panel, groups); numbers: (starts, factors, scale, offset, norm, error); output: (out, its
    stride, maxima, their stride).
    """
    del typing_context

    def emit(context, builder, signature, arguments):
        (rows, stride, panel, groups), (starts, factors, *latents), (out, width, maxima, apart) = (
            cgutils.unpack_tuple(builder, argument) for argument in arguments
        )
        emitter = _Emitter(builder)
        sums = emitter.sums(rows, stride, panel, groups, starts)
        high = ir.Constant(ir.VectorType(WORD, 32), [2 * i + 1 for i in range(32)])
        for v in (0, 2):
            own = [[emitter.load(address, 64 * u, NUMBERS) for address in latents] for u in (v, v + 1)]
            for r in range(TILE):
                row = [emitter.all_of(emitter.load(factors, 12 * r + 4 * i, FLOAT), NUMBERS) for i in range(3)]
                left, right = (emitter.bound(sums[r][v + u], row, own[u]) for u in (0, 1))
                halves = builder.shuffle_vector(left, right, high)
                here = ir.Constant(LONG, r)
                builder.store(halves, emitter.at(builder.add(out, builder.mul(width, here)), 32 * v, HALVES), align=2)
                most = builder.add(maxima, builder.mul(apart, here))
                larger = emitter.call("llvm.smax.v32i16", emitter.load(most, 32 * v, HALVES, align=2), halves)
                builder.store(larger, emitter.at(most, 32 * v, HALVES), align=2)
        return context.get_dummy_value()

    return numba.void(inputs, numbers, output), emit


_tile: Any = intrinsic(_emit_tile)
_sums_of_bytes: Any = intrinsic(_multiply_bytes)
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
def _kth_largest(values, k):
    """Return the k-th largest of float32 numbers, 0 where fewer than k are positive."""
    bits = values.view(np.int32)
    found = np.int32(0)
    for place in range(30, -1, -1):
        trial = np.int32(found | np.int32(1 << place))
        count = np.int32(0)
        for i in range(bits.shape[0]):
            count = np.int32(count + np.int32(bits[i] >= trial))
        if count >= k:
            found = trial
    return _number(found)


@compiled
def _places_above(row, floor, places):
    """Write where the row exceeds `floor` ≥ 0, ascending; return how many. `places` has two to spare."""
    found, one = Count(0), np.uint64(1)
    whole = row.shape[0] // 64 * 64
    address = row.ctypes.data
    for start in range(0, whole, 64):
        bits = _which_above(address + 2 * start, floor)
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
def _between(row, places, n, lowest, below, which, taken):
    """Write which of n places of a row have bits of at least `lowest` and less than `below`, and these places; return
    how many. `which` and `taken` have one to spare."""
    found = Count(0)
    for i in range(n):
        place = Count(places[i])
        which[found], taken[found] = i, place
        found += Count(row[place] >= lowest) & Count(row[place] < below)
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
def _to_shorts(row, shorts):
    """Write a row as int16 numbers of at most SHORTS / columns; return their unit, 0 where that is impossible."""
    most = np.float32(0)
    for i in range(row.shape[0]):
        most = max(most, abs(row[i]))
    largest = np.float32(min(MOST, SHORTS // shorts.shape[0]))
    if not np.float32(1e-30) < most < np.float32(1e15):
        shorts[:] = 0
        return np.float32(0)
    inverse = largest / most
    for i in range(row.shape[0]):
        shorts[i] = np.int16(np.int32(np.rint(row[i] * inverse)))
    return most / largest


@compiled
def _short_dots(shorts, unit, weight, index, values, n):
    """Write unit · shorts · weight[index[e]] for n entries e of a weight in int8, four at a time."""
    address, columns, end = weight.ctypes.data, weight.shape[1], n - 1
    for e in range(0, n, 4):
        e1, e2, e3 = min(e + 1, end), min(e + 2, end), min(e + 3, end)
        rows = (
            address + index[e] * columns,
            address + index[e1] * columns,
            address + index[e2] * columns,
            address + index[e3] * columns,
        )
        s0, s1, s2, s3 = _sums_of_bytes(shorts.ctypes.data, columns, rows)
        values[e], values[e1] = unit * np.float32(s0), unit * np.float32(s1)
        values[e2], values[e3] = unit * np.float32(s2), unit * np.float32(s3)


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
    order, there = np.empty_like(latents), np.empty_like(rows)
    for e in range(latents.shape[0]):
        latent = Count(latents[e])
        place = Count(following[latent])
        following[latent] += 1
        order[place], there[place] = e, rows[e]
    return order, there, offsets


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
    has rows, is the weight's bfloat16 copy with its two columns of norms; `coded`, likewise, is the int8 copy, its
    numbers and its panels.
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
        if coded[0].shape[1]:
            _copy_latent(row, j, coded)


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

    What cannot be coded (nearly 0, or not finite) becomes 0, and all of it counts as changed. Return whether it can.
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
        return False
    scale, inverse = largest / np.float32(127), np.float32(127) / largest
    error = np.float32(0)
    for i in range(row.shape[0]):
        whole = np.rint(row[i] * inverse)
        copy[i] = np.int8(np.int32(whole))
        rest = row[i] - whole * scale
        error += rest * rest
    numbers[0], numbers[1], numbers[2] = scale, np.sqrt(_dot(row, row)), np.sqrt(error)
    return True


@compiled
def _copy_rest(row, scale, copy, finer):
    """Write what rounding to int8 left of a row, in units of scale / FINER; return the norm of what is left of that."""
    unit = scale / FINER
    error = np.float32(0)
    for i in range(row.shape[0]):
        rest = row[i] - np.float32(copy[i]) * scale
        whole = np.rint(rest / unit)
        finer[i] = np.int8(np.int32(whole))
        rest -= whole * unit
        error += rest * rest
    return np.sqrt(error)


@compiled
def to_bytes(rows, copy, numbers, first, last):
    """Write the rows from `first` to `last` in int8, and their numbers [3, rows]: see `_copy_bytes`."""
    for r in range(first, last):
        _copy_bytes(rows[r], copy[r], numbers[:, r])


@compiled
def latents_to_bytes(weight, coded, first, last):
    """Copy the rows from `first` to `last` of a weight, as `update` does."""
    for j in range(first, last):
        _copy_latent(weight[j], j, coded)


@compiled
def _copy_latent(row, j, coded):
    """Write row j of a weight in int8 and what that leaves, its numbers, and the first bytes, 128 higher, in its panel
    [inputs / 4, …] of latents side by side."""
    copies, numbers, panels = coded
    copy, finer = copies[0, j], copies[1, j]
    if _copy_bytes(row, copy, numbers[:, j]):
        numbers[3, j] = _copy_rest(row, numbers[0, j], copy, finer)
    else:
        finer[:] = 0
        numbers[3, j] = numbers[2, j]
    words = copy.view(np.int32)
    side = panels.shape[2]
    panel, place = panels[j // side], j % side
    for i in range(words.shape[0]):
        panel[i, place] = words[i] ^ np.int32(-0x7F7F7F80)


@numba.njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")  # numbers are rounded as they stand here
def bounds(rows, factors, panels, numbers, offset, out, maxima, blocks):
    """Write bounds in bfloat16, and the maximum of each strided block of latents, at least 0.

    rows [n, columns] int8, n a multiple of `TILE` and columns of 4; factors [n, 3]; panels [n_panels, columns / 4,
    PANEL] int32; numbers [3 or more, n_latents] and offset [n_latents], n_latents = n_panels · PANEL.
    out [n, n_latents or more] int16 is, cut to bfloat16,

        sum · factors₀ · numbers₀ + offset + factors₁ · numbers₁ + factors₂ · numbers₂

    and maxima [n, blocks or more] int16, where PANEL divides blocks.
    """
    n, columns = rows.shape
    starts = np.empty(n, np.int32)
    for r in range(n):
        total = np.int32(0)
        for i in range(columns):
            total += rows[r, i]
        starts[r] = -128 * total
    maxima[:] = 0
    row, panel, start, factor = rows.ctypes.data, panels.ctypes.data, starts.ctypes.data, factors.ctypes.data
    scale, add, bits, most = numbers.ctypes.data, offset.ctypes.data, out.ctypes.data, maxima.ctypes.data
    next_number, next_bits, next_most = 4 * numbers.shape[1], 2 * out.shape[1], 2 * maxima.shape[1]
    for p in range(panels.shape[0]):
        first = PANEL * p
        own = scale + 4 * first
        latents = own, add + 4 * first, own + next_number, own + 2 * next_number
        place, block = bits + 2 * first, most + 2 * (first % blocks)
        for r in range(0, n, TILE):
            _tile(
                (row + r * columns, columns, panel + first * columns, columns // 4),
                (start + 4 * r, factor + 12 * r, *latents),
                (place + r * next_bits, next_bits, block + r * next_most, next_most),
            )


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
        counts[r] = _places_above(bits[r], np.int16(0), latents[end:])
        if not exact:
            for i in range(counts[r]):
                place = latents[end + i]
                values[end + i] = _number(bits[r, place]) + cut[place]
        end += counts[r]
    return counts, latents[:end], values[: 0 if exact else end]


@compiled
def above_by_bytes(product, blocks, narrowing, exact, x, cut):
    """Do what `above` does, with bounds by the int8 product, see `bounds`, narrowed, see `_margins`."""
    rows, factors, panels, numbers, offset = product
    bits, maxima, shorts = _product_memory(offset, blocks, narrowing)
    counts, latents, values = _room(x.shape[0], 64, bits.shape[1])
    end = 0
    for first in range(0, x.shape[0], AT_ONCE):
        last = first + AT_ONCE
        bounds(rows[first:last], factors[first:last], panels, numbers, offset, bits, maxima, blocks)
        for r in range(first, min(last, x.shape[0])):
            latents, values = _with_room(latents, values, end, bits.shape[1])
            found = latents[end:]
            n = _places_above(bits[r - first], np.int16(0), found)
            counts[r] = _narrowed_above(x[r], shorts, narrowing, r, exact, cut, found, n, values[end:])
            end += counts[r]
    return counts, latents[:end], values[: 0 if exact else end]


@compiled
def _room(n_rows, share, n):
    """Return arrays for the counts of rows, and for so many latents and values of each, see `_with_room`."""
    latents = np.empty(share * n_rows + n + 2, np.int64)
    return np.empty(n_rows, np.int64), latents, np.empty(latents.shape[0], np.float32)


@compiled
def _product_memory(offset, blocks, narrowing):
    """Return memory for the bounds of rows, the maxima of their blocks, and one row in int16."""
    bits = np.zeros((AT_ONCE, offset.shape[0] + APART), np.int16)
    maxima = np.empty((AT_ONCE, blocks + APART), np.int16)
    return bits, maxima, np.zeros(narrowing[0].shape[2], np.int16)


@compiled
def _narrowed_above(x, shorts, narrowing, r, exact, cut, places, n, values):
    """Keep, in place, those of n places in row r whose output may be above the cut, by narrower bounds; return how
    many. Unless `exact`, by both int8 numbers and without a margin, and write the outputs.
    """
    unit = _to_shorts(x, shorts)
    _short_dots(shorts, unit, narrowing[0][0], places, values, n)
    upper = np.empty(n, np.float32)
    _margins(values, upper, narrowing, r, 2, places, n, 1)
    _reaching(upper, np.float32(0), values, n)
    n = _reaching(upper, np.float32(0), places, n)
    if exact:
        return n
    _short_dots(shorts, unit, narrowing[0][1], places, upper, n)
    _add_finer(values, upper, n)
    _margins(values, upper, narrowing, r, 3, places, n, 0)
    kept = Count(0)
    for i in range(n):
        places[kept], values[kept] = places[i], upper[i] + cut[Count(places[i])]
        kept += Count(upper[i] > 0)
    return np.int64(kept)


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
def _margins(sums, bounds, narrowing, r, error, places, n, sign):
    """Write bounds of n outputs x · w + bias − cut, from above (sign 1) or below (−1), by sums x · w'.

    x is row r in int16, so that hardly anything but the latent's rounding counts. `narrowing` is the weight in int8
    numbers [2, n_latents, columns]: w' in units of a latent's scale, and what that leaves of w in units FINER times
    finer; for each latent (scale, bias − cut, errors of one and of both int8 numbers, what adding bias and cut may
    lose), and `error` says which of these; what each row makes of errors, and its own rounding [rows, 2]; and `spread`,
    see `_narrowed`.
    """
    _, latents, slack, _ = narrowing
    size, rest = slack[r, 0], slack[r, 1]
    for i in range(n):
        place = Count(places[i])
        margin = size * latents[place, error] + latents[place, 4] + rest
        bounds[i] = sums[i] * latents[place, 0] + latents[place, 1] + sign * margin


@compiled
def _reaching(values, least, places, n):
    """Keep, in place, those of n places whose value is at least `least`; return how many."""
    kept = Count(0)
    for i in range(n):
        places[kept] = places[i]
        kept += Count(values[i] >= least)
    return np.int64(kept)


@compiled
def largest(bits, exact, slack, k):
    """Return (counts, latents, values) of each row's entries that may be among its k largest and positive, in order.

    bits [rows, n_latents] bound x·wᵀ + bias from above, by at most `slack` [rows] and their rounding. Unless `exact`,
    they are taken for it, and values read off them: the k largest are returned, among equals the lowest latent first.
    """
    n_rows, n = bits.shape
    maxima = np.empty(min(n, max(BLOCKS, 8 * k)), np.int16)
    places, numbers = np.empty(n + 2, np.int64), np.empty(n + 2, np.float32)
    counts, latents, values = _room(n_rows, 2 * k, n)
    end = 0
    for r in range(n_rows):
        row = bits[r]
        latents, values = _with_room(latents, values, end, n)
        _block_maxima(row, maxima)
        sure = _kth_largest_of_maxima(maxima, k)  # at least k entries reach it
        if exact:
            lowest = max(_number(sure) * LESS_HALF - slack[r], np.float32(0))
            counts[r] = _places_above(row, np.int16(max(_bits_of(lowest) >> 16, 1) - 1), latents[end:])
        else:
            found = _places_above(row, np.int16(max(sure, 1) - 1), places)
            for i in range(found):
                numbers[i] = _number(row[places[i]])
            counts[r] = _keep_largest(places, numbers, found, k, latents[end:], values[end:])
        end += counts[r]
    return counts, latents[:end], values[: 0 if exact else end]


@compiled
def largest_by_bytes(product, blocks, narrowing, exact, x, k):
    """Do what `largest` does, with bounds by the int8 product, see `bounds`, narrowed, see `_margins`."""
    rows, factors, panels, numbers, offset = product
    bits, maxima, shorts = _product_memory(offset, blocks, narrowing)
    n = bits.shape[1]
    places, outputs = np.empty(n + 2, np.int64), np.empty(n + 2, np.float32)
    work = np.empty((4, n + 2), np.int64), np.empty((4, n + 2), np.float32)
    counts, latents, values = _room(x.shape[0], 2 * k, n)
    end = 0
    for first in range(0, x.shape[0], AT_ONCE):
        last = first + AT_ONCE
        bounds(rows[first:last], factors[first:last], panels, numbers, offset, bits, maxima, blocks)
        for r in range(first, min(last, x.shape[0])):
            latents, values = _with_room(latents, values, end, n)
            row, sure = bits[r - first], _kth_largest_of_maxima(maxima[r - first], k)  # at least k entries reach it
            found = _narrowed(x[r], shorts, narrowing, r, exact, row, sure, k, work, places, outputs)
            if exact:
                counts[r] = _reaching(outputs, np.float32(0), places, found)
                latents[end : end + counts[r]] = places[: counts[r]]
            else:
                counts[r] = _keep_largest(places, outputs, found, k, latents[end:], values[end:])
            end += counts[r]
    return counts, latents[:end], values[: 0 if exact else end]


@compiled
def _narrowed(x, shorts, narrowing, r, exact, row, sure, k, work, places, numbers):
    """Write places in row r, and by how much each may be above the k-th largest output, or if not `exact` its output;
    and −1 for those that cannot be among the k largest; return how many. All by narrower bounds.

    Those few that reach `sure` tell how far down to look: the k-th largest of bounds from below is at most the k-th
    largest output, and what does not reach it from above is out. `work` is memory for lists as long as `places`.
    """
    (first, surely, second, others), (sums, near, bounds, finer) = work
    coarse_weight, fine_weight = narrowing[0][0], narrowing[0][1]
    unit = _to_shorts(x, shorts)
    below = _number(sure) * LESS_CUT - narrowing[3][r]
    floor = np.int16(max(_bits_of(max(below, np.float32(0))) >> 16, 1) - 1)
    found = _places_above(row, floor, places)
    n_first = _between(row, places, found, sure, MOST, first, surely)
    _short_dots(shorts, unit, coarse_weight, surely, sums, n_first)
    _short_dots(shorts, unit, fine_weight, surely, finer, n_first)
    _add_finer(sums, finer, n_first)
    _margins(sums, bounds, narrowing, r, 3, surely, n_first, -1)
    least = _kth_largest(bounds[:n_first], k)
    lowest = np.int16(max(_bits_of(least) >> 16, 1))
    if lowest <= floor:
        found = _places_above(row, np.int16(lowest - 1), places)
        _between(row, places, found, sure, MOST, first, surely)
    n_second = _between(row, places, found, lowest, sure, second, others)
    _short_dots(shorts, unit, coarse_weight, others, near, n_second)
    _margins(near, finer, narrowing, r, 2, others, n_second, 1)
    _reaching(finer, least, near, n_second)
    _reaching(finer, least, second, n_second)
    n_second = _reaching(finer, least, others, n_second)
    _short_dots(shorts, unit, fine_weight, others, finer, n_second)
    _add_finer(near, finer, n_second)
    numbers[:found] = -1
    if exact:
        _margins(near, bounds[n_first:], narrowing, r, 3, others, n_second, -1)
        least = _kth_largest(bounds[: n_first + n_second], k)
        _margins(sums, bounds, narrowing, r, 3, surely, n_first, 1)
        _margins(near, finer, narrowing, r, 3, others, n_second, 1)
    else:
        least = np.float32(0)
        _margins(sums, bounds, narrowing, r, 3, surely, n_first, 0)
        _margins(near, finer, narrowing, r, 3, others, n_second, 0)
    for i in range(n_first):
        numbers[Count(first[i])] = bounds[i] - least
    for i in range(n_second):
        numbers[Count(second[i])] = finer[i] - least
    return found


@compiled
def _add_finer(sums, finer, n):
    """Add n sums of what one int8 number leaves to those of the number."""
    for i in range(n):
        sums[i] += finer[i] / FINER


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

    `latents` and `values` have one to spare.
    """
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
