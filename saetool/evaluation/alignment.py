"""Does a single latent stand for a label? AUROC of image maxima, chosen on some images and scored on others.

The best of thousands of latents looks good by chance on the images it was chosen on; so the latent is chosen on
training images and scored on held-out ones, beside the same procedure with labels shuffled (about .5).
"""

import itertools

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from saetool.evaluation.splits import Split, side_by_side
from saetool.features import auroc

SHUFFLES = 10
"""Permutations of the labels behind the control: one alone is off by .04 with a hundred images a side."""

LATENTS_AT_ONCE = 1024
"""Columns ranked at once: 240 MB of float64 at 30,000 images."""


def aurocs(
    values: Float[np.ndarray, "images latents"], members: Bool[np.ndarray, "questions images"]
) -> Float[np.ndarray, "questions latents"]:
    """Return each latent's AUROC for each set of images against the others, ties counted half.

    A latent is ranked once for all questions. NaN where a set has no image or all of them.
    """
    weights = members.astype(np.float64)
    n = weights.sum(1, keepdims=True)

    def block(start: int) -> Float[np.ndarray, "questions block"]:
        ranks = rankdata(values[:, start : start + LATENTS_AT_ONCE], axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (weights @ ranks - n * (n + 1) / 2) / (n * (values.shape[0] - n))

    return np.concatenate(side_by_side(block, range(0, values.shape[1], LATENTS_AT_ONCE)), axis=1)


def align(
    train: Float[np.ndarray, "train latents"], test: Float[np.ndarray, "test latents"], splits: list[Split], seed: int
) -> list[dict]:
    """Return, a label and class, the latent of best AUROC on training images and its AUROC on held-out images.

    `control` repeats it SHUFFLES times with the labels permuted among training and among held-out images. A class
    without both members and others on either side is null.
    """
    controls = [split.shuffled(seed, SHUFFLES) for split in splits]
    asked = [*splits, *itertools.chain(*controls)]
    scores = aurocs(train, np.concatenate([split.members(split.train) for split in asked]))
    at = np.cumsum([len(split.classes) for split in asked])[:-1]
    found = [_best(split, rows, test) for split, rows in zip(asked, np.split(scores, at), strict=True)]
    rows = []
    for i in range(len(splits)):
        first = len(splits) + i * SHUFFLES
        control = list(itertools.chain(*found[first : first + SHUFFLES]))
        scores = {"mean_auroc": _mean(found[i]), "control_mean_auroc": _mean(control)}
        rows.append({"classes": found[i], "control": control, **scores})
    return rows


def _best(
    split: Split, scores: Float[np.ndarray, "classes latents"], test: Float[np.ndarray, "test latents"]
) -> list[dict]:
    rows = []
    for name, row, members in zip(split.classes, scores, split.members(split.test), strict=True):
        if np.isnan(row).any():
            rows.append({"class": name, "latent": None, "train_auroc": None, "auroc": None})
            continue
        latent = int(row.argmax())
        score = float(auroc(test[:, [latent]], members)[0])
        score = None if np.isnan(score) else score
        rows.append({"class": name, "latent": latent, "train_auroc": float(row[latent]), "auroc": score})
    return rows


def _mean(rows: list[dict]) -> float | None:
    scores = [row["auroc"] for row in rows if row["auroc"] is not None]
    return float(np.mean(scores)) if scores else None
