"""Do two trainings find the same latents? Mean max cosine both ways, and a one-to-one matching on a sample."""

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from saetool import seeding
from saetool.errors import RequestError
from saetool.evaluation.geometry import cosine_blocks
from saetool.statistics import squarable

MATCHED = 1024
"""Latents of the first dictionary that are matched one to one: the assignment's time grows with their square."""


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
