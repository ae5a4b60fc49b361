"""What a latent has to do with a label: AUROC, average precision, shares of its mass, tests, for all latents at once.

A latent's score of an image is its maximum over the tokens, 0 where it does not fire. Only firing pairs are touched:
the images at 0 are one tie at the bottom. Images without a label are left out.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from saetool.features.maxima import Maxima
from saetool.features.runs import counts_of, heads_of, order_of, spread_over, sums_of_runs

_NORMAL_95 = 1.959963984540054


@dataclass(frozen=True)
class LabelColumn:
    """One column of labels: `classes` [images] int64 index `names`, −1 where unlabeled; numbers keep their `ranks`.

    A column of numbers has two classes, up to and above its median, and midranks [images] float64 for correlation.
    """

    name: str
    names: list[str]
    classes: np.ndarray
    ranks: np.ndarray | None = None

    @classmethod
    def of_categories(cls, name: str, values: list[str | None], names: list[str] | None = None) -> "LabelColumn":
        """Take classes as given, or every value that occurs, sorted."""
        names = list(names) if names else sorted({str(value) for value in values if value is not None})
        place = {class_: i for i, class_ in enumerate(names)}
        classes = [-1 if value is None else place[str(value)] for value in values]
        return cls(name, names, np.array(classes, dtype=np.int64))

    @classmethod
    def of_numbers(cls, name: str, values: list[float | None]) -> "LabelColumn":
        """Cut numbers at their median; if nothing lies above it, below it."""
        numbers = np.array([np.nan if value is None else float(value) for value in values])
        known = ~np.isnan(numbers)
        ranks = np.zeros(len(numbers))
        if not known.any():
            return cls(name, [], np.full(len(numbers), -1), ranks)
        ranks[known] = stats.rankdata(numbers[known])
        cut = float(np.quantile(numbers[known], 0.5, method="lower"))
        below = numbers[known & (numbers < cut)]
        if cut == numbers[known].max() and len(below):
            cut = float(below.max())
        classes = np.where(known, (numbers > cut).astype(np.int64), -1)
        return cls(name, [f"≤ {cut:g}", f"> {cut:g}"], classes, ranks)


@dataclass(frozen=True)
class LabelStatistics:
    """Statistics of a block of latents; NaN where undefined.

    Per latent and class [latents, classes]: auroc, its 95 % interval, average precision, share of the latent's mass,
    firing images. Per latent [latents]: p_value, spearman (columns of numbers only, else NaN).
    """

    auroc: np.ndarray
    auroc_low: np.ndarray
    auroc_high: np.ndarray
    average_precision: np.ndarray
    mass_share: np.ndarray
    firing_images: np.ndarray
    p_value: np.ndarray
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

    def best(self) -> np.ndarray:
        """Return the class with the largest AUROC (the first of equals), −1 where none is defined."""
        filled = np.where(np.isnan(self.auroc), -1.0, self.auroc)
        if filled.shape[1] == 0:
            return np.full(len(filled), -1)
        return np.where(filled.max(1) < 0, -1, filled.argmax(1))


@dataclass(frozen=True)
class _Runs:
    """Runs of equal keys and, inside them, ties: positions counted from the start of the run."""

    first: Tensor
    """Position of the first element of an element's tie."""
    last: Tensor
    """Position of the last element of its tie."""
    heads: Tensor
    """Where among all elements each tie begins."""

    @classmethod
    def of(cls, run: Tensor, values: Tensor) -> "_Runs":
        n, new_run, heads = len(run), heads_of(run), heads_of(run, values)
        start = spread_over(new_run, new_run, n)
        first = spread_over(heads, heads, n)
        last = spread_over(heads, torch.cat([heads[1:], heads.new_tensor([n])])[: len(heads)], n) - 1
        return cls(first - start, last - start, heads)


def label_statistics(maxima: Maxima, descending: Tensor, column: LabelColumn) -> LabelStatistics:
    """Compute the statistics of one label column; `descending` is `ranking.by_value(maxima)`.

    What is added up for each firing pair is added up where the maxima are, in the same order on every device; what
    follows for [latents, classes] is computed on the CPU.
    """
    pairs = _Pairs.of(maxima, descending, column)
    positives, n, classes = pairs.class_images, pairs.images, len(column.names)
    auroc = pairs.auroc()
    low, high = pairs.interval(auroc)
    share = pairs.sum_by_class(maxima.column("mass")[pairs.record].double())
    total = share.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = share / np.where(total > 0, total, np.nan)
    defined = np.isfinite(total) & (total > 0) & (positives > 0) & (positives < n)
    rho, p_value = pairs.spearman(column) if column.ranks is not None else (None, pairs.kruskal_wallis())
    shape = (maxima.n_latents, classes)
    return LabelStatistics(
        auroc=np.where(defined, auroc, np.nan),
        auroc_low=np.where(defined, low, np.nan),
        auroc_high=np.where(defined, high, np.nan),
        average_precision=np.where(defined, pairs.average_precision(), np.nan),
        mass_share=share,
        firing_images=pairs.firing.astype(np.int64).reshape(shape),
        p_value=p_value,
        spearman=np.full(maxima.n_latents, np.nan) if rho is None else rho,
    )


@dataclass(frozen=True)
class _Pairs:
    """The firing (latent, labeled image) pairs of a block, by latent and falling value, with their ties.

    Tensors are where the maxima are; arrays, of latents and classes, on the CPU.
    """

    record: Tensor
    latent: Tensor
    image: Tensor
    runs: _Runs
    by_class: Tensor
    cell: Tensor
    """latent · classes + class of every pair, in the order `by_class`, in which it ascends."""
    class_runs: _Runs
    class_images: np.ndarray
    images: int
    shape: tuple[int, int]
    firing: np.ndarray

    @classmethod
    def of(cls, maxima: Maxima, descending: Tensor, column: LabelColumn) -> "_Pairs":
        classes = torch.from_numpy(column.classes).to(maxima.device)
        shape = (maxima.n_latents, len(column.names))
        labels = classes[maxima.image[descending]]
        known = (labels >= 0).nonzero().squeeze(1)
        record, labels = descending[known], labels[known]
        latent, values = maxima.latent[record], maxima.column("value")[record]
        cell = latent * shape[1] + labels
        by_class = order_of(cell)
        cell = cell[by_class]
        class_images = np.bincount(column.classes[column.classes >= 0], minlength=shape[1]).astype(np.float64)
        firing = counts_of(cell, torch.ones_like(cell), shape[0] * shape[1]).cpu().numpy()
        return cls(
            record=record,
            latent=latent,
            image=maxima.image[record],
            runs=_Runs.of(latent, values),
            by_class=by_class,
            cell=cell,
            class_runs=_Runs.of(cell, values[by_class]),
            class_images=class_images,
            images=int(class_images.sum()),
            shape=shape,
            firing=firing.reshape(shape).astype(np.float64),
        )

    def sum_by_class(self, weights: Tensor) -> np.ndarray:
        """Add up one number a pair, [latents, classes]."""
        return self._collect(self.cell, weights[self.by_class])

    def _collect(self, cell: Tensor, weights: Tensor) -> np.ndarray:
        return sums_of_runs(cell, weights, self.shape[0] * self.shape[1]).cpu().numpy().reshape(self.shape)

    def _sum_by_latent(self, latent: Tensor, weights: Tensor) -> np.ndarray:
        return sums_of_runs(latent, weights, self.shape[0]).cpu().numpy()

    @property
    def silent(self) -> np.ndarray:
        """The number of labeled images at 0, [latents, 1]."""
        return self.images - self.firing.sum(1, keepdims=True)

    def _twice_rank(self) -> Tensor:
        """Twice the ascending midrank of every pair among all labeled images."""
        return (2 * self.images - self.runs.first - self.runs.last).double()

    def _rank_sums(self) -> np.ndarray:
        """The sum of the midranks of each class, [latents, classes]."""
        silent_of_class = self.class_images - self.firing
        return (self.sum_by_class(self._twice_rank()) + silent_of_class * (self.silent + 1)) / 2

    def auroc(self) -> np.ndarray:
        """Mann–Whitney: the chance that an image of the class scores above another one, ties counted half."""
        n = self.class_images
        with np.errstate(invalid="ignore", divide="ignore"):
            return (self._rank_sums() - n * (n + 1) / 2) / (n * (self.images - n))

    def average_precision(self) -> np.ndarray:
        """Σ precision · Δrecall over falling thresholds, ties taken together (scikit-learn's definition)."""
        hits, above = self.class_runs.last + 1, self.runs.last[self.by_class] + 1
        precision = self._collect(self.cell, hits.double() / above.double())
        rest = (self.class_images - self.firing) * self.class_images / max(self.images, 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (precision + rest) / self.class_images

    def interval(self, auroc: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """DeLong's 95 % interval; where all of a class lie on one side of all others, an exact bound.

        DeLong's error is 0 there. But min(class, others) disjoint pairs are independent, each in order with chance
        AUROC: the interval of Clopper & Pearson (1934) for so many successes out of so many.
        """
        error = _NORMAL_95 * self.standard_error(auroc)
        low, high = np.clip(auroc - error, 0, 1), np.clip(auroc + error, 0, 1)
        pairs = np.maximum(np.minimum(self.class_images, self.images - self.class_images), 1)
        bound = np.broadcast_to(0.025 ** (1 / pairs), auroc.shape)
        known = ~np.isnan(error)
        return np.where(known & (auroc == 1), bound, low), np.where(known & (auroc == 0), 1 - bound, high)

    def standard_error(self, auroc: np.ndarray) -> np.ndarray:
        """DeLong's standard error of the AUROC (DeLong, DeLong & Clarke-Pearson 1988); NaN with fewer than 2 a side."""
        n, others = self.class_images, self.images - self.class_images
        silent_positive = n - self.firing
        silent_negative = self.silent - silent_positive
        below, above = self._squares(silent_negative, silent_positive)
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = (below / others**2 - n * auroc**2) / (n - 1) / n
            spread += (above / n**2 - others * auroc**2) / (others - 1) / others
        return np.where((n > 1) & (others > 1), np.sqrt(np.maximum(spread, 0)), np.nan)

    def _squares(self, silent_negative: np.ndarray, silent_positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Σ over positives of (negatives below)², Σ over negatives of (positives above)²; ties count half."""
        inside, first, last = self.class_runs, self.runs.first[self.by_class], self.runs.last[self.by_class]
        positives = torch.from_numpy(self.class_images).to(first.device).long()[self.cell % self.shape[1]]
        twice_below = (2 * self.images - first - last) - (2 * positives - inside.first - inside.last)
        below = self._collect(self.cell, (twice_below.double() / 2).square())
        below = below + silent_positive * (silent_negative / 2) ** 2
        # Negatives lie in the ties of positives, in the gaps above them, after the last of them, or at 0.
        heads, cell = inside.heads, self.cell[inside.heads]
        at, until, head, end = first[heads], last[heads], inside.first[heads], inside.last[heads]
        through = until - end
        before = torch.cat([through.new_zeros(1), through[:-1]])[: len(heads)]
        in_gap = (at - head) - torch.where(head > 0, before, 0)
        tied = end - head + 1
        in_tie = until - at + 1 - tied
        squares = in_gap * head.double().square() + in_tie * (head + tied.double() / 2).square()
        above, seen = self._collect(cell, squares), self._collect(cell, (in_gap + in_tie).double())
        firing_negative = self.firing.sum(1, keepdims=True) - self.firing
        above = above + (firing_negative - seen) * self.firing**2
        return below, above + silent_negative * (self.firing + silent_positive / 2) ** 2

    def _tie_correction(self) -> np.ndarray:
        """1 − Σ(t³ − t)/(N³ − N) over ties of size t, [latents]; 0 where all images tie."""
        heads = self.runs.heads
        sizes = (self.runs.last[heads] - self.runs.first[heads] + 1).double()
        ties = self._sum_by_latent(self.latent[heads], sizes * sizes * sizes - sizes)
        silent = self.silent[:, 0]
        n = float(self.images)
        return 1 - (ties + silent**3 - silent) / max(n**3 - n, 1)

    def kruskal_wallis(self) -> np.ndarray:
        """p of the test that the latent's scores are alike in all classes (Kruskal & Wallis 1952), NaN if undefined."""
        present = self.class_images > 0
        correction = self._tie_correction()
        if present.sum() < 2:
            return np.full(self.shape[0], np.nan)
        n = float(self.images)
        sums = (self._rank_sums()[:, present] ** 2 / self.class_images[present]).sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            h = (12 / (n * (n + 1)) * sums - 3 * (n + 1)) / correction
        p = stats.chi2.sf(np.maximum(h, 0), present.sum() - 1)
        return np.where(correction > 0, p, np.nan)

    def spearman(self, column: LabelColumn) -> tuple[np.ndarray, np.ndarray]:
        """Spearman's rank correlation with a column of numbers and its p (t with N − 2 degrees), NaN if undefined."""
        n = self.images
        undefined = np.full(self.shape[0], np.nan)
        if n < 3 or column.ranks is None:
            return undefined, undefined
        labeled = column.classes >= 0
        ranks = np.where(labeled, column.ranks - (n + 1) / 2, 0.0)
        # Centered label ranks add up to 0, so a constant can be taken from the scores: let silence be 0.
        device = self.latent.device
        silent = torch.from_numpy(self.silent[:, 0]).to(device)
        scores = (self._twice_rank() - (silent[self.latent] + 1)) / 2
        product = self._sum_by_latent(self.latent, scores * torch.from_numpy(ranks).to(device)[self.image])
        variance = (float(n) ** 3 - n) / 12 * self._tie_correction()
        scale = np.sqrt(variance * (ranks**2).sum())
        with np.errstate(invalid="ignore", divide="ignore"):
            rho = np.where(scale > 0, np.clip(product / scale, -1, 1), np.nan)
            t = np.abs(rho) * np.sqrt((n - 2) / np.maximum(1 - rho**2, 1e-300))
        return rho, np.where(np.isnan(rho), np.nan, 2 * stats.t.sf(t, n - 2))


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
    positive = np.asarray(positive, bool)
    n, others = int(positive.sum()), int((~positive).sum())
    if n == 0 or others == 0:
        return np.full(np.shape(values)[1], np.nan)
    ranks = stats.rankdata(values, axis=0)
    return (ranks[positive].sum(0) - n * (n + 1) / 2) / (n * others)
