"""What a latent has to do with a label: AUROC, average precision, shares of its mass, tests, for all latents at once.

A latent's score of an image is its maximum over the tokens, 0 where it does not fire. Only firing pairs are touched:
the images at 0 are one tie at the bottom. Images without a label are left out.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

from saetool.features.label_pairs import LabelColumn, Pairs
from saetool.features.maxima import Maxima


@dataclass(frozen=True)
class LabelStatistics:
    """Statistics of a block of latents; NaN where undefined.

    Per latent and class [latents, classes]: auroc over all images, its 95 % interval and its p; the same over training
    images alone (to choose by) and over held-out ones (to score); average precision, share of the latent's mass, firing
    images. Per latent [latents]: spearman (columns of numbers only, else NaN).
    """

    auroc: np.ndarray
    auroc_low: np.ndarray
    auroc_high: np.ndarray
    p_value: np.ndarray
    train_auroc: np.ndarray
    held_out_auroc: np.ndarray
    held_out_low: np.ndarray
    held_out_high: np.ndarray
    average_precision: np.ndarray
    mass_share: np.ndarray
    firing_images: np.ndarray
    spearman: np.ndarray

    def purity(self) -> np.ndarray:
        """Return the largest share of mass in one class."""
        return self.mass_share.max(1, initial=0.0, where=~np.isnan(self.mass_share)) + 0 * self.mass_share.sum(1)

    def entropy(self) -> np.ndarray:
        """Return the entropy of the shares divided by ln(number of classes): 0 one class, 1 all alike."""
        classes = self.mass_share.shape[1]
        if classes < 2:
            return np.full(len(self.mass_share), np.nan)
        logs = np.log(np.where(self.mass_share > 0, self.mass_share, 1.0))
        return -(self.mass_share * logs).sum(1) / np.log(classes) + 0.0

    def chosen_by(self) -> np.ndarray:
        """Return the AUROCs that classes are ranked by, −1 where undefined."""
        nothing = np.isnan(self.train_auroc).all(1, keepdims=True)
        known = np.where(nothing, self.auroc, self.train_auroc)
        return np.where(np.isnan(known), -1.0, known)

    def best(self) -> np.ndarray:
        """Return the class with the largest AUROC on training images (the first of equals), −1 where none is defined.

        Where training images lack the classes, all images choose.
        """
        filled = self.chosen_by()
        if filled.shape[1] == 0:
            return np.full(len(filled), -1)
        return np.where(filled.max(1) < 0, -1, filled.argmax(1))


def label_statistics(
    maxima: Maxima,
    descending: Tensor,
    column: LabelColumn,
    held_out: Bool[np.ndarray, "images"] | None = None,
    groups: Int[np.ndarray, "images"] | None = None,
) -> LabelStatistics:
    """Compute the statistics of one label column; `descending` is `ranking.by_value(maxima)`.

    `held_out` says which images training never saw (None: all are training images), `groups` numbers the group of
    each, of images that depend on each other (None: each is alone). What is added up for each firing pair is added up
    where the maxima are, in the same order on every device; what follows for [latents, classes] is computed on the CPU.
    """
    pairs = Pairs.of(maxima, descending, column, groups)
    auroc = pairs.auroc()
    error = pairs.standard_error(auroc)
    low, high = pairs.interval(auroc, error)
    share = pairs.sum_by_class(maxima.column("mass")[pairs.record].double())
    total = share.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = share / np.where(total > 0, total, np.nan)
    fires = np.isfinite(total) & (total > 0)
    defined = fires & pairs.both
    everything = np.full(auroc.shape, np.nan)
    train, unseen, unseen_low, unseen_high = np.where(defined, auroc, np.nan), everything, everything, everything
    if held_out is not None and held_out.any():
        seen = Pairs.of(maxima, descending, column.only(~held_out))
        train = np.where(fires & seen.both, seen.auroc(), np.nan)
        rest = Pairs.of(maxima, descending, column.only(held_out), groups)
        unseen = np.where(fires & rest.both, rest.auroc(), np.nan)
        unseen_low, unseen_high = (
            np.where(fires & rest.both, end, np.nan) for end in rest.interval(unseen, rest.standard_error(unseen))
        )
    return LabelStatistics(
        auroc=np.where(defined, auroc, np.nan),
        auroc_low=np.where(defined, low, np.nan),
        auroc_high=np.where(defined, high, np.nan),
        p_value=np.where(defined, pairs.p_values(auroc, error), np.nan),
        train_auroc=train,
        held_out_auroc=unseen,
        held_out_low=unseen_low,
        held_out_high=unseen_high,
        average_precision=np.where(defined, pairs.average_precision(), np.nan),
        mass_share=share,
        firing_images=pairs.firing.astype(np.int64),
        spearman=pairs.spearman(column),
    )


def benjamini_hochberg(p: Float[np.ndarray, "tests"]) -> Float[np.ndarray, "tests"]:
    """Return q-values (Benjamini & Hochberg 1995) among the tests whose p is not NaN."""
    q = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    if len(known):
        order = known[np.argsort(p[known], kind="stable")]
        scaled = p[order] * len(known) / np.arange(1, len(known) + 1)
        q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1)
    return q


def auroc(
    values: Float[np.ndarray, "images latents"], positive: Bool[np.ndarray, "images"]
) -> Float[np.ndarray, "latents"]:
    """Return the AUROC of dense scores for one class against the rest, ties counted half; NaN when a side is empty."""
    return aurocs(values, np.asarray(positive, bool)[None])[0]


def aurocs(
    values: Float[np.ndarray, "images latents"], members: Bool[np.ndarray, "questions images"]
) -> Float[np.ndarray, "questions latents"]:
    """Return the AUROC of dense scores for each set of images against the others; scores are ranked once for all."""
    weights = members.astype(np.float64)
    n = weights.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights @ stats.rankdata(values, axis=0) - n * (n + 1) / 2) / (n * (members.shape[1] - n))
