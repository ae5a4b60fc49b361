"""A batch's pre-activations in two forms that answer the same questions: all of them, or the active entries only."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saetool.autoencoders.sparse_activations import SparseActivation
from saetool.sparse import ops
from saetool.sparse.backends import Search
from saetool.sparse.codes import Support
from saetool.sparse.gradients import DeferredGradient
from saetool.sparse.weight import Weight

Error = tuple[Float[Tensor, ""], Float[Tensor, "batch"], Float[Tensor, "batch d_in"]]
"""Σ ‖r‖² over the batch; without gradient each row's ‖r‖², and r = x − x_hat."""


class Selected(NamedTuple):
    """A batch in the model's units and as the encoder sees it, its entries and the outputs on them.

    `smallest`: the smallest output that was kept, where the activation remembers it.
    """

    x: Float[Tensor, "batch d_in"]
    centered: Float[Tensor, "batch d_in"]
    support: Support
    values: Float[Tensor, "entries"]
    smallest: Tensor | None


@dataclass(frozen=True)
class Begun:
    """A batch in the model's units and as the encoder sees it, the search for its entries, and who chooses of them."""

    x: Float[Tensor, "batch d_in"]
    centered: Float[Tensor, "batch d_in"]
    search: Search
    activation: SparseActivation

    def found(self, numbers: list[int], room: int) -> Selected:
        """Return what the search finds, with room for so many entries."""
        return Selected(self.x, self.centered, *self.activation.chosen(self.search.found(numbers, room), len(self.x)))


def product(x: Float[Tensor, "batch n"], weight: Float[Tensor, "n m"], half: bool) -> Float[Tensor, "batch m"]:
    """Return x · weight in x's own dtype; `half`: of both rounded to bfloat16."""
    return (x.bfloat16() @ weight.bfloat16()).to(x.dtype) if half else x @ weight


class DenseView:
    """Every pre-activation `a` with gradient, [batch, n_latents], and what a loss needs of them.

    `half`: decode in bfloat16.
    """

    def __init__(self, a: Float[Tensor, "batch n_latents"], half: bool = False):
        self.a, self.rows, self.half = a, len(a), half

    def gather(self, parameter: Float[Tensor, "n_latents"]) -> Tensor:
        """Lay a parameter out beside `a`."""
        return parameter

    def latent_sums(self, values: Tensor) -> Float[Tensor, "n_latents"]:
        """Sum values that stand beside `a` over the batch."""
        return values.sum(0)

    def decode(self, values: Tensor, W_dec: Weight, deferred: DeferredGradient | None) -> Float[Tensor, "batch d_in"]:
        """Return values · decoder."""
        return product(values, W_dec.tensor, self.half)

    def squared_error(self, values: Tensor, W_dec: Weight, b_dec: Tensor, x: Tensor, deferred) -> Error:
        """Return the error of x_hat = values · decoder + bias."""
        x_hat = self.decode(values, W_dec, deferred) + b_dec
        residual = x - x_hat.detach()
        return nn.functional.mse_loss(x_hat, x, reduction="sum"), residual.square().sum(1), residual

    def decode_prefixes(self, values: Tensor, W_dec: Weight, deferred, prefixes: list[int]) -> Tensor:
        """Return values · decoder with only the first latents, for every number of them in `prefixes`, stacked."""
        cuts = zip([0, *prefixes[:-1]], prefixes, strict=True)
        return torch.stack([product(values[:, i:j], W_dec.tensor[i:j], self.half) for i, j in cuts]).cumsum(0)


class SparseView:
    """The pre-activations on a support, [entries]; it answers what a `DenseView` does."""

    def __init__(self, a: Float[Tensor, "entries"], support: Support):
        self.a, self.rows, self.support = a, support.n_rows, support

    def gather(self, parameter: Tensor) -> Tensor:
        return ops.gather(parameter, self.support)

    def latent_sums(self, values: Tensor) -> Tensor:
        return ops.latent_sums(values, self.support)

    def decode(self, values: Tensor, W_dec: Weight, deferred: DeferredGradient | None) -> Tensor:
        return ops.decode(values, W_dec, self.support, deferred)

    def squared_error(self, values: Tensor, W_dec: Weight, b_dec: Tensor, x: Tensor, deferred) -> Error:
        return ops.squared_error(values, W_dec, b_dec, x, self.support, deferred)

    def decode_prefixes(self, values: Tensor, W_dec: Weight, deferred, prefixes: list[int]) -> Tensor:
        # One decode for all: block p of the latents writes to its own copy of the rows, p · batch + row.
        block = sum((self.support.latents >= first).long() for first in prefixes[:-1])
        rows, order = torch.sort(block * self.rows + self.support.rows, stable=True)
        latents, n_rows = self.support.latents[order], self.rows * len(prefixes)
        keys = None if self.support.keys is None else self.support.keys[order]
        spread = Support.from_rows(rows, latents, n_rows, self.support.n_latents, keys)
        parts = ops.decode(values[order], W_dec, spread, deferred)
        return parts.view(len(prefixes), self.rows, -1).cumsum(0)


View = DenseView | SparseView
