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
    of a's latents to all of b's. Raises RequestError when the two live in spaces of different width.
    """
    if a.shape[1] != b.shape[1]:
        raise RequestError(
            f"two autoencoders of different input widths cannot be compared: {a.shape[1]} and {b.shape[1]}; "
            "compare autoencoders trained on the same site"
        )
    a, b = a[squarable(a).norm(dim=-1) > 0], b[squarable(b).norm(dim=-1) > 0]
    if not len(a) or not len(b):
        raise RequestError("an autoencoder without decoder directions cannot be compared: every direction has length 0")
    forward, backward = torch.empty(len(a)), torch.full((len(b),), -2.0)
    for start, cosines in cosine_blocks(a, b):
        forward[start : start + len(cosines)] = cosines.amax(-1)
        backward = torch.maximum(backward, cosines.amax(0))
    return {
        "latents": [len(a), len(b)],
        "forward": _summary(forward),
        "backward": _summary(backward),
        "matched": _matched(a, b, seed, sample),
    }


def _summary(nearest: Float[Tensor, "n"]) -> dict:
    return {
        "mean_max_cosine": float(nearest.double().mean()),
        "share_above_0.7": float((nearest > 0.7).double().mean()),
        "share_above_0.9": float((nearest > 0.9).double().mean()),
    }


def _matched(a: Float[Tensor, "n d_in"], b: Float[Tensor, "m d_in"], seed: int, sample: int) -> dict:
    order = torch.randperm(len(a), generator=seeding.generator(seed, "stability"))[: min(sample, len(b))]
    cosines = torch.cat([block for _, block in cosine_blocks(a[order], b)])
    rows, columns = linear_sum_assignment(cosines.numpy(), maximize=True)
    return {"sample": len(order)} | _summary(cosines[rows, columns])
