"""Does a single latent stand for a label? AUROC of image maxima, chosen on some images and scored on others.

The best of thousands of latents looks good by chance on the images it was chosen on; so the latent is chosen on
training images and scored on held-out ones, beside the same procedure with labels shuffled (about .5).
"""

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import rankdata

from saetool import seeding
from saetool.features import auroc

LATENTS_AT_ONCE = 1024
"""Columns ranked at once: 240 MB of float64 at 30,000 images."""


def aurocs(
    values: Float[np.ndarray, "images latents"], labels: np.ndarray, classes: list[str]
) -> Float[np.ndarray, "classes latents"]:
    """Return each latent's AUROC for each class, ties counted half, ranking a latent once for all classes.

    NaN where a class has no image or all of them.
    """
    members = np.stack([labels == name for name in classes]).astype(np.float64)
    n = members.sum(1, keepdims=True)
    found = []
    for start in range(0, values.shape[1], LATENTS_AT_ONCE):
        ranks = rankdata(values[:, start : start + LATENTS_AT_ONCE], axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append((members @ ranks - n * (n + 1) / 2) / (n * (len(labels) - n)))
    return np.concatenate(found, axis=1)


def align(
    train: Float[np.ndarray, "train latents"],
    train_labels: np.ndarray,
    test: Float[np.ndarray, "test latents"],
    test_labels: np.ndarray,
    classes: list[str],
    seed: int,
) -> dict:
    """Return, a class, the latent of best AUROC on training images and its AUROC on held-out images.

    `control` repeats it with the labels permuted among training and among held-out images. A class without both
    members and others on either side is null.
    """
    true = _chosen(train, train_labels, test, test_labels, classes)
    generator = seeding.generator(seed, "alignment")
    shuffled_train = train_labels[torch.randperm(len(train_labels), generator=generator).numpy()]
    shuffled_test = test_labels[torch.randperm(len(test_labels), generator=generator).numpy()]
    control = _chosen(train, shuffled_train, test, shuffled_test, classes)
    return {
        "classes": true,
        "mean_auroc": _mean(true),
        "control": control,
        "control_mean_auroc": _mean(control),
    }


def _chosen(
    train: Float[np.ndarray, "train latents"],
    train_labels: np.ndarray,
    test: Float[np.ndarray, "test latents"],
    test_labels: np.ndarray,
    classes: list[str],
) -> list[dict]:
    scores = aurocs(train, train_labels, classes)
    rows = []
    for name, row in zip(classes, scores, strict=True):
        if np.isnan(row).any():
            rows.append({"class": name, "latent": None, "train_auroc": None, "auroc": None})
            continue
        latent = int(row.argmax())
        score = float(auroc(test[:, [latent]], test_labels == name)[0])
        score = None if np.isnan(score) else score
        rows.append({"class": name, "latent": latent, "train_auroc": float(row[latent]), "auroc": score})
    return rows


def _mean(rows: list[dict]) -> float | None:
    scores = [row["auroc"] for row in rows if row["auroc"] is not None]
    return float(np.mean(scores)) if scores else None
