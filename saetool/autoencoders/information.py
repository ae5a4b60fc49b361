"""Entropy, cross-entropy and Kullback–Leibler divergence of discrete distributions, with their conventions at zero.

0 ln 0 = 0, and the cross-entropy is +∞ where Q = 0 < P (Goodfellow et al. 2016, section 3.13).
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from saetool.errors import RequestError

Unit = Literal["nats", "bits"]

# A distribution's probabilities may miss 1 by this much: the rounding of a float32 sum.
SUM_TOLERANCE = 1e-5


def entropy(p: Float[Tensor, "*batch outcomes"], unit: Unit = "nats") -> Float[Tensor, "*batch"]:
    """Return H(P) = −Σ p ln p over the last axis. Raises RequestError where `p` is not a distribution."""
    return torch.special.entr(_distribution(p, "P")).sum(-1) / _nats(unit)


def cross_entropy(
    p: Float[Tensor, "*batch outcomes"], q: Float[Tensor, "*batch outcomes"], unit: Unit = "nats"
) -> Float[Tensor, "*batch"]:
    """Return H(P, Q) = −Σ p ln q over the last axis. Raises RequestError where `p` or `q` is not a distribution."""
    p, q = _distribution(p, "P"), _distribution(q, "Q")
    return -torch.special.xlogy(p, q).sum(-1) / _nats(unit)


def kl_divergence(
    p: Float[Tensor, "*batch outcomes"], q: Float[Tensor, "*batch outcomes"], unit: Unit = "nats"
) -> Float[Tensor, "*batch"]:
    """Return KL(P‖Q) = H(P, Q) − H(P) over the last axis. Raises RequestError where one is not a distribution."""
    return cross_entropy(p, q, unit) - entropy(p, unit)


def _nats(unit: Unit) -> float:
    """Return how many nats make one `unit`."""
    if unit not in ("nats", "bits"):
        raise RequestError(f"unknown unit of information {unit!r}: nats or bits")
    return 1.0 if unit == "nats" else math.log(2)


def _distribution(p: Tensor, name: str) -> Tensor:
    p = torch.as_tensor(p)
    p = p if p.is_floating_point() else p.double()
    if not bool((p >= 0).all()) or not bool(((p.sum(-1) - 1).abs() <= SUM_TOLERANCE).all()):
        raise RequestError(f"{name} is not a distribution: its entries must be 0 or more and add up to 1")
    return p
