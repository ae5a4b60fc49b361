"""The differentiable functions of a sparse step, all in O(entries · d_in).

    pre_activations    a_e = x_row(e) · W_latent(e) + b_latent(e) on the entries e of a support
    decode             x_hat_row = Σ_e z_e W_latent(e)
    squared_error      Σ ‖x − x_hat − b‖², the decoder's rows read once for it and its slope along them
    row_norms, gather, latent_sums

None makes a [batch, n_latents] tensor, forward or backward. The gradient of a weight can be deferred: it is then handed
to a `DeferredGradient` as a recipe, for an optimizer that builds it a block of latents at a time.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from saetool.sparse.backends import Backend, backend_for
from saetool.sparse.codes import Support
from saetool.sparse.gradients import Along, DeferredGradient, Outer, Term
from saetool.sparse.weight import Weight


def _emit(term: Term, n_latents: int, deferred: DeferredGradient | None, backend: Backend) -> Tensor | None:
    """Hand the gradient of a weight of so many rows to an optimizer, or build it now."""
    if deferred is None:
        return term.block(0, n_latents, backend)
    deferred.terms.append(term)
    return None


class _PreActivations(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, x, center, weight, bias, support, deferred):
        ctx.support, ctx.deferred = support, deferred
        ctx.save_for_backward(x, weight)
        return values.view_as(values)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        backend = backend_for(weight)
        grad_bias = backend.latent_sums(ctx.support, grad)
        grad_weight = _emit(Outer(ctx.support, grad, x), len(weight), ctx.deferred, backend)
        grad_center = -backend.column_sums(weight, grad_bias) if ctx.needs_input_grad[2] else None
        return None, None, grad_center, grad_weight, grad_bias, None, None


def pre_activations(
    values: Float[Tensor, "entries"],
    x: Float[Tensor, "batch d_in"],
    center: Float[Tensor, "d_in"],
    weight: Float[Tensor, "n_latents d_in"],
    bias: Float[Tensor, "n_latents"],
    support: Support,
    deferred: DeferredGradient | None = None,
) -> Float[Tensor, "entries"]:
    """Return `values`, the pre-activations that selection already computed, with their gradient.

    `x` is the centered input (`center` already subtracted) and gets no gradient; center, weight and bias do.
    """
    return _PreActivations.apply(values, x, center, weight, bias, support, deferred)


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, tensor, weight, support, deferred):
        ctx.weight, ctx.support, ctx.deferred = weight, support, deferred
        ctx.save_for_backward(values)
        return backend_for(tensor).decode(support, values, weight)

    @staticmethod
    def backward(ctx, grad):
        (values,) = ctx.saved_tensors
        grad, backend = grad.contiguous(), backend_for(grad)
        grad_values = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_values = backend.sampled_products(ctx.support, ctx.weight, grad)
        if ctx.needs_input_grad[1]:
            grad_weight = _emit(Outer(ctx.support, values, grad), ctx.support.n_latents, ctx.deferred, backend)
        return grad_values, grad_weight, None, None, None


def decode(
    values: Float[Tensor, "entries"], weight: Weight, support: Support, deferred: DeferredGradient | None = None
) -> Float[Tensor, "batch d_in"]:
    """Return Σ over each row's entries of value · weight[latent]; values and weight get gradients."""
    return _Decode.apply(values, weight.tensor, weight, support, deferred)


class _SquaredError(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, tensor, bias, weight, x, support, deferred):
        errors, residual, slopes = backend_for(tensor).squared_error(support, values, weight, bias, x)
        ctx.support, ctx.deferred = support, deferred
        ctx.save_for_backward(values, residual, slopes)
        ctx.mark_non_differentiable(residual, errors)
        ctx.set_materialize_grads(False)  # else a tensor of zeros is made for it
        return errors.sum(), errors, residual

    @staticmethod
    def backward(ctx, grad, *_):
        if grad is None:
            return (None,) * 7
        values, residual, slopes = ctx.saved_tensors
        scale, grad_weight, backend = -2.0 * grad, None, backend_for(slopes)
        if ctx.needs_input_grad[1]:
            term = Outer(ctx.support, scale * values, residual)
            grad_weight = _emit(term, ctx.support.n_latents, ctx.deferred, backend)
        pull = backend.column_sums(residual)
        return scale * slopes, grad_weight, scale * pull, None, None, None, None


def squared_error(
    values: Float[Tensor, "entries"],
    weight: Weight,
    bias: Float[Tensor, "d_in"],
    x: Float[Tensor, "batch d_in"],
    support: Support,
    deferred: DeferredGradient | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "batch"], Float[Tensor, "batch d_in"]]:
    """Return Σ over the batch of ‖r‖² with r = x − `decode` − bias, and without gradient each row's ‖r‖² and r.

    values, weight and bias get gradients; the decoder's rows are read once for the error and its slope along them.
    """
    return _SquaredError.apply(values, weight.tensor, bias, weight, x, support, deferred)  # type: ignore[return-value]


class _RowNorms(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, deferred):
        norms = torch.linalg.vector_norm(weight, dim=1)
        ctx.deferred = deferred
        ctx.save_for_backward(weight, norms)
        return norms

    @staticmethod
    def backward(ctx, grad):
        weight, norms = ctx.saved_tensors
        term = Along(weight, grad / norms.clamp_min(torch.finfo(norms.dtype).tiny))
        return _emit(term, len(weight), ctx.deferred, backend_for(weight)), None


def row_norms(
    weight: Float[Tensor, "n_latents d_in"], deferred: DeferredGradient | None = None
) -> Float[Tensor, "n_latents"]:
    """Return ‖weight[j]‖ for every latent j, with its gradient."""
    return _RowNorms.apply(weight, deferred)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, parameter, support):
        ctx.support = support
        return parameter.index_select(0, support.latents)

    @staticmethod
    def backward(ctx, grad):
        return backend_for(grad).latent_sums(ctx.support, grad), None


def gather(parameter: Float[Tensor, "n_latents"], support: Support) -> Float[Tensor, "entries"]:
    """Return the parameter of every entry's latent; its gradient is summed in the same order every time."""
    return _Gather.apply(parameter, support)


class _LatentSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, support):
        ctx.support = support
        return backend_for(values).latent_sums(support, values)

    @staticmethod
    def backward(ctx, grad):
        return grad.index_select(0, ctx.support.latents), None


def latent_sums(values: Float[Tensor, "entries"], support: Support) -> Float[Tensor, "n_latents"]:
    """Return the sum of the entries' values, latent by latent."""
    return _LatentSums.apply(values, support)


def sampled_products(
    weight: Float[Tensor, "n_latents d_in"], rows: Float[Tensor, "batch d_in"], support: Support
) -> Float[Tensor, "entries"]:
    """Return weight[latent] · rows[row] for every entry, without gradient."""
    return backend_for(weight, rows).sampled_products(support, Weight(weight), rows)
