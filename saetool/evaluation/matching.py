"""Directions and their cosines: how close one decoder's lie to each other, and whether two trainings find the same ones
(mean max cosine both ways, and a one-to-one matching on a sample)."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from saetool import seeding
from saetool.errors import RequestError
from saetool.statistics import squarable, unit_rows

BLOCK = 1024
"""Rows of the cosine matrix held at once: 100 MB at 24,576 latents."""
MATCHED = 1024
"""Latents of the first dictionary that are matched one to one: the assignment's time grows with their square."""


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


def stability(a: Float[Tensor, "n d_in"], b: Float[Tensor, "m d_in"], seed: int = 0, sample: int = MATCHED) -> dict:
    """Compare two dictionaries' decoder directions by cosine (signed: a latent has a direction, not an axis).

    Returns the mean over a's latents of the largest cosine in b and the reverse, the shares above .7 and .9, and
    the mean cosine of the best one-to-one matching (Hungarian; Paulo & Belrose 2025, 2501.16615) of a seeded sample
    of a's latents to all of b's; `chance` is the same to as many random directions as b has. Raises RequestError when
    the two live in spaces of different width.
    """
    if a.shape[1] != b.shape[1]:
        raise RequestError(
            f"two autoencoders of different input widths cannot be compared: {a.shape[1]} and {b.shape[1]}; "
            "compare autoencoders trained on the same site"
        )
    a, b = a[squarable(a).norm(dim=-1) > 0], b[squarable(b).norm(dim=-1) > 0]
    if not len(a) or not len(b):
        raise RequestError("an autoencoder without decoder directions cannot be compared: every direction has length 0")
    generator = seeding.generator(seed, "stability")
    order = torch.randperm(len(a), generator=generator)[: min(sample, len(b))]
    random = torch.randn(b.shape, generator=generator)
    forward, backward = _nearest(a, b)
    return {
        "latents": [len(a), len(b)],
        "forward": _summary(forward),
        "backward": _summary(backward),
        "matched": {"sample": len(order)} | _summary(_matched(a[order], b)),
        "chance": {
            "forward": _summary(_nearest(a, random)[0]),
            "matched": _summary(_matched(a[order], random)),
        },
    }


def _nearest(a: Float[Tensor, "n d_in"], b: Float[Tensor, "m d_in"]) -> tuple[Tensor, Tensor]:
    """Return the largest cosine of each of a's directions to one of b's, and the reverse."""
    forward, backward = torch.empty(len(a)), torch.full((len(b),), -2.0)
    for start, cosines in cosine_blocks(a, b):
        forward[start : start + len(cosines)] = cosines.amax(-1)
        backward = torch.maximum(backward, cosines.amax(0))
    return forward, backward


def _summary(nearest: Float[Tensor, "n"]) -> dict:
    return {
        "mean_max_cosine": float(nearest.double().mean()),
        "share_above_0.7": float((nearest > 0.7).double().mean()),
        "share_above_0.9": float((nearest > 0.9).double().mean()),
    }


def _matched(a: Float[Tensor, "n d_in"], b: Float[Tensor, "m d_in"]) -> Float[Tensor, "n"]:
    """Return the cosines of the best assignment of each of a's directions to another one of b's."""
    cosines = torch.cat([block for _, block in cosine_blocks(a, b)])
    rows, columns = linear_sum_assignment(cosines.numpy(), maximize=True)
    return cosines[rows, columns]
