"""Confidence intervals by resampling images: per-image sums are computed once, then only sums are resampled.

Tokens of one image depend on each other, images do not: the image is the unit that is drawn with replacement
(the cluster bootstrap; Efron & Tibshirani 1993, ch. 8). Where images depend on each other too, their group is the unit
(`images.group`). Intervals are the 2.5 and 97.5 percentiles.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saetool import seeding

RESAMPLES = 1000
"""Enough for two digits of a 95 % interval."""
WEIGHTS_AT_ONCE = 4_000_000
"""Entries of the resampling matrix held in memory: 32 MB."""


def resample(
    sums: Float[Tensor, "images columns"], seed: int, resamples: int = RESAMPLES
) -> Float[Tensor, "resamples columns"]:
    """Return the column totals of `resamples` draws of as many images as there are, with replacement, in float64."""
    images = sums.shape[0]
    generator = seeding.generator(seed, "bootstrap")
    at_once = max(1, WEIGHTS_AT_ONCE // images)
    totals = []
    for start in range(0, resamples, at_once):
        draws = torch.randint(images, (min(at_once, resamples - start), images), generator=generator)
        weights = torch.zeros(draws.shape, dtype=torch.float64)
        weights.scatter_add_(1, draws, torch.ones_like(weights))
        totals.append(weights @ sums.double())
    return torch.cat(totals)


def grouped(
    sums: Float[Tensor, "images columns"], groups: Int[np.ndarray, "images"] | None
) -> Float[Tensor, "units columns"]:
    """Return the sums of what is drawn as one: of the images of each group, or of each image where there are none."""
    if groups is None:
        return sums
    places = torch.from_numpy(np.unique(groups, return_inverse=True)[1])
    return sums.new_zeros(int(places.max()) + 1, sums.shape[1]).index_add_(0, places, sums)


def interval(value: float | None, draws: Float[Tensor, "resamples"] | None) -> dict[str, float | None]:
    """Return {"value", "low", "high"}: 95 % percentile bounds, null where `draws` has fewer than two finite values."""
    low = high = None
    if draws is not None:
        finite = draws[draws.isfinite()].numpy()
        if finite.size > 1:
            low, high = (float(bound) for bound in np.quantile(finite, [0.025, 0.975]))
    return {"value": value, "low": low, "high": high}


def ratios(
    sums: Float[Tensor, "images columns"],
    names: list[str],
    wanted: dict[str, tuple[str, str]],
    seed: int,
    resamples: int = RESAMPLES,
    groups: Int[np.ndarray, "images"] | None = None,
) -> dict[str, dict[str, float | None]]:
    """Return every wanted ratio of totals, {name: (numerator column, denominator column)}, with its interval.

    Images of one group are drawn together. A ratio whose denominator is 0 is null; one image (or group), or no
    resampling, gives no interval.
    """
    sums = grouped(sums, groups)
    total = sums.double().sum(0)
    draws = resample(sums, seed, resamples) if min(sums.shape[0], resamples) > 1 else None
    found = {}
    for name, (above, below) in wanted.items():
        i, j = names.index(above), names.index(below)
        value = float(total[i] / total[j]) if float(total[j]) != 0 else None
        found[name] = interval(value, None if draws is None else draws[:, i] / draws[:, j])
    return found
