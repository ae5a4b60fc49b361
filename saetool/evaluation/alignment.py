"""Does a single latent stand for a label? Its AUROC over images, chosen on some images and scored on others.

The best of thousands of latents looks good by chance on the images it was chosen on; so the latent is chosen on
training images and scored on held-out ones, beside the same procedure with labels shuffled (about .5). Chosen are the
latent, how an image's tokens are pooled, and the sign: a latent may be silent on a class, and a neuron has no sign.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import norm, rankdata, t as student

from saetool.evaluation.bootstrap import interval
from saetool.evaluation.splits import Split, side_by_side
from saetool.features import labels
from saetool.features.label_pairs import NO_ERROR, exact_margin

SHUFFLES = 10
"""Permutations of the labels behind the control: one alone is off by .04 with a hundred images a side."""
LATENTS_AT_ONCE = 1024
"""Columns ranked at once: 240 MB of float64 at 30,000 images."""

Features = Mapping[str, Float[np.ndarray, "images latents"]]
"""Image features by how they were pooled."""


@dataclass(frozen=True)
class Best:
    """What was chosen for a class on training images, and its values on held-out ones, larger on the class."""

    latent: int
    pooling: str
    sign: int
    train_auroc: float
    held_out: Float[np.ndarray, "images"]
    members: Bool[np.ndarray, "images"]
    groups: Int[np.ndarray, "images"] | None = None
    """Which of the held-out images depend on each other; None: each is alone."""


def aurocs(
    values: Float[np.ndarray, "images latents"], members: Bool[np.ndarray, "questions images"]
) -> Float[np.ndarray, "questions latents"]:
    """Return each latent's AUROC for each set of images against the others, some latents a core at a time.

    NaN where a set has no image or all of them.
    """
    blocks = (values[:, start : start + LATENTS_AT_ONCE] for start in range(0, values.shape[1], LATENTS_AT_ONCE))
    return np.concatenate(side_by_side(lambda block: labels.aurocs(block, members), blocks), axis=1)


def choose(train: Features, test: Features, splits: list[Split], seed: int) -> tuple[list[list[Best | None]], list]:
    """Return, a label and class, what tells the class best on training images; and the same under shuffled labels.

    None for a class without both members and others on either side. The second is, a label, of SHUFFLES permutations
    among training and among held-out images.
    """
    controls = [split.shuffled(seed, SHUFFLES) for split in splits]
    asked = [*splits, *itertools.chain(*controls)]
    members = np.concatenate([split.members(split.train) for split in asked])
    there = np.concatenate([split.members(split.test) for split in asked])
    scores = {pooling: aurocs(values, members) for pooling, values in train.items()}
    groups = [split.test_groups for split in asked for _ in split.classes]
    best = [_best(scores, test, question, there[question], groups[question]) for question in range(len(members))]
    at = np.cumsum([0, *(len(split.classes) for split in asked)])
    found = [best[start:stop] for start, stop in itertools.pairwise(at)]
    rest = found[len(splits) :]
    shuffled = [list(itertools.chain(*rest[i * SHUFFLES : (i + 1) * SHUFFLES])) for i in range(len(splits))]
    return found[: len(splits)], shuffled


def _best(
    scores: Features,
    test: Features,
    question: int,
    members: Bool[np.ndarray, "images"],
    groups: Int[np.ndarray, "images"] | None,
) -> Best | None:
    """Return the latent whose AUROC is farthest from one half, of equals the first pooling's and then the lowest."""
    if any(np.isnan(rows[question]).any() for rows in scores.values()) or members.all() or not members.any():
        return None
    rows = {pooling: np.abs(values[question] - 0.5) for pooling, values in scores.items()}
    pooling = max(rows, key=lambda name: rows[name].max())
    latent = int(rows[pooling].argmax())
    score = float(scores[pooling][question, latent])
    sign = 1 if score >= 0.5 else -1
    held_out = sign * test[pooling][:, latent].astype(np.float64)
    return Best(latent, pooling, sign, max(score, 1 - score), held_out, members, groups)


def placements(best: Best) -> tuple[Float[np.ndarray, "members"], Float[np.ndarray, "others"]]:
    """Return, for each image of the class, the share of others below it, and the reverse; ties count half."""
    ranks, n = rankdata(best.held_out), int(best.members.sum())
    others = len(best.members) - n
    inside, outside = rankdata(best.held_out[best.members]), rankdata(best.held_out[~best.members])
    return (ranks[best.members] - inside) / others, 1 - (ranks[~best.members] - outside) / n


def auroc_with_interval(best: Best, other: Best | None = None) -> dict[str, float | None]:
    """Return the held-out AUROC, or how much it exceeds another's on the same images, with its 95 % interval.

    The interval is DeLong's (DeLong, DeLong & Clarke-Pearson 1988), paired for a difference; where images form groups,
    Obuchowski's (1997), which is the same for groups of one image. Where all images of a side stand alike these have no
    width, and it is an exact bound's (`exact_margin`). Null with fewer than two of them on a side.
    """
    sides = placements(best)
    if other is not None:
        sides = tuple(mine - theirs for mine, theirs in zip(sides, placements(other), strict=True))
    value = float(sides[0].mean())
    error = _half_width(sides, value, best)
    if error is None:
        return interval(value, None)
    if error < NO_ERROR:
        error = float(exact_margin(min(_independent(best))))
    least, most = (0.0, 1.0) if other is None else (-1.0, 1.0)
    return {"value": value, "low": max(value - error, least), "high": min(value + error, most)}


def _independent(best: Best) -> tuple[int, int]:
    """Return how many images of the class and others there are, or groups that have some."""
    if best.groups is None:
        return int(best.members.sum()), int((~best.members).sum())
    return len(np.unique(best.groups[best.members])), len(np.unique(best.groups[~best.members]))


def _half_width(sides: tuple[np.ndarray, ...], value: float, best: Best) -> float | None:
    """Return half a 95 % interval around the mean placement, of a class's images and of the others."""
    if best.groups is None:
        if min(map(len, sides)) < 2:
            return None
        return float(norm.ppf(0.975)) * float(sum(side.var(ddof=1) / len(side) for side in sides)) ** 0.5
    group = np.unique(best.groups, return_inverse=True)[1]
    n_groups, variance, sums = int(group.max()) + 1, 0.0, []
    for side, there in zip(sides, (best.members, ~best.members), strict=True):
        count = len(np.unique(group[there]))
        if count < 2:
            return None
        sums.append(np.bincount(group[there], (side - value) / len(side), n_groups))
        variance += count / (count - 1) * float(sums[-1] @ sums[-1])
    variance += 2 * n_groups / (n_groups - 1) * float(sums[0] @ sums[1])
    return float(student.ppf(0.975, n_groups - 1)) * max(variance, 0.0) ** 0.5


def align(
    chosen: list[Best | None], shuffled: list[Best | None], beside: list[Best | None], classes: list[str]
) -> dict[str, Any]:
    """Return one label's table: each class's chosen latent and its held-out AUROC, the difference to what was chosen
    `beside` it (of another representation), the mean over classes, and that of the control."""
    rows = []
    for name, best, other in zip(classes, chosen, beside, strict=True):
        row: dict[str, Any] = {"class": name}
        row |= {key: getattr(best, key, None) for key in ("latent", "pooling", "sign", "train_auroc")}
        row["auroc"] = interval(None, None) if best is None else auroc_with_interval(best)
        row["difference"] = None if best is None or other is None else auroc_with_interval(best, other)
        rows.append(row)
    control = [None if best is None else auroc_with_interval(best)["value"] for best in shuffled]
    means = {"mean_auroc": _mean([row["auroc"]["value"] for row in rows]), "control_mean_auroc": _mean(control)}
    return {"classes": rows, "control": control, **means}


def _mean(scores: list[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return float(np.mean(known)) if known else None
