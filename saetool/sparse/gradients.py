"""Gradients of a [n_latents, d_in] weight that are kept as a recipe and built a block of latents at a time.

The optimizer then works on a block while it is in cache, and the whole gradient is never in memory.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saetool.sparse.kernels import bag_sum


class Term(Protocol):
    """One summand of a weight's gradient."""

    def block(self, start: int, stop: int) -> Float[Tensor, "block d_in"]:
        """Return the rows `start` to `stop` of this summand."""
        ...

    def whole(self) -> Float[Tensor, "n_latents d_in"]:
        """Return all rows."""
        ...


@dataclass(frozen=True)
class Outer:
    """Row j is Σ over the latent's entries e of weights[e] · table[rows[e]]."""

    rows: Int[Tensor, "entries"]
    weights: Float[Tensor, "entries"]
    offsets: Int[Tensor, "n_latents_plus_one"]
    table: Float[Tensor, "batch d_in"]

    @cached_property
    def _cuts(self) -> list[int]:
        # On CUDA this waits for the device, once a step.
        return self.offsets.tolist()

    def block(self, start: int, stop: int) -> Float[Tensor, "block d_in"]:
        """Return the rows `start` to `stop`."""
        first, last = self._cuts[start], self._cuts[stop]
        offsets = self.offsets[start : stop + 1] - first
        return bag_sum(self.rows[first:last], self.weights[first:last], offsets, self.table)

    def whole(self) -> Float[Tensor, "n_latents d_in"]:
        """Return all rows."""
        return bag_sum(self.rows, self.weights, self.offsets, self.table)


@dataclass(frozen=True)
class Along:
    """Row j is scale[j] · weight[j]."""

    weight: Float[Tensor, "n_latents d_in"]
    scale: Float[Tensor, "n_latents"]

    def block(self, start: int, stop: int) -> Float[Tensor, "block d_in"]:
        """Return the rows `start` to `stop`."""
        return self.weight[start:stop] * self.scale[start:stop, None]

    def whole(self) -> Float[Tensor, "n_latents d_in"]:
        """Return all rows."""
        return torch.mul(self.weight, self.scale[:, None])
