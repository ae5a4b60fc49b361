"""Gradients of a [n_latents, d_in] weight kept as a recipe, for an optimizer that builds them where it uses them.

The optimizer then works on a block of latents while it is in cache, and the whole gradient need not be in memory.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from saetool.sparse.codes import Support

if TYPE_CHECKING:
    from saetool.sparse.backends import Backend


@dataclass(frozen=True)
class Outer:
    """Row j is Σ over the latent's entries e of weights[e] · table[row of e]; weights stand in row order."""

    support: Support
    weights: Float[Tensor, "entries"]
    table: Float[Tensor, "batch d_in"]

    def block(self, start: int, stop: int, backend: "Backend") -> Float[Tensor, "block d_in"]:
        """Return the rows `start` to `stop` of this summand."""
        return backend.latent_gradient(self.support, self.weights, self.table, start, stop)


@dataclass(frozen=True)
class Along:
    """Row j is scale[j] · weight[j]."""

    weight: Float[Tensor, "n_latents d_in"]
    scale: Float[Tensor, "n_latents"]

    def block(self, start: int, stop: int, backend: "Backend") -> Float[Tensor, "block d_in"]:
        """Return the rows `start` to `stop` of this summand."""
        return self.weight[start:stop] * self.scale[start:stop, None]


Term = Outer | Along
"""One summand of a weight's gradient."""


@dataclass
class DeferredGradient:
    """The gradient of one weight as the sum of its terms; `dense`, where autograd built a part, is added."""

    terms: list[Term] = field(default_factory=list)
    dense: Float[Tensor, "n_latents *d_in"] | None = None

    def block(self, start: int, stop: int, backend: "Backend") -> Float[Tensor, "block d_in"]:
        """Return the rows `start` to `stop`, a tensor of their own unless all is `dense`."""
        total = None if self.dense is None else self.dense[start:stop]
        for term in self.terms:
            part = term.block(start, stop, backend)
            total = part if total is None else total + part
        assert total is not None  # an optimizer asks for what there is
        return total

    @property
    def only_outer(self) -> Outer | None:
        """The one term, where the gradient is one `Outer`."""
        match self.terms, self.dense:
            case [Outer() as outer], None:
                return outer
        return None
