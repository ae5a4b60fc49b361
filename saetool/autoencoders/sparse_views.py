"""A batch's pre-activations in two forms that answer the same questions: all of them, or the active entries only."""

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saetool.sparse.products import Sink, decode, latent_sums, squared_error
from saetool.sparse.support import Support


class View(Protocol):
    """Pre-activations `a` with gradient, and what a loss needs of them."""

    a: Tensor
    rows: int

    def pick(self, parameter: Float[Tensor, "n_latents"]) -> Tensor:
        """Lay a parameter out beside `a`."""
        ...

    def latent_sums(self, values: Tensor) -> Float[Tensor, "n_latents"]:
        """Sum values that stand beside `a` over the batch."""
        ...

    def decode(self, values: Tensor, decoder: Tensor, sink: Sink) -> Float[Tensor, "batch d_in"]:
        """Return values · decoder."""
        ...

    def squared_error(
        self, values: Tensor, decoder: Tensor, bias: Tensor, x: Tensor, sink: Sink
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "batch d_in"]]:
        """Return Σ ‖x − x_hat‖² over the batch, with x_hat = values · decoder + bias, and x − x_hat detached."""
        ...

    def decode_prefixes(
        self, values: Tensor, decoder: Tensor, sink: Sink, prefixes: list[int]
    ) -> Float[Tensor, "prefixes batch d_in"]:
        """Return values · decoder with only the first latents, for every number of them in `prefixes`."""
        ...


def product(x: Float[Tensor, "batch n"], weight: Float[Tensor, "n m"], half: bool) -> Float[Tensor, "batch m"]:
    """Return x · weight in x's own dtype; `half`: of both rounded to bfloat16."""
    return (x.bfloat16() @ weight.bfloat16()).to(x.dtype) if half else x @ weight


class DenseView:
    """Every pre-activation, [batch, n_latents]; `half`: decode in bfloat16."""

    def __init__(self, a: Float[Tensor, "batch n_latents"], half: bool = False):
        self.a, self.rows, self.half = a, len(a), half

    def pick(self, parameter: Tensor) -> Tensor:
        return parameter

    def latent_sums(self, values: Tensor) -> Tensor:
        return values.sum(0)

    def decode(self, values: Tensor, decoder: Tensor, sink: Sink) -> Tensor:
        return product(values, decoder, self.half)

    def squared_error(self, values: Tensor, decoder: Tensor, bias: Tensor, x: Tensor, sink: Sink):
        x_hat = self.decode(values, decoder, sink) + bias
        return nn.functional.mse_loss(x_hat, x, reduction="sum"), x - x_hat.detach()

    def decode_prefixes(self, values: Tensor, decoder: Tensor, sink: Sink, prefixes: list[int]) -> Tensor:
        cuts = zip([0, *prefixes[:-1]], prefixes, strict=True)
        return torch.stack([product(values[:, i:j], decoder[i:j], self.half) for i, j in cuts]).cumsum(0)


class SparseView:
    """The pre-activations on a support, [entries]."""

    def __init__(self, a: Float[Tensor, "entries"], support: Support):
        self.a, self.rows, self.support = a, support.n_rows, support

    def pick(self, parameter: Tensor) -> Tensor:
        return parameter.index_select(0, self.support.latents)

    def latent_sums(self, values: Tensor) -> Tensor:
        return latent_sums(values, self.support)

    def decode(self, values: Tensor, decoder: Tensor, sink: Sink) -> Tensor:
        return decode(values, decoder, self.support, sink)

    def squared_error(self, values: Tensor, decoder: Tensor, bias: Tensor, x: Tensor, sink: Sink):
        return squared_error(values, decoder, bias, x, self.support, sink)

    def decode_prefixes(self, values: Tensor, decoder: Tensor, sink: Sink, prefixes: list[int]) -> Tensor:
        # One decode for all: block p of the latents writes to its own copy of the rows, p · batch + row.
        cuts = torch.tensor(prefixes, device=values.device)
        block = torch.bucketize(self.support.latents, cuts, right=True)
        rows, order = torch.sort(block * self.rows + self.support.rows, stable=True)
        spread = Support(rows, self.support.latents[order], self.rows * len(prefixes), self.support.n_latents)
        parts = decode(values[order], decoder, spread, sink)
        return parts.view(len(prefixes), self.rows, -1).cumsum(0)
