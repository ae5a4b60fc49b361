"""Who survives: the entries above a threshold, or the k largest of each row, a slice of the batch at a time.

Exact mode, where bfloat16 is fast: candidates come from a bfloat16 product with a proven margin, their pre-activations
are computed again in float32, and only those decide. Elsewhere the float32 (or float64) product decides at once.
No [batch, n_latents] tensor is made, only [slice, n_latents] ones.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saetool.sparse.half import HalfWeight, ceil_half, fast_half, floor_half
from saetool.sparse.kernels import sampled
from saetool.sparse.support import Support
from saetool.sparse.topk import keep_largest, strided_maxima

SLICE_ROWS = 256
"""Rows whose pre-activations are held at once: they stay in cache (measured: twice the rate of a whole batch)."""

Precision = Literal["exact", "bf16"]


@dataclass
class Encoder:
    """A linear map x·Wᵀ + b, [n_latents, d_in] and [n_latents], that finds its largest outputs without keeping all.

    precision "exact": the outputs returned, and who is among them, are those of the weight's own precision.
    """

    weight: Tensor
    precision: Precision = "exact"
    half: HalfWeight | None = None
    _buffer: Tensor | None = field(default=None, repr=False)

    @property
    def _in_half(self) -> bool:
        if self.weight.dtype != torch.float32:
            return False
        return self.precision == "bf16" or fast_half(self.weight.device)

    def refresh(self, start: int, stop: int) -> None:
        """Renew what is kept of the weight's rows `start` to `stop`, where anything is."""
        if self.half is not None:
            self.half.refresh(self.weight.detach(), start, stop)

    def mark_current(self) -> None:
        """Say that all rows were renewed since the weight last changed."""
        if self.half is not None:
            self.half.mark_current(self.weight)

    @torch.no_grad()
    def above(
        self, x: Float[Tensor, "batch d_in"], bias: Float[Tensor, "n_latents"], cut: Float[Tensor, "n_latents"]
    ) -> tuple[Support, Float[Tensor, "entries"]]:
        """Return a support that holds every output above its latent's `cut`, and the outputs on it."""
        if not self._in_half:
            return self._above_plain(x, bias, cut)
        self.half = HalfWeight.of(self.weight, self.half)
        x_half = x.bfloat16()
        rows, latents, values = [], [], []
        for start in range(0, len(x), SLICE_ROWS):
            part = slice(start, start + SLICE_ROWS)
            shift = bias - cut
            if self.precision == "exact":
                shift = shift + self.half.margin(x[part], x_half[part])
            pre = self._product(x_half[part], ceil_half(shift) if self.precision == "exact" else shift.bfloat16())
            found = positive_places(pre)
            row = torch.div(found, self.weight.shape[0], rounding_mode="floor")
            rows.append(row + start)
            latents.append(found - row * self.weight.shape[0])
            if self.precision == "bf16":
                values.append(pre.flatten()[found])
        support = self._support(rows, latents, len(x))
        if self.precision == "bf16":
            return support, torch.cat(values).float() + cut[support.latents]
        return support, self._outputs(x, bias, support)

    @torch.no_grad()
    def largest(
        self, x: Float[Tensor, "batch d_in"], bias: Float[Tensor, "n_latents"], k: int
    ) -> tuple[Support, Float[Tensor, "entries"]]:
        """Return the positive ones among each row's k largest outputs; ties go to the lowest latent."""
        k = min(k, self.weight.shape[0])
        if not self._in_half:
            return self._largest_plain(x, bias, k)
        self.half = HalfWeight.of(self.weight, self.half)
        x_half = x.bfloat16()
        rows, latents, values = [], [], []
        for start in range(0, len(x), SLICE_ROWS):
            part = slice(start, start + SLICE_ROWS)
            margin = self.half.margin(x[part], x_half[part]) if self.precision == "exact" else None
            pre = self._product(x_half[part], bias.bfloat16() if margin is None else ceil_half(bias + margin))
            found = self._above_row_threshold(pre, k, margin, bias, values)
            row = torch.div(found, self.weight.shape[0], rounding_mode="floor")
            rows.append(row + start)
            latents.append(found - row * self.weight.shape[0])
        support = self._support(rows, latents, len(x))
        outputs = torch.cat(values).float() if self.precision == "bf16" else self._outputs(x, bias, support)
        kept = keep_largest(outputs, support, k)
        return support.where(kept), outputs[kept]

    def _above_row_threshold(self, pre, k, margin, bias, values) -> Int[Tensor, "found"]:
        """Return the places of entries that may be among their row's k largest; `pre` is overwritten.

        In exact mode `pre` bounds the true outputs from above, and exceeds them by at most `slack`: the k-th largest
        true output of a row is at least (k-th largest of `pre`) − slack.
        """
        order = pre.view(torch.int16).clamp_(min=0)  # non-negative bfloat16 numbers order like their bits
        lowest = strided_maxima(order, k).view(torch.bfloat16).float()
        if margin is not None:
            # pre = round(x'·w' + ceil(bias + margin)): twice the margin, the rounding of the bias, and of the sum.
            slack = (2 * margin + 2.0**-7 * (bias + margin).abs()).max() + 2.0**-7 * lowest
            lowest = floor_half((lowest - slack).clamp_min(0)).float()
        threshold = lowest.bfloat16().view(torch.int16)
        if margin is None:
            found = positive_places((order - (threshold - 1).clamp_(min=0)[:, None]).view(torch.bfloat16))
            values.append(pre.flatten()[found])
            return found
        order.sub_((threshold - 1).clamp_(min=0)[:, None])
        return positive_places(pre)

    def _product(self, x_half: Tensor, bias_half: Tensor) -> Float[Tensor, "rows n_latents"]:
        half = self.half
        assert half is not None
        n_latents = self.weight.shape[0]
        if self._buffer is None or self._buffer.shape[1] != n_latents or self._buffer.device != x_half.device:
            self._buffer = torch.empty(SLICE_ROWS, n_latents, dtype=torch.bfloat16, device=x_half.device)
        out = self._buffer[: len(x_half)]
        with full_accumulation():
            return torch.addmm(bias_half, x_half, half.weight.T, out=out)

    def _outputs(self, x: Tensor, bias: Tensor, support: Support) -> Float[Tensor, "entries"]:
        """Return the outputs on the support, each one a dot product in the weight's own precision."""
        by_latent = support.by_latent
        outputs = x.new_empty(support.rows.numel())
        outputs[by_latent.order] = sampled(self.weight, by_latent.offsets, x, by_latent.rows)
        return outputs.add_(bias[support.latents])

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


def positive_places(pre: Float[Tensor, "rows n_latents"]) -> Int[Tensor, "found"]:
    """Return the flat places of the positive entries of a contiguous bfloat16 tensor, ascending; it is clamped at 0.

    Four entries at a time are looked at as one int64, then inside the few that are not 0: four times faster than
    looking at each (measured on CPU). On CUDA nonzero waits for the device.
    """
    bits = pre.view(torch.int16).flatten().clamp_(min=0)
    whole = bits.numel() // 4 * 4
    fours = bits[:whole].view(torch.int64)
    hits = fours.nonzero().squeeze(1)
    inside = fours[hits].view(torch.int16).nonzero().squeeze(1)
    found = hits[torch.div(inside, 4, rounding_mode="floor")] * 4 + inside % 4
    if whole == bits.numel():
        return found
    return torch.cat([found, bits[whole:].nonzero().squeeze(1) + whole])


class full_accumulation:
    """Within it, CUDA adds the terms of bfloat16 products in float32 throughout: the margin's bound needs that."""

    def __enter__(self) -> None:
        self._before = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False

    def __exit__(self, *error: object) -> None:
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = self._before
