"""How close the latents' decoder directions lie to each other, computed in blocks of rows."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from saetool.statistics import squarable, unit_rows

BLOCK = 1024
"""Rows of the cosine matrix held at once: 100 MB at 24,576 latents."""


def cosine_blocks(
    a: Float[Tensor, "n d_in"], b: Float[Tensor, "m d_in"], block: int = BLOCK
) -> Iterator[tuple[int, Float[Tensor, "block m"]]]:
    """Yield (first row, cosines of a block of rows of `a` with every row of `b`)."""
    a, b = unit_rows(a), unit_rows(b)
    for start in range(0, a.shape[0], block):
        yield start, a[start : start + block] @ b.T


def coherence(directions: Float[Tensor, "n_latents d_in"], block: int = BLOCK) -> dict | None:
    """Return the decoder's coherence: of each latent's largest |cosine| to another, maximum, mean and quantiles.

    `rms` is the root mean square cosine of all pairs; `welch` its lower bound √((m − d) / (d (m − 1))) for m > d
    unit vectors (Welch 1974). Directions of length 0 are left out; fewer than two give None.
    """
    directions = directions[squarable(directions).norm(dim=-1) > 0]
    n, d = directions.shape
    if n < 2:
        return None
    nearest, square = torch.empty(n), 0.0
    for start, cosines in cosine_blocks(directions, directions, block):
        rows = torch.arange(cosines.shape[0])
        cosines[rows, start + rows] = 0
        nearest[start : start + cosines.shape[0]] = cosines.abs().amax(-1)
        square += float(cosines.double().square().sum())
    at = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    return {
        "latents": n,
        "max": float(nearest.max()),
        "mean": float(nearest.double().mean()),
        "quantiles": dict(zip(["0.05", "0.25", "0.5", "0.75", "0.95"], nearest.quantile(at).tolist(), strict=True)),
        "share_above_0.9": float((nearest > 0.9).double().mean()),
        "rms": (square / (n * (n - 1))) ** 0.5,
        "welch": ((n - d) / (d * (n - 1))) ** 0.5 if n > d else 0.0,
    }
