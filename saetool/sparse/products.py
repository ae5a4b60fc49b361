"""The two differentiable products of a sparse step, and their gradients, all in O(entries · d_in).

`pre_activations`: a_e = x_row(e) · W_latent(e) + b_latent(e) on the entries e of a support.
`decode`: x_hat_row = Σ_e z_e W_latent(e).
Neither makes a [batch, n_latents] tensor, forward or backward.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from saetool.sparse.support import Support

ROWS_AT_ONCE = 4096
"""Entries whose two vectors are held at once by the plain sampled product: small enough to stay in cache."""


def bag_sum(rows: Tensor, weights: Tensor, offsets: Tensor, table: Tensor) -> Float[Tensor, "bags d_in"]:
    """Return Σ over the entries of each bag of weights[e] · table[rows[e]]; bag i is offsets[i] to offsets[i + 1]."""
    return F.embedding_bag(
        rows, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )


def sampled(left: Tensor, left_rows: Tensor, right: Tensor, right_rows: Tensor) -> Float[Tensor, "entries"]:
    """Return left[left_rows[e]] · right[right_rows[e]] for every entry e."""
    parts = [
        (left[i] * right[j]).sum(-1)
        for i, j in zip(left_rows.split(ROWS_AT_ONCE), right_rows.split(ROWS_AT_ONCE), strict=True)
    ]
    return torch.cat(parts) if parts else left.new_zeros(0)


def latent_sums(values: Tensor, support: Support) -> Float[Tensor, "n_latents"]:
    """Return the sum of the entries' values, latent by latent."""
    return torch.zeros(support.n_latents, dtype=values.dtype, device=values.device).index_add_(
        0, support.latents, values
    )


class _PreActivations(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, x, center, weight, bias, support):
        ctx.support = support
        ctx.save_for_backward(x, weight)
        return values.clone()

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        by_latent = ctx.support.by_latent
        grad_bias = latent_sums(grad, ctx.support)
        grad_weight = bag_sum(by_latent.rows, grad[by_latent.order], by_latent.offsets, x)
        grad_center = -(grad_bias @ weight) if ctx.needs_input_grad[2] else None
        return None, None, grad_center, grad_weight, grad_bias, None


def pre_activations(
    values: Float[Tensor, "entries"],
    x: Float[Tensor, "batch d_in"],
    center: Float[Tensor, "d_in"],
    weight: Float[Tensor, "n_latents d_in"],
    bias: Float[Tensor, "n_latents"],
    support: Support,
) -> Float[Tensor, "entries"]:
    """Return `values`, the pre-activations that selection already computed, with their gradient.

    `x` is the centered input (center already subtracted) and gets no gradient; center, weight and bias do.
    """
    return _PreActivations.apply(values, x, center, weight, bias, support)


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, weight, support):
        ctx.support = support
        ctx.save_for_backward(values, weight)
        return bag_sum(support.latents, values, support.offsets, weight)

    @staticmethod
    def backward(ctx, grad):
        values, weight = ctx.saved_tensors
        support, by_latent = ctx.support, ctx.support.by_latent
        grad = grad.contiguous()
        grad_values = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_values = sampled(grad, support.rows, weight, support.latents)
        if ctx.needs_input_grad[1]:
            grad_weight = bag_sum(by_latent.rows, values[by_latent.order], by_latent.offsets, grad)
        return grad_values, grad_weight, None


def decode(
    values: Float[Tensor, "entries"], weight: Float[Tensor, "n_latents d_in"], support: Support
) -> Float[Tensor, "batch d_in"]:
    """Return Σ over each row's entries of value · weight[latent]; values and weight get gradients."""
    return _Decode.apply(values, weight, support)
