"""Does a single latent stand for a label? AUROC of image maxima, chosen on some images and scored on others.

The best of thousands of latents looks good by chance on the images it was chosen on; so the latent is chosen on
training images and scored on held-out ones, beside the same procedure with labels shuffled (about .5).
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from torch import Tensor

from saetool import seeding

LATENTS_AT_ONCE = 1024
"""Columns ranked at once: 240 MB of float64 at 30,000 images."""


def auroc(values: Float[Tensor, "images latents"], positive: Bool[Tensor, "images"]) -> Float[Tensor, "latents"]:
    """Return for each latent the probability that a positive image's value exceeds a negative one's, ties half.

    NaN where one of the two groups is empty.
    """
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return torch.full((values.shape[1],), float("nan"), dtype=torch.float64)
    found = []
    for columns in values.split(LATENTS_AT_ONCE, dim=1):
        ranks = torch.from_numpy(rankdata(columns.numpy(), axis=0))
        found.append((ranks[positive].sum(0) - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))
    return torch.cat(found)


def aurocs(
    values: Float[Tensor, "images latents"], labels: np.ndarray, classes: list[str]
) -> Float[Tensor, "classes latents"]:
    """Return one row of `auroc` a class, ranking each latent once for all classes."""
    members = torch.from_numpy(np.stack([labels == name for name in classes])).double()
    n_positive = members.sum(1, keepdim=True)
    n_negative = values.shape[0] - n_positive
    found = []
    for columns in values.split(LATENTS_AT_ONCE, dim=1):
        ranks = torch.from_numpy(rankdata(columns.numpy(), axis=0))
        found.append((members @ ranks - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))
    return torch.cat(found, dim=1)


def align(
    train: Float[Tensor, "train latents"],
    train_labels: np.ndarray,
    test: Float[Tensor, "test latents"],
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
    train: Float[Tensor, "train latents"],
    train_labels: np.ndarray,
    test: Float[Tensor, "test latents"],
    test_labels: np.ndarray,
    classes: list[str],
) -> list[dict]:
    scores = aurocs(train, train_labels, classes)
    rows = []
    for name, row in zip(classes, scores, strict=True):
        latent = int(row.argmax()) if bool(row.isfinite().all()) else None
        score = None
        if latent is not None:
            held_out = float(auroc(test[:, latent : latent + 1], torch.from_numpy(test_labels == name))[0])
            score = held_out if np.isfinite(held_out) else None
        chosen_at = float(row[latent]) if latent is not None else None
        rows.append({"class": name, "latent": latent, "train_auroc": chosen_at, "auroc": score})
    return rows


def _mean(rows: list[dict]) -> float | None:
    scores = [row["auroc"] for row in rows if row["auroc"] is not None]
    return float(np.mean(scores)) if scores else None
