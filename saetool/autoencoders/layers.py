"""Fully connected layers in a chain, and the errors of a reconstruction: squared and cross-entropy.

Errors are summed over features and averaged over the batch. A chain's weights are its own or another's, transposed.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saetool.errors import RequestError

Error = Literal["mse", "cross_entropy"]

CONVENTIONS = {
    "mse": "reconstruction error: squared, summed over d_in, mean over the batch",
    "cross_entropy": "reconstruction error: cross-entropy in nats, summed over d_in, mean over the batch; "
    "its minimum is the entropy of x, the excess over it is reported",
}

# Rows that `initialize` looks at before the first step, to refuse unfit data early.
CHECKED_ROWS = 4096

Activation = Literal["identity", "relu", "sigmoid", "tanh"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda a: a,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}

# The derivative of each activation as a function of its value.
SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": torch.ones_like,
    "relu": lambda z: (z > 0).to(z.dtype),
    "sigmoid": lambda z: z * (1 - z),
    "tanh": lambda z: 1 - z.square(),
}


class Chain(nn.Module):
    """h ↦ s_L(W_L … s_1(W_1 h + b_1) … + b_L), with W_l of shape [widths[l], widths[l − 1]].

    A chain built with `own_weights=False` holds biases only and is given its weights at every call.
    """

    def __init__(self, widths: Sequence[int], activations: Sequence[Activation], own_weights: bool = True):
        super().__init__()
        self.activations = tuple(activations)
        shapes = [(out, into) for into, out in pairwise(widths)]
        self.weights = nn.ParameterList([torch.empty(shape) for shape in shapes] if own_weights else [])
        self.biases = nn.ParameterList([torch.zeros(out) for out, _ in shapes])

    def __len__(self) -> int:
        return len(self.biases)

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Draw the weights anew (Glorot & Bengio 2010; He et al. 2015 before a ReLU) and zero the biases."""
        for weight, activation in zip(self.weights, self.activations, strict=False):
            if activation == "relu":
                nn.init.kaiming_uniform_(weight, nonlinearity="relu", generator=generator)
            else:
                nn.init.xavier_uniform_(weight, generator=generator)
        for bias in self.biases:
            bias.zero_()

    @torch.no_grad()
    def center(self, mean: Float[Tensor, "width_out"]) -> None:
        """Set the last bias so that zeros before it come out as `mean`, where the last activation can say it."""
        if self.activations[-1] == "identity":
            self.biases[-1].copy_(mean)
        elif self.activations[-1] == "sigmoid":
            # A component that is always 0 or 1 would have an infinite logit.
            self.biases[-1].copy_(mean.clamp(0.01, 0.99).logit())

    def forward(
        self,
        h: Float[Tensor, "*batch width"],
        weights: Sequence[Tensor] | None = None,
        start: int = 0,
        stop: int | None = None,
        logits: bool = False,
    ) -> Float[Tensor, "*batch width_out"]:
        """Apply layers start … stop − 1 (all by default); for `logits` without the last one's activation."""
        weights = list(self.weights) if weights is None else weights
        stop = len(self) if stop is None else stop
        for index in range(start, stop):
            h = nn.functional.linear(h, weights[index], self.biases[index])
            if index < stop - 1 or not logits:
                h = ACTIVATIONS[self.activations[index]](h)
        return h


def squared_error(x_hat: Float[Tensor, "batch d"], x: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
    """Return ‖x − x̂‖², averaged over the batch."""
    return (x_hat - x).square().sum(-1).mean()


def bernoulli_error(logits: Float[Tensor, "batch d"], x: Float[Tensor, "batch d"]) -> Float[Tensor, ""]:
    """Return −Σ[x ln x̂ + (1 − x) ln(1 − x̂)], x̂ = sigmoid(logits), averaged over the batch (Goodfellow et al. 2016)."""
    summed = nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
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
