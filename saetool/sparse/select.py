"""Who survives: the entries above a threshold, or the k largest of each row, a slice of the batch at a time.

Exact mode: where bfloat16 or int8 is fast, candidates come from a product in either, whichever is faster, that is a
proven bound; then, for the whole batch, their outputs are computed again in float32, and only those decide. Elsewhere
the float32 (or float64) product decides at once.
No [batch, n_latents] tensor is made, only [slice, n_latents] ones.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saetool.sparse import compiled
from saetool.sparse.byte import LEAST_ROWS, MOST_INPUTS, ByteWeight, Race, has_byte_product
from saetool.sparse.half import HalfWeight, fast_half, floor_half, has_matrix_unit
from saetool.sparse.kernels import sampled
from saetool.sparse.support import Support
from saetool.sparse.threads import share_out
from saetool.sparse.topk import keep_largest, strided_maxima

SLICE_ROWS = 512
"""Rows whose pre-activations are held at once: between the cost of reading the weight for each slice and that of
leaving the cache (measured: 6 to 9 % faster than 256, 2 to 4 % than 1,024; twice the rate of a whole batch)."""

BYTE_ROWS = 384
"""Rows that a thread takes at a time on the way by int8; a multiple of its product's tile."""

Precision = Literal["exact", "bf16"]
Finder = Callable[[int, range], compiled.Found]
"""Finds the entries of some rows in a thread, by its number."""


@dataclass
class Encoder:
    """A linear map x·Wᵀ + b, [n_latents, d_in] and [n_latents], that finds its largest outputs without keeping all.

    precision "exact": the outputs returned, and who is among them, are those of the weight's own precision. "bf16":
    they are bfloat16's; or, by the int8 product, those of 16-bit whole numbers, without proof that none is missed.
    """

    weight: Tensor
    precision: Precision = "exact"
    half: HalfWeight | None = None
    byte: ByteWeight | None = None
    race: Race = field(default_factory=Race, repr=False)
    _buffers: dict[int, Tensor] = field(default_factory=dict, repr=False)
    """By thread, what bfloat16's product of a slice is written to."""

    @property
    def _in_half(self) -> bool:
        if self.weight.dtype != torch.float32:
            return False
        return self.precision == "bf16" or fast_half(self.weight.device)

    def _in_bytes(self, rows: int = LEAST_ROWS) -> bool:
        """Whether the next selection, from so many rows, takes the int8 product: where there is a choice, exact mode,
        whose answer is the same on both ways, finds out which is faster; else where no matrix unit surely is."""
        choice = self.precision == "exact" and fast_half(self.weight.device)
        faster = self.race.takes_bytes(rows) if choice else not has_matrix_unit()
        fits = self.weight.shape[1] <= MOST_INPUTS and compiled.serves(self.weight)
        return faster and fits and has_byte_product()

    @property
    def kept(self) -> HalfWeight | ByteWeight | None:
        """The copy of the weight that the next selection reads, where there is one."""
        return self.byte if self._in_bytes() else self.half

    def refresh(self, start: int, stop: int) -> None:
        """Renew the kept copy's rows `start` to `stop`, where there is one."""
        if self.kept is not None:
            self.kept.refresh(self.weight.detach(), start, stop)

    def mark_current(self) -> None:
        """Say that all rows were renewed since the weight last changed."""
        if self.kept is not None:
            self.kept.mark_current(self.weight)

    @torch.no_grad()
    def above(
        self, x: Float[Tensor, "batch d_in"], bias: Float[Tensor, "n_latents"], cut: Float[Tensor, "n_latents"]
    ) -> tuple[Support, Float[Tensor, "entries"]]:
        """Return a support that holds every output above its latent's `cut`, and the outputs on it."""
        if not self._in_half and not self._in_bytes(len(x)):
            return self._above_plain(x, bias, cut)
        if compiled.serves(x, self.weight):
            return self._compiled(x, bias, cut, None)
        half, exact = self._half_with(bias - cut), self.precision == "exact"

        def part(number: int, rows: range) -> tuple[Support, Tensor]:
            inputs = x[rows.start : rows.stop]
            pre = self._product(number, half.extend(inputs, exact))
            places = positive_places(pre)
            support = self._support_of(places, len(rows))
            if exact:
                return support, self._outputs(inputs, bias, support)
            return support, pre.flatten()[places].float() + cut[support.latents]

        return _joined(share_out(part, len(x), SLICE_ROWS, x.device))

    @torch.no_grad()
    def largest(
        self, x: Float[Tensor, "batch d_in"], bias: Float[Tensor, "n_latents"], k: int
    ) -> tuple[Support, Float[Tensor, "entries"]]:
        """Return the positive ones among each row's k largest outputs; ties go to the lowest latent."""
        k = min(k, self.weight.shape[0])
        if not self._in_half and not self._in_bytes(len(x)):
            return self._largest_plain(x, bias, k)
        if compiled.serves(x, self.weight):
            return self._compiled(x, bias, torch.zeros_like(bias), k)
        half, exact = self._half_with(bias), self.precision == "exact"

        def part(number: int, rows: range) -> tuple[Support, Tensor]:
            inputs = x[rows.start : rows.stop]
            extended = half.extend(inputs, exact)
            slack = half.slack(extended) if exact else extended.new_zeros(len(rows), dtype=torch.float32)
            pre = self._product(number, extended)
            floor = floor_of_largest(pre, k, slack)
            places = positive_places(pre, floor)
            support = self._support_of(places, len(rows))
            if exact:
                outputs = self._outputs(inputs, bias, support)
            else:
                outputs = (pre.view(torch.int16).flatten()[places] + floor[support.rows]).view(torch.bfloat16).float()
            kept = keep_largest(outputs, support, k)
            return support.where(kept), outputs[kept]

        return _joined(share_out(part, len(x), SLICE_ROWS, x.device))

    def _compiled(self, x: Tensor, bias: Tensor, cut: Tensor, k: int | None) -> tuple[Support, Tensor]:
        """Return the outputs above `cut`, or with `k` each row's k largest that are positive, by compiled loops."""
        in_bytes, exact = self._in_bytes(len(x)), self.precision == "exact"
        with self.race.timed(len(x)):
            by_slice = self._by_bytes(x, bias, cut, k) if in_bytes else self._by_halves(x, bias, cut, k)
            most, tile = (BYTE_ROWS, compiled.tile()) if in_bytes else (SLICE_ROWS, 1)
            found = compiled.joined(share_out(by_slice, len(x), most, x.device, tile))
            if exact:
                found = compiled.decide(found, x, self.weight, bias, cut, k)
        counts, latents, values = found
        rows = torch.repeat_interleave(torch.arange(len(x)), counts, output_size=len(latents))
        return Support(rows, latents, len(x), self.weight.shape[0]), values

    def _by_bytes(self, x: Tensor, bias: Tensor, cut: Tensor, k: int | None) -> Finder:
        byte = self.byte = ByteWeight.of(self.weight, self.byte)
        bounding = byte.bounding(x, bias, cut, k or 0, proven=self.precision == "exact")

        def find(number: int, rows: range) -> compiled.Found:
            inputs = x[rows.start : rows.stop]
            return bounding.above(rows, inputs, cut) if k is None else bounding.largest(rows, inputs, k)

        return find

    def _by_halves(self, x: Tensor, bias: Tensor, cut: Tensor, k: int | None) -> Finder:
        half, exact = self._half_with(bias - cut), self.precision == "exact"

        def find(number: int, rows: range) -> compiled.Found:
            extended = half.extend(x[rows.start : rows.stop], exact)
            slack = half.slack(extended) if exact else x.new_zeros(len(rows))
            bounds = compiled.Bounds(self._product(number, extended), exact, slack)
            return bounds.above(cut) if k is None else bounds.largest(k)

        return find

    def _half_with(self, bias: Tensor) -> HalfWeight:
        self.half = HalfWeight.of(self.weight, self.half)
        self.half.set_bias(bias)
        return self.half

    def _product(self, number: int, extended: Tensor) -> Tensor:
        """Return the bfloat16 product of a slice; it lasts until the thread's next one."""
        assert self.half is not None
        memory = self._buffers.get(number)
        if memory is None or memory.device != extended.device:
            memory = self._buffers[number] = extended.new_empty(SLICE_ROWS, len(self.weight))
        with full_accumulation():
            return torch.mm(extended, self.half.weight.T, out=memory[: len(extended)])

    def _support_of(self, place: Tensor, n_rows: int) -> Support:
        row = torch.div(place, self.weight.shape[0], rounding_mode="floor")
        return Support(row, place - row * self.weight.shape[0], n_rows, self.weight.shape[0])

    def _outputs(self, x: Tensor, bias: Tensor, support: Support) -> Float[Tensor, "entries"]:
        """Return the outputs on the support, each one a dot product in the weight's own precision."""
        by_latent = support.by_latent
        outputs = by_latent.back(sampled(self.weight, by_latent.offsets, x, by_latent.rows))
        return outputs.add_(bias.index_select(0, support.latents))

    def _above_plain(self, x: Tensor, bias: Tensor, cut: Tensor) -> tuple[Support, Tensor]:
        rows, latents, values = [], [], []
        for start in range(0, len(x), SLICE_ROWS):
            pre = torch.addmm(bias, x[start : start + SLICE_ROWS], self.weight.T)
            # On CUDA nonzero waits for the device, once a slice.
            row, latent = (pre > cut).nonzero(as_tuple=True)
            rows.append(row + start)
            latents.append(latent)
            values.append(pre[row, latent])
        return self._support(rows, latents, len(x)), torch.cat(values)

    def _largest_plain(self, x: Tensor, bias: Tensor, k: int) -> tuple[Support, Tensor]:
        rows, latents, values = [], [], []
        for start in range(0, len(x), SLICE_ROWS):
            pre = torch.addmm(bias, x[start : start + SLICE_ROWS], self.weight.T)
            lowest = pre.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
            row, latent = ((pre >= lowest) & (pre > 0)).nonzero(as_tuple=True)
            rows.append(row + start)
            latents.append(latent)
            values.append(pre[row, latent])
        support, outputs = self._support(rows, latents, len(x)), torch.cat(values)
        kept = keep_largest(outputs, support, k)
        return support.where(kept), outputs[kept]

    def _support(self, rows: list[Tensor], latents: list[Tensor], n_rows: int) -> Support:
        return Support(torch.cat(rows), torch.cat(latents), n_rows, self.weight.shape[0])


def floor_of_largest(pre: Float[Tensor, "rows n_latents"], k: int, slack: Float[Tensor, "rows"]) -> Int[Tensor, "rows"]:
    """Return int16 numbers above which, in bits, lie all entries that may be among their row's k largest.

    `pre` exceeds what it stands for by at most `slack` and its own rounding to bfloat16: the k-th largest true output
    of a row is at least (k-th largest of `pre`) − slack, and what reaches that stands in `pre` no lower.
    """
    lowest = strided_maxima(pre.view(torch.int16), k).clamp_min(0).view(torch.bfloat16).float()
    rounding = torch.where(slack > 0, 2.0**-8, 0.0)
    lowest = floor_half((lowest * (1 - rounding) - slack).clamp_min(0))
    return (lowest.view(torch.int16) - 1).clamp_min(0)


def positive_places(
    pre: Float[Tensor, "rows n_latents"], floor: Int[Tensor, "rows"] | None = None
) -> Int[Tensor, "found"]:
    """Return the flat places of a bfloat16 tensor's positive entries, ascending; with `floor`, of those above it.

    Non-negative bfloat16 numbers order like their bits. `pre` is left with its bits minus `floor`, 0 where not found.
    Four entries at a time are looked at as one int64, then inside the few that are not 0: four times faster than
    looking at each (measured on CPU). On CUDA nonzero waits for the device.
    """
    bits = pre.view(torch.int16)
    if floor is None:
        bits.clamp_(min=0)
    else:
        torch.maximum(bits, floor[:, None], out=bits).sub_(floor[:, None])
    bits = bits.flatten()
    whole = bits.numel() // 4 * 4
    fours = bits[:whole].view(torch.int64)
    hits = fours.nonzero().squeeze(1)
    inside = fours.index_select(0, hits).view(torch.int16).nonzero().squeeze(1)
    found = hits.index_select(0, inside >> 2).mul_(4).add_(inside & 3)
    if whole == bits.numel():
        return found
    return torch.cat([found, bits[whole:].nonzero().squeeze(1) + whole])


def _joined(parts: list[tuple[Support, Tensor]]) -> tuple[Support, Tensor]:
    if len(parts) == 1:
        return parts[0]
    supports, values = zip(*parts, strict=True)
    return Support.concatenate(list(supports)), torch.cat(values)


class full_accumulation:
    """Within it, CUDA adds the terms of bfloat16 products in float32 throughout: the margin's bound needs that."""

    def __enter__(self) -> None:
        self._before = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False

    def __exit__(self, *error: object) -> None:
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = self._before
