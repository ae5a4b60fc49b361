"""Corruptions C(x̃|x) for denoising (Vincent et al. 2008, 2010): gaussian, masking, salt and pepper, patch masking.

They act in the model's units, so that "zero" is the mean of the data after `normalize: center_scale`.
Entries they do not choose stay equal bit for bit.
"""

from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from saetool.autoencoders.base import Normalizer
from saetool.errors import RequestError
from saetool.seeding import normal_like, uniform_like
from saetool.settings import Settings

Share = Annotated[float, Field(gt=0, lt=1)]


class GaussianNoise(Settings):
    """x̃ = x + N(0, σ²)."""

    kind: Literal["gaussian"] = "gaussian"
    sigma: PositiveFloat


class Masking(Settings):
    """Each component is 0 with probability `share`; `exact`: exactly round(share · d_in) of a row. No rescaling."""

    kind: Literal["masking"] = "masking"
    share: Share
    exact: bool = False


class SaltAndPepper(Settings):
    """Each component is `bounds[0]` or `bounds[1]`, raw values, with probability `share` / 2 each."""

    kind: Literal["salt_pepper"] = "salt_pepper"
    share: Share
    bounds: tuple[float, float] | None = None
    """Of the raw data; null: [0, 1], where it must lie then."""

    @model_validator(mode="after")
    def _ascending(self) -> "SaltAndPepper":
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds must be [low, high] with low < high, not {list(self.bounds)}")
        return self


class PatchMasking(Settings):
    """A row is a grid of equal cells, row-major; round(share · squares) squares of side × side cells are 0."""

    kind: Literal["patches"] = "patches"
    share: Share
    grid: tuple[PositiveInt, PositiveInt]
    """Rows and columns of cells: 28 × 28 for MNIST's pixels, 16 × 16 for the concatenated tokens of a ViT."""
    side: PositiveInt = 1

    @model_validator(mode="after")
    def _whole_squares(self) -> "PatchMasking":
        if self.grid[0] % self.side or self.grid[1] % self.side:
            raise ValueError(f"side: {self.side} does not divide the grid {self.grid[0]} × {self.grid[1]}")
        return self


Corruption = Annotated[GaussianNoise | Masking | SaltAndPepper | PatchMasking, Field(discriminator="kind")]


def require_grid(corruption: Corruption, d_in: int) -> None:
    """Raise RequestError where rows of width `d_in` are not such a grid, or an exact share of them is none or all."""
    if corruption.kind == "patches" and d_in % (corruption.grid[0] * corruption.grid[1]):
        raise RequestError(
            f"corruption.grid: {corruption.grid[0]} × {corruption.grid[1]} cells do not divide inputs of width {d_in}: "
            "give the grid of the flattened pixels or tokens"
        )
    if corruption.kind == "patches":
        parts, what = (corruption.grid[0] // corruption.side) * (corruption.grid[1] // corruption.side), "squares"
    elif corruption.kind == "masking" and corruption.exact:
        parts, what = d_in, "entries"
    else:
        return
    if not 0 < (chosen := round(corruption.share * parts)) < parts:
        raise RequestError(
            f"corruption.share: {corruption.share:g} of {parts} {what} is {'none' if chosen == 0 else 'all'} of them: "
            f"give between {1 / parts:.3g} and {1 - 1 / parts:.3g}"
        )


def corrupt(
    corruption: Corruption,
    x: Float[Tensor, "batch d"],
    generator: torch.Generator,
    normalizer: Normalizer | None = None,
) -> Float[Tensor, "batch d"]:
    """Return a corrupted copy of `x`; the noise is fresh at every call and comes from `generator`.

    `normalizer` made `x` from raw values, and so makes salt and pepper; None: they are values of `x` itself.
    """
    if corruption.kind == "gaussian":
        return x + corruption.sigma * normal_like(x, generator)
    if corruption.kind == "masking":
        noise = uniform_like(x, generator)
        chosen = _lowest(noise, corruption.share) if corruption.exact else noise < corruption.share
        return x.masked_fill(chosen, 0)
    if corruption.kind == "salt_pepper":
        bounds = x.new_tensor(corruption.bounds or (0.0, 1.0))[:, None].expand(2, x.shape[1])
        low, high = bounds if normalizer is None else normalizer(bounds)
        noise = uniform_like(x, generator)
        x = torch.where(noise < corruption.share / 2, low, x)
        return torch.where(noise >= 1 - corruption.share / 2, high, x)
    return _mask_patches(corruption, x, generator)


def _lowest(noise: Float[Tensor, "batch n"], share: float) -> Bool[Tensor, "batch n"]:
    """Choose exactly round(share · n) entries of each row: a random order, cut."""
    return noise.argsort(dim=1) < round(share * noise.shape[1])


def _mask_patches(
    patches: PatchMasking, x: Float[Tensor, "batch d"], generator: torch.Generator
) -> Float[Tensor, "batch d"]:
    batch, side = x.shape[0], patches.side
    rows, columns = patches.grid[0] // side, patches.grid[1] // side
    squares = uniform_like(x[:, :1].expand(batch, rows * columns), generator)
    chosen = _lowest(squares, patches.share).view(batch, rows, 1, columns, 1, 1)
    cells = x.view(batch, rows, side, columns, side, -1)
    return cells.masked_fill(chosen, 0).view_as(x)
