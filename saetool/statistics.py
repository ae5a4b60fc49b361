"""Moments of rows in float64, merged and split without losing precision (Chan, Golub & LeVeque 1979)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Num
from torch import Tensor

_SERIAL = 32768
"""Values that torch handles in one thread (its grain size): pieces of so many give the same bits at any thread count,
stay in a core's cache, and leave the other cores to whoever computes beside."""

_GPU_PIECE = 1 << 26
"""Values: half a gigabyte in float64."""


def pieces(rows: Float[Tensor, "rows d_in"]) -> tuple[Tensor, ...]:
    """Return `rows`, in their order, in pieces that torch sums in one thread each; on a GPU, in large ones."""
    if len(rows) == 0:
        return ()
    values = _SERIAL if rows.device.type == "cpu" else _GPU_PIECE
    return rows.split(max(1, values // max(rows.shape[1], 1)))


_SQUARED = 1e15
"""Rows of a hundred million values as large, or as small, as this (or its inverse) have a norm in float32."""


def squarable(values: Tensor) -> Tensor:
    """Return values whose squares and their sums neither overflow nor vanish: in float32, in float64 where needed."""
    largest = float(values.abs().max()) if values.numel() else 0.0
    return values.float() if largest == 0 or 1 / _SQUARED <= largest <= _SQUARED else values.double()


def unit_rows(rows: Num[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Return the rows at unit length, in float32, however long each of them is; rows of length 0 stay 0."""
    unit = rows.float()
    unit = unit / unit.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    largest = rows.abs().amax(dim=-1)
    odd = ((largest > _SQUARED) | (largest < 1 / _SQUARED)) & (largest > 0)
    if odd.any():
        wide = rows[odd].double()
        unit[odd] = (wide / wide.norm(dim=-1, keepdim=True)).float()
    return unit


@dataclass(frozen=True)
class Statistics:
    """Moments of some rows, in float64: count, mean [d_in], variance [d_in] (divided by the count)."""

    count: int
    mean: Float[Tensor, "d_in"]
    variance: Float[Tensor, "d_in"]

    @classmethod
    def none(cls, d_in: int) -> "Statistics":
        """Return the moments of no rows."""
        return cls(0, torch.zeros(d_in, dtype=torch.float64), torch.zeros(d_in, dtype=torch.float64))

    @classmethod
    def of(cls, rows: Float[Tensor, "rows d_in"]) -> "Statistics":
        """Return the moments of `rows`, a piece at a time in their order: the same bits wherever they are computed."""
        total = cls.none(rows.shape[1])
        for piece in pieces(rows):
            wide = piece.to(torch.float64, copy=True)  # float64 rows must not be changed in place
            mean = wide.mean(0)
            total = total.merge(cls(len(piece), mean.cpu(), wide.sub_(mean).square_().mean(0).cpu()))
        return total

    def merge(self, other: "Statistics") -> "Statistics":
        """Return the moments of both sets of rows together."""
        count = self.count + other.count
        if other.count == 0 or self.count == 0:
            return self if other.count == 0 else other
        share = other.count / count
        shift = other.mean - self.mean
        variance = torch.lerp(self.variance, other.variance, share) + shift.square() * (share * (1 - share))
        return Statistics(count, self.mean + shift * share, variance)

    def without(self, part: "Statistics") -> "Statistics":
        """Return the moments of these rows without a part of them: the inverse of `merge`."""
        count = self.count - part.count
        if part.count == 0 or count == 0:
            return self if part.count == 0 else Statistics.none(self.mean.numel())
        mean = self.mean + (self.mean - part.mean) * (part.count / count)
        share = part.count / self.count
        spread = (part.mean - mean).square() * (share * (1 - share))
        variance = (self.variance - part.variance * share - spread) / (1 - share)
        return Statistics(count, mean, variance.clamp(min=0))
