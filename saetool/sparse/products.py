"""The two differentiable products of a sparse step, and their gradients, all in O(entries · d_in).

`pre_activations`: a_e = x_row(e) · W_latent(e) + b_latent(e) on the entries e of a support.
`decode`: x_hat_row = Σ_e z_e W_latent(e).
Neither makes a [batch, n_latents] tensor, forward or backward. A gradient with respect to a weight can be deferred:
it is then handed to `sink` as an `Outer`, for an optimizer that builds it a block of latents at a time.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from saetool.sparse.gradients import Along, Outer, Term
from saetool.sparse.kernels import bag_sum, decoding_error, sampled
from saetool.sparse.support import Support
from saetool.sparse.threads import sum_in_shares

Sink = list[Term] | None


def latent_sums(values: Float[Tensor, "entries"], support: Support) -> Float[Tensor, "n_latents"]:
    """Return the sum of the entries' values, latent by latent."""
    return values.new_zeros(support.n_latents).index_add_(0, support.latents, values)


def _deliver(term: Term, sink: Sink) -> Tensor | None:
    """Hand the gradient to the sink, or build it now."""
    if sink is None:
        return term.whole()
    sink.append(term)
    return None


def _weighted(weights: Float[Tensor, "n_latents"], rows: Float[Tensor, "n_latents d_in"]) -> Float[Tensor, "d_in"]:
    """Return Σ weights[j] · rows[j]."""
    return sum_in_shares(lambda some: weights[some] @ rows[some], len(rows), rows.device)


class _PreActivations(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, x, center, weight, bias, support, sink):
        ctx.support, ctx.sink = support, sink
        ctx.save_for_backward(x, weight)
        return values.clone()

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        by_latent = ctx.support.by_latent
        grad_bias = latent_sums(grad, ctx.support)
        grad_weight = _deliver(Outer(by_latent.rows, by_latent.there(grad), by_latent.offsets, x), ctx.sink)
        grad_center = -_weighted(grad_bias, weight) if ctx.needs_input_grad[2] else None
        return None, None, grad_center, grad_weight, grad_bias, None, None


def pre_activations(
    values: Float[Tensor, "entries"],
    x: Float[Tensor, "batch d_in"],
    center: Float[Tensor, "d_in"],
    weight: Float[Tensor, "n_latents d_in"],
    bias: Float[Tensor, "n_latents"],
    support: Support,
    sink: Sink = None,
) -> Float[Tensor, "entries"]:
    """Return `values`, the pre-activations that selection already computed, with their gradient.

    `x` is the centered input (`center` already subtracted) and gets no gradient; center, weight and bias do.
    """
    return _PreActivations.apply(values, x, center, weight, bias, support, sink)


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, weight, support, sink):
        ctx.support, ctx.sink = support, sink
        ctx.save_for_backward(values, weight)
        return bag_sum(support.latents, values, support.offsets, weight)

    @staticmethod
    def backward(ctx, grad):
        values, weight = ctx.saved_tensors
        by_latent = ctx.support.by_latent
        grad = grad.contiguous()
        grad_values = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_values = by_latent.back(sampled(weight, by_latent.offsets, grad, by_latent.rows))
        if ctx.needs_input_grad[1]:
            outer = Outer(by_latent.rows, by_latent.there(values), by_latent.offsets, grad)
            grad_weight = _deliver(outer, ctx.sink)
        return grad_values, grad_weight, None, None


def decode(
    values: Float[Tensor, "entries"], weight: Float[Tensor, "n_latents d_in"], support: Support, sink: Sink = None
) -> Float[Tensor, "batch d_in"]:
    """Return Σ over each row's entries of value · weight[latent]; values and weight get gradients."""
    return _Decode.apply(values, weight, support, sink)


class _SquaredError(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, weight, bias, x, support, sink):
        errors, residual, pulls = decoding_error(values, weight, bias, x, support)
        ctx.support, ctx.sink = support, sink
        ctx.save_for_backward(values, residual, pulls)
        ctx.mark_non_differentiable(residual)
        ctx.set_materialize_grads(False)  # else a tensor of zeros is made for it
        return errors.sum(), residual

    @staticmethod
    def backward(ctx, grad, _):
        if grad is None:
            return (None,) * 6
        values, residual, pulls = ctx.saved_tensors
        by_latent, scale = ctx.support.by_latent, -2.0 * grad
        outer = Outer(by_latent.rows, by_latent.there(scale * values), by_latent.offsets, residual)
        grad_weight = _deliver(outer, ctx.sink) if ctx.needs_input_grad[1] else None
        pull = sum_in_shares(lambda some: residual[some].sum(0), len(residual), residual.device)
        return scale * pulls, grad_weight, scale * pull, None, None, None


def squared_error(
    values: Float[Tensor, "entries"],
    weight: Float[Tensor, "n_latents d_in"],
    bias: Float[Tensor, "d_in"],
    x: Float[Tensor, "batch d_in"],
    support: Support,
    sink: Sink = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "batch d_in"]]:
    """Return Σ over the batch of ‖x − x_hat‖², with x_hat = `decode` + bias, and x − x_hat without gradient.

    values, weight and bias get gradients; the decoder's rows are read once for the error and its slope along them.
    """
    return _SquaredError.apply(values, weight, bias, x, support, sink)  # type: ignore[return-value]


class _RowNorms(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, sink):
        norms = torch.linalg.vector_norm(weight, dim=1)
        ctx.sink = sink
        ctx.save_for_backward(weight, norms)
        return norms

    @staticmethod
    def backward(ctx, grad):
        weight, norms = ctx.saved_tensors
        return _deliver(Along(weight, grad / norms.clamp_min(torch.finfo(norms.dtype).tiny)), ctx.sink), None


def row_norms(weight: Float[Tensor, "n_latents d_in"], sink: Sink = None) -> Float[Tensor, "n_latents"]:
    """Return ‖weight[j]‖ for every latent j, with its gradient."""
    return _RowNorms.apply(weight, sink)
