"""The backend of a GPU: what is computed by torch, what by which kernel, and how the kernels are cut.

The encoder's product is made once, [batch, n_latents] in bfloat16, and read by the kernels that select; nothing else
has that shape. Selection reads back one number a step, how many entries there are, and everything behind it has exactly
that size. Tables that many entries gather from (the decoder, inputs, residuals) are read in bfloat16 and summed in
float32.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saetool.sparse.backends import plain
from saetool.sparse.backends.cuda import kernels as compiled_at_launch
from saetool.sparse.backends.plain import AdamStep
from saetool.sparse.codes import ByLatent, Support, offsets_after
from saetool.sparse.gradients import DeferredGradient
from saetool.sparse.weight import Copy, Weight

kernels: Any = compiled_at_launch
"""Called as kernels[grid](…), which their signatures do not say."""

BYTES, FEW_BYTES = 512, 32
"""Bytes of marks that a program of selection makes at a time, 4,096 latents; also the groups whose maxima tell how far
down a row's largest can be. Few, where there are few latents."""

ROOM_ROW = 2**40
"""The row of what is no entry and only fills room: behind all others."""

MISSING = -1e30
"""The output of what is no entry and only fills room: below everything."""

CHUNK = 256
"""Entries of one latent that another program sums first: what fires on every row would else take as long as all."""

ENTRIES, COLUMNS = 8, 256
"""The tile of entries gathered for a row: 256 bfloat16 columns are 16 bytes a thread of one warp."""

LATENT_ENTRIES = 4
"""The same for a latent: half as many are a sixth faster there, measured."""

BITS = 18
"""The k-th largest of maxima is known to so many bits: a factor of 1.001, so hardly more candidates."""

WIDEST = 1024
"""The most candidates in a row among which the k largest are ranked one against the other."""

ROUNDING, SUBNORMAL = 2.0**-11, 2.0**-24
"""A number rounded to float16 changed by at most half of this share, or by half of that where it is tiny; the rest pays
for the float32 sums around it."""

INT16_LATENTS = 2**15 - 1
"""So many latents sort by int16 keys, twice as fast as by int32 ones."""


class HalfCopy(Copy):
    """A weight in bfloat16, as most kernels read it."""

    dtype = torch.bfloat16

    def __init__(self, half: Tensor, norms: Tensor, errors: Tensor):
        self.half, self.norms, self.errors, self.measured = half, norms, errors, False

    @classmethod
    def empty(cls, weight: Float[Tensor, "n_latents d_in"]) -> Self:
        norms = torch.empty(len(weight), device=weight.device)
        return cls(torch.empty_like(weight, dtype=cls.dtype), norms, torch.empty_like(norms))

    def fits(self, weight: Float[Tensor, "n_latents d_in"]) -> bool:
        return self.half.shape == weight.shape and self.half.device == weight.device

    def refresh(self, weight: Float[Tensor, "n_latents d_in"], start: int, stop: int) -> None:
        some, copied = weight[start:stop], (part[start:stop] for part in (self.half, self.norms, self.errors))
        with _on(weight):
            kernels.round_rows[(len(some),)](some, *copied, weight.shape[1], COLUMNS, num_warps=1)
        self.measured = self.measured or (start == 0 and stop == len(weight))

    def changed(self) -> None:
        """Measure again, in the same order of sums whenever a training resumes."""
        self.measured = False


class FineCopy(HalfCopy):
    """A weight in float16, eight times as fine, as exact mode searches by; what is out of its range is cut off there.

    Where it was `measured`, with the norms of its rounded rows and of what rounding (and cutting off) changed.
    """

    dtype = torch.float16


@dataclass(frozen=True)
class SortedByLatent(ByLatent):
    """The entries in latent order, with the latent of each."""

    latents: Int[Tensor, "entries"]


class Cuda:
    """See `Backend`."""

    name = "cuda"

    def center(self, x: Tensor, mean: Tensor | None, factor: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        units, centered = (torch.empty(x.shape, device=x.device) for _ in range(2))
        block, given = 1024, mean is not None
        with _on(x):
            kernels.center[(_blocks(x.numel(), block),)](
                x, mean if given else x, factor, bias, units, centered, x.numel(), x.shape[1], block, given
            )
        return units, centered

    def search(self, x: Tensor, W_enc: Weight, bias: Tensor, precision, *, cut=None, k=None) -> "_Threshold | _TopK":
        product = _Product(x, W_enc, bias, precision == "exact")
        if k is not None:
            return _TopK(product, min(k, len(bias)))
        assert cut is not None
        return _Threshold(product, (bias - cut).contiguous())

    def keep(self, support: Support, values: Tensor, kept: Tensor) -> tuple[Support, Tensor]:
        return support, torch.where(kept, values, 0.0)

    def by_latent(self, support: Support) -> SortedByLatent:
        n, device = support.n_latents, support.latents.device
        keys = support.latents.to(_key_type(n)) if support.keys is None else support.keys
        latents, order = torch.sort(keys, stable=True)
        borders = torch.arange(n + 1, device=device, dtype=latents.dtype)
        offsets = torch.searchsorted(latents, borders)
        return SortedByLatent(order, support.rows.index_select(0, order), offsets, latents)

    def decode(self, support: Support, values: Tensor, W_dec: Weight) -> Tensor:
        # A reconstruction is what people look at: by the float32 weight.
        return _weighted_sums(support.offsets, support.latents, values, W_dec.tensor.detach())

    def squared_error(self, support: Support, values, W_dec: Weight, bias, x) -> tuple[Tensor, Tensor, Tensor]:
        rows, d_in = x.shape
        half, blocks = W_dec.copied(HalfCopy).half, _blocks(d_in, COLUMNS)
        residual = torch.empty_like(x, dtype=torch.bfloat16)
        squares = torch.empty(blocks, rows, device=x.device)
        with _on(x):
            kernels.residuals[(rows, blocks)](
                support.offsets, support.latents, values.contiguous(), half, x, bias, residual, squares, rows, d_in,
                ENTRIES, COLUMNS, num_warps=1,
            )  # fmt: skip
        return squares.sum(0), residual, _row_products(support, half, residual)

    def sampled_products(self, support: Support, weight: Weight, rows: Tensor) -> Tensor:
        return _row_products(support, weight.tensor.detach(), rows)

    def latent_gradient(self, support: Support, weights, table, start: int, stop: int) -> Tensor:
        by_latent = support.by_latent(self)
        assert isinstance(by_latent, SortedByLatent)
        offsets = by_latent.offsets[start : stop + 1]
        ordered = by_latent.to_latent_order(weights)
        return _weighted_sums(offsets, by_latent.rows, ordered, table.bfloat16(), by_latent.latents, support.n_latents)

    def latent_sums(self, support: Support, values: Tensor) -> Tensor:
        by_latent, sums = support.by_latent(self), torch.empty(support.n_latents, device=values.device)
        with _on(values):
            kernels.group_sums[(len(sums),)](
                by_latent.offsets, by_latent.order, values.contiguous(), sums, 256, num_warps=1
            )
        return sums

    def column_sums(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        return rows.sum(0, dtype=torch.float32) if weights is None else weights @ rows

    def update(
        self, weight: Weight, gradient: DeferredGradient, moments, step: AdamStep, unit_rows, scales=None
    ) -> None:
        values = weight.tensor.detach()
        grad = gradient.block(0, len(values), self) if values.dim() == 2 else gradient.dense
        assert grad is not None
        width = values.shape[1] if values.dim() == 2 else min(1024, max(1, values.numel()))
        copy = weight.copy if isinstance(weight.copy, HalfCopy) else None
        with _on(values):
            kernels.adam_rows[(_blocks(values.numel(), width),)](
                values, grad.contiguous(), *moments, copy.half if copy else values, step.numbers(values.device),
                *((scales.before, scales.after) if scales else (values, values)),
                values.numel(), width, _power_of_two(width), unit_rows, copy is not None, scales is not None,
            )  # fmt: skip
        torch.autograd.graph.increment_version(weight.tensor)
        if copy is not None:
            copy.changed()
            weight.mark_current()

    def step_context(self) -> AbstractContextManager[None]:
        return nullcontext()


class _Product:
    """The product of a batch with the encoder in 16 bits, and what is found in it.

    In exact mode it is made in float16, entries are taken that might be wanted, by a bound of what it can be off, and
    their outputs are then computed in float32. With x and w rounded to x' and w', and K terms added in float32, it is
    off by at most

        ‖x − x'‖ ‖w‖ + ‖x'‖ ‖w − w'‖ + K 2⁻²³ ‖x'‖ ‖w‖

    (Cauchy–Schwarz, Higham 2002 §3.1) and its own rounding; norms of weights are the largest of all rows.
    """

    def __init__(self, x: Tensor, W_enc: Weight, bias: Tensor, exact: bool):
        kind = FineCopy if exact else HalfCopy
        copy, rows = W_enc.copied(kind), kind.empty(x)
        self.x, self.W_enc, self.bias, self.exact = x, W_enc, bias.detach(), exact
        rows.refresh(x, 0, len(x))
        with _full_accumulation():
            self.pre = torch.mm(rows.half, copy.half.T)
        self.rounding, norms, errors = ROUNDING if exact else 0.0, rows.norms, rows.errors
        if exact:
            if not copy.measured:
                copy.refresh(W_enc.tensor.detach(), 0, len(bias))
            size, wrong = (norm.nan_to_num(0.0).amax() for norm in (copy.norms, copy.errors))  # NaN is found nowhere
            rounding = (x.shape[1] + 16) * 2.0**-23
            self.margin = SUBNORMAL + 1.01 * (
                errors * (size + wrong) + norms * wrong + rounding * (norms + errors) * (size + wrong)
            )
        else:
            self.margin = torch.zeros_like(norms)

    @property
    def _bytes(self) -> int:
        return _blocks(self.pre.shape[1], 8)

    def floor(self, k: int) -> Tensor:
        """Return for each row what its k largest positive outputs all exceed, hardly lower than need be."""
        rows, n_latents = self.pre.shape
        floor = torch.empty(rows, device=self.x.device)
        with _on(self.x):
            kernels.topk_floor[(rows,)](
                self.pre, self.bias, self.margin, floor, n_latents, self._bytes, k, -self.rounding, self._groups, BITS,
                8 * k > min(self._bytes, BYTES),
            )  # fmt: skip
        return floor

    def outputs(self, support: Support) -> Tensor:
        """Return the outputs on a support: in exact mode computed in float32, else the product's."""
        if self.exact:
            return _row_products(support, self.W_enc.tensor.detach(), self.x, self.bias)
        room, block = len(support.latents), 1024
        values = torch.empty(room, device=self.x.device)
        with _on(self.x):
            kernels.entry_values[(max(1, _blocks(room, block)),)](
                support.rows, support.latents, support.offsets[-1:], self.pre, self.bias, values, room,
                self.pre.shape[1], MISSING, block,
            )  # fmt: skip
        return values

    @property
    def _groups(self) -> int:
        # Two sizes only: among dead latents their number changes all the time, and each size is compiled.
        return BYTES if self._bytes > FEW_BYTES else FEW_BYTES

    def mark(self, offset: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
        """Return one bit a latent for the entries whose output with this offset [n_latents] exceeds the row's floor,
        and how many a row has."""
        rows, n_latents = self.pre.shape
        bits = torch.empty(rows, self._bytes, dtype=torch.uint8, device=self.x.device)
        counts = torch.empty(rows, dtype=torch.int64, device=self.x.device)
        with _on(self.x):
            kernels.mark[(rows,)](
                self.pre, offset, floor, bits, counts, n_latents, self._bytes, self.rounding, self._groups
            )
        return bits, counts

    def entries(self, bits: Tensor, counts: Tensor, room: int) -> Support:
        """Return the marked entries, with room for so many."""
        rows, n_latents = self.pre.shape
        device, wide = self.x.device, torch.int64
        offsets = offsets_after(counts)
        row = torch.full((room,), ROOM_ROW, dtype=wide, device=device)
        latents = torch.zeros(room, dtype=wide, device=device)
        keys = torch.full((room,), n_latents, dtype=_key_type(n_latents), device=device)
        with _on(self.x):
            kernels.expand[(rows,)](bits, offsets, row, latents, keys, self._bytes, self._groups, num_warps=1)
        return Support(offsets, latents, n_latents, row, keys)


class _Threshold:
    """The entries whose output with an offset exceeds zero; see `Search`."""

    def __init__(self, product: _Product, offset: Tensor):
        self.product = product
        self.bits, self.counts = product.mark(offset, product.margin.neg())
        self.numbers = self.counts.sum().unsqueeze(0)

    def shape(self, numbers: list[int]) -> tuple[int, ...] | None:
        return (room_for(numbers[0]),)

    def found(self, numbers: list[int], room: int | None = None) -> tuple[Support, Tensor]:
        support = self.product.entries(self.bits, self.counts, numbers[0] if room is None else room)
        return support, self.product.outputs(support)


class _TopK:
    """Each row's k largest positive entries; see `Search`."""

    def __init__(self, product: _Product, k: int):
        self.product, self.k = product, k
        self.bits, self.counts = product.mark(product.bias, product.floor(k))
        self.numbers = torch.stack([self.counts.sum(), self.counts.amax()])

    def shape(self, numbers: list[int]) -> tuple[int, ...] | None:
        total, widest = numbers
        return (room_for(total), _width(widest)) if widest <= WIDEST else None

    def found(self, numbers: list[int], room: int | None = None) -> tuple[Support, Tensor]:
        (total, widest), product, k = numbers, self.product, self.k
        x, bias = product.x, product.bias
        if widest > WIDEST:  # equal outputs by the thousand: a degenerate model
            return plain.search(x, product.W_enc, bias, not product.exact, None, k).found(numbers)
        support = product.entries(self.bits, self.counts, total if room is None else room)
        values = product.outputs(support)
        latents = torch.zeros(len(x), k, dtype=torch.int64, device=x.device)
        kept = torch.zeros(len(x), k, device=x.device)
        width = _width(widest)
        with _on(x):
            kernels.keep_largest[(len(x),)](
                support.offsets, support.latents, values, latents, kept, k, width, 16, num_warps=max(1, width // 64)
            )
        offsets = torch.arange(0, latents.numel() + 1, k, device=x.device)
        return Support(offsets, latents.flatten(), len(bias)), kept.flatten()


def room_for(total: int) -> int:
    """Return room for so many entries, at most an eighth more than need be: few sizes, so that steps repeat."""
    step = max(1024, 1 << max(0, total.bit_length() - 4))
    return _blocks(total, step) * step


def _width(widest: int) -> int:
    return max(16, _power_of_two(widest))


def _key_type(n_latents: int) -> torch.dtype:
    return torch.int16 if n_latents <= INT16_LATENTS else torch.int32


def _weighted_sums(
    offsets: Tensor, index: Tensor, weights: Tensor, table: Tensor, groups: Tensor | None = None, end: int = 0
) -> Tensor:
    """Return, for group g, Σ over its entries e of weights[e] · table[index[e]]; with the group of each entry in order,
    long groups are summed in chunks first; from the group `end` on there is only room."""
    d_in, n_groups, weights = table.shape[1], len(offsets) - 1, weights.contiguous()
    blocks, n_chunks = _blocks(d_in, COLUMNS), 0 if groups is None else len(index) // CHUNK
    chunks = torch.empty(n_chunks, d_in, device=table.device)
    out = torch.empty(n_groups, d_in, device=table.device)
    rest: dict[str, Any] = {"num_warps": 1}
    with _on(table):
        if n_chunks:
            kernels.chunk_sums[(n_chunks, blocks)](
                groups, index, weights, table, chunks, end, d_in, CHUNK, LATENT_ENTRIES, COLUMNS, **rest
            )
        kernels.weighted_sums[(n_groups, blocks)](
            offsets, index, weights, table, chunks, out, d_in, CHUNK, n_chunks > 0, LATENT_ENTRIES, COLUMNS, **rest
        )
    return out


def _row_products(support: Support, weight: Tensor, table: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return weight[latent] · table[row] (+ bias[latent]) of every entry."""
    products = torch.full((len(support.latents),), 0.0 if bias is None else MISSING, device=table.device)
    with _on(table):
        kernels.row_products[(support.n_rows,)](
            support.offsets, support.latents, weight, table.contiguous(), products if bias is None else bias, products,
            table.shape[1], ENTRIES, COLUMNS, bias is not None, num_warps=1 if weight.dtype == torch.bfloat16 else 4,
        )  # fmt: skip
    return products


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


def _power_of_two(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


@contextmanager
def _on(tensor: Tensor) -> Iterator[None]:
    """Launch on the tensor's device (Triton takes the current one)."""
    with torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext():
        yield


@contextmanager
def _full_accumulation() -> Iterator[None]:
    """Let products in 16 bits add their terms in float32 throughout: the bound of exact mode needs that."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_bf16_reduced_precision_reduction, matmul.allow_fp16_reduced_precision_reduction
    matmul.allow_bf16_reduced_precision_reduction = matmul.allow_fp16_reduced_precision_reduction = False
    try:
        yield
    finally:
        matmul.allow_bf16_reduced_precision_reduction, matmul.allow_fp16_reduced_precision_reduction = before
