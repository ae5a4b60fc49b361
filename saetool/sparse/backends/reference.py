"""The specification: every function of a sparse step in plain torch, on any device and in any dtype.

What the other backends compute is held to this in tests. Selection goes by slices of rows in the tensors' own
precision; nothing of shape [batch, n_latents] outlives its slice.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from saetool.sparse.backends import plain
from saetool.sparse.backends.plain import AdamStep
from saetool.sparse.codes import ByLatent, Support, offsets_of
from saetool.sparse.gradients import DeferredGradient
from saetool.sparse.weight import Weight

ENTRIES_AT_ONCE = 1024
"""Entries whose two vectors are held at once by a sampled product: they stay in cache."""


class Reference:
    """See `Backend`."""

    name = "reference"

    def center(self, x: Tensor, mean: Tensor | None, factor: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        x = x.to(bias.dtype)
        units = x if mean is None else (x - mean) * factor
        return units, units - bias

    def search(self, x, W_enc: Weight, bias, precision, *, cut=None, k=None) -> plain.Done:
        return plain.search(x, W_enc, bias, precision == "bf16", cut, k)

    def keep(self, support: Support, values: Tensor, kept: Tensor) -> tuple[Support, Tensor]:
        return support, torch.where(kept, values, 0.0)

    def by_latent(self, support: Support) -> ByLatent:
        sorted_latents, order = torch.sort(support.latents, stable=True)
        return ByLatent(order, support.rows.index_select(0, order), offsets_of(sorted_latents, support.n_latents))

    def decode(self, support: Support, values: Tensor, W_dec: Weight) -> Tensor:
        return _weighted_sums(support.offsets, support.latents, values, W_dec.tensor.detach())

    def squared_error(self, support: Support, values, W_dec: Weight, bias, x) -> tuple[Tensor, Tensor, Tensor]:
        residual = x - bias - self.decode(support, values, W_dec)
        return residual.square().sum(1), residual, self.sampled_products(support, W_dec, residual)

    def sampled_products(self, support: Support, weight: Weight, rows: Tensor) -> Tensor:
        pairs = zip(support.latents.split(ENTRIES_AT_ONCE), support.rows.split(ENTRIES_AT_ONCE), strict=True)
        products = [(weight.tensor.detach()[j] * rows[i]).sum(-1) for j, i in pairs]
        return torch.cat(products) if products else rows.new_zeros(0)

    def latent_gradient(self, support: Support, weights, table, start: int, stop: int) -> Tensor:
        by_latent = support.by_latent(self)
        ordered = by_latent.to_latent_order(weights)
        return _weighted_sums(by_latent.offsets[start : stop + 1], by_latent.rows, ordered, table)

    def latent_sums(self, support: Support, values: Tensor) -> Tensor:
        return values.new_zeros(support.n_latents).index_add_(0, support.latents, values)

    def column_sums(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        return rows.sum(0) if weights is None else weights @ rows

    def update(
        self, weight: Weight, gradient: DeferredGradient, moments, step: AdamStep, unit_rows, scales=None
    ) -> None:
        plain.update_in_blocks(self, weight, gradient, moments, step, unit_rows, scales)

    def step_context(self) -> AbstractContextManager[None]:
        return nullcontext()


def _weighted_sums(offsets: Tensor, index: Tensor, weights: Tensor, table: Tensor) -> Tensor:
    """Return, for group g, Σ over its entries e from offsets[g] to offsets[g + 1] of weights[e] · table[index[e]]."""
    first, last = int(offsets[0]), int(offsets[-1])
    total = table.new_zeros(len(offsets) - 1, table.shape[1])
    counts = offsets.diff()
    groups = torch.repeat_interleave(torch.arange(len(total), device=table.device), counts)
    for places in torch.arange(first, last, device=table.device).split(ENTRIES_AT_ONCE):
        rows = table[index[places]] * weights[places, None]
        total.index_add_(0, groups[places - first], rows)
    return total
