"""Reconstruction errors: squared and cross-entropy, summed over features, averaged over the batch."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from saetool.errors import RequestError

Error = Literal["mse", "cross_entropy"]

CONVENTIONS = {
    "mse": "reconstruction error: squared, summed over d_in, mean over the batch",
    "cross_entropy": "reconstruction error: cross-entropy in nats, summed over d_in, mean over the batch; "
    "its minimum is the entropy of x, the excess over it is reported",
}


def squared_error(x_hat: Float[Tensor, "batch d"], x: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
    """Return ‖x − x̂‖², averaged over the batch."""
    return (x_hat - x).square().sum(-1).mean()


def bernoulli_error(logits: Float[Tensor, "batch d"], x: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
    """Return −Σ[x ln x̂ + (1 − x) ln(1 − x̂)], x̂ = sigmoid(logits), averaged over the batch (Goodfellow et al. 2016)."""
    summed = torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    return summed / x.shape[0]


def bernoulli_entropy(x: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
    """Return −Σ[x ln x + (1 − x) ln(1 − x)], averaged over the batch: the least cross-entropy that x allows."""
    return (torch.special.entr(x) + torch.special.entr(1 - x)).sum(-1).mean()


def require_unit_interval(x: Float[Tensor, "batch d"], asked: str, way_out: str) -> None:
    """Refuse rows outside [0, 1] (or not finite): `asked` names what needs them, `way_out` what to do instead."""
    # One synchronization a step on a GPU, for the losses that need it: a negative cross-entropy would go unnoticed.
    if not bool(((x >= 0) & (x <= 1)).all()):
        low, high = float(x.min()), float(x.max())
        raise RequestError(
            f"{asked} needs every input in [0, 1], and these lie between {low:.4g} and {high:.4g}: {way_out}"
        )
