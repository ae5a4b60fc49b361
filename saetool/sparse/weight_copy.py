"""A coarser copy of an encoder's weight that follows it: what the two kinds, bfloat16 and int8, share."""

from typing import Self

from jaxtyping import Float
from torch import Tensor

ROUNDING = 2.0**-23
"""Twice float32's unit roundoff, for the order in which a matrix product adds its terms."""


class WeightCopy:
    """A copy of a weight [n_latents, d_in]; knows of which state of it."""

    def __init__(self, weight: Tensor):
        self.n_latents, self.d_in = weight.shape
        self.device = weight.device
        self._version: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """The copied weight's shape: [n_latents, d_in]."""
        return self.n_latents, self.d_in

    def refresh(self, weight: Float[Tensor, "n_latents d_in"], start: int, stop: int) -> None:
        """Copy the rows `start` to `stop`."""
        raise NotImplementedError

    def mark_current(self, weight: Tensor) -> None:
        """Say that every row was copied since `weight` last changed."""
        self._version = (weight.data_ptr(), weight._version)

    @classmethod
    def of(cls, weight: Tensor, known: Self | None) -> Self:
        """Return `known` where it still is a copy of `weight`, else a fresh copy."""
        if known is not None and known._version == (weight.data_ptr(), weight._version):
            return known
        fits = known is not None and known.device == weight.device and known.shape == weight.shape
        copy = known if known is not None and fits else cls(weight.detach())
        copy.refresh(weight.detach(), 0, weight.shape[0])
        copy.mark_current(weight)
        return copy
