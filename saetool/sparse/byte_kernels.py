"""The product of int8 rows and latents as numba compiles it for CPUs that add byte products (AVX-512 VNNI).

It never leaves the registers as a product: what is written is a bfloat16 bound of the output (see `byte`), half as
wide, and the maxima that the search for large ones begins with. Importing this needs numba; calling `bounds`, a CPU
with that unit (see `has_unit`).

The unit adds four products of an unsigned and a signed byte to each of 16 sums. Latents stand as unsigned bytes, 128
too high, in panels of 64 latents: [panel, group of 4 inputs, latent, input]; each row starts at −128 Σ q, so that its
sums come out right.
"""

from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, config
from numba.extending import intrinsic

PANEL = 64
"""Latents computed together: 4 registers of 16 sums."""

TILE = 6
"""Rows computed together: 24 of 32 registers hold sums, 4 hold latents."""

APART = 64
"""What is written has so many more columns, of zeros: rows a multiple of 4,096 bytes apart would share few lines of the
cache."""

WORD, SIZE, FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
SUMS, NUMBERS, HALVES = ir.VectorType(WORD, 16), ir.VectorType(FLOAT, 16), ir.VectorType(ir.IntType(16), 32)


def has_unit() -> bool:
    """Say whether numba compiles for a CPU that adds byte products."""
    features, name = (getattr(config, key, None) for key in ("CPU_FEATURES", "CPU_NAME"))  # as the environment says
    if features is not None or name is not None:
        return "+avx512vnni" in (features or "")
    return llvmlite.binding.get_host_cpu_features().get("avx512vnni", False)


class _Emitter:
    """Writes a tile's instructions."""

    def __init__(self, builder: ir.IRBuilder):
        self.builder = builder

    def at(self, address: Any, offset: Any, kind: ir.Type) -> Any:
        """Return a pointer so many bytes after an address."""
        offset = ir.Constant(SIZE, offset) if isinstance(offset, int) else offset
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
        first = [builder.add(rows, builder.mul(stride, ir.Constant(SIZE, r))) for r in range(TILE)]
        start = [self.all_of(self.load(starts, 4 * r, WORD), SUMS) for r in range(TILE)]
        before, loop, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
        builder.branch(loop)
        builder.position_at_end(loop)
        group = builder.phi(SIZE)
        group.add_incoming(ir.Constant(SIZE, 0), before)
        sums = [[builder.phi(SUMS) for _ in range(4)] for _ in range(TILE)]
        here = builder.mul(group, ir.Constant(SIZE, 4))
        place = builder.add(panel, builder.mul(here, ir.Constant(SIZE, PANEL)))
        latents = [self.load(place, 64 * v, SUMS, align=64) for v in range(4)]
        following = builder.add(group, ir.Constant(SIZE, 1))
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
                here = ir.Constant(SIZE, r)
                builder.store(halves, emitter.at(builder.add(out, builder.mul(width, here)), 32 * v, HALVES), align=2)
                most = builder.add(maxima, builder.mul(apart, here))
                larger = emitter.call("llvm.smax.v32i16", emitter.load(most, 32 * v, HALVES, align=2), halves)
                builder.store(larger, emitter.at(most, 32 * v, HALVES), align=2)
        return context.get_dummy_value()

    return numba.void(inputs, numbers, output), emit


_tile: Any = intrinsic(_emit_tile)


@numba.njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")
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
