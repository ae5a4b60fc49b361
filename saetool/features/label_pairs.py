"""The firing (latent, labeled image) pairs of a block of latents, and what their ranks say of a label.

Only firing pairs are touched: the images at 0 are one tie at the bottom.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from scipy import stats
from torch import Tensor

from saetool.features.maxima import Maxima
from saetool.features.runs import counts_of, heads_of, order_of, spread_over, sums_of_runs

_NORMAL_95 = 1.959963984540054


NO_ERROR = 1e-7
"""A standard error, or half an interval, below this is rounding's."""


def exact_margin(pairs: np.ndarray | int) -> np.ndarray:
    """Return how far from an AUROC its 95 % interval reaches where all of a class stand alike to all others.

    So many disjoint pairs are independent, each in order with chance AUROC: the interval of Clopper & Pearson (1934)
    for as many successes out of as many ends at 0.025 ** (1 / pairs). Where all are equal, none of them is surely not.

    >>> round(float(exact_margin(10)), 3)
    0.308
    """
    return 1 - 0.025 ** (1 / np.maximum(pairs, 1))


@dataclass(frozen=True)
class LabelColumn:
    """One column of labels: `classes` [images] int64 index `names`, −1 where unlabeled; numbers keep their `ranks`.

    A column of numbers has two classes, up to and above its median, and midranks [images] float64 for correlation.
    """

    name: str
    names: list[str]
    classes: np.ndarray
    ranks: np.ndarray | None = None

    def only(self, images: Bool[np.ndarray, "images"]) -> "LabelColumn":
        return replace(self, classes=np.where(images, self.classes, -1))

    def shares(self) -> list[float]:
        """Return which share of the labeled images each class has."""
        counts = np.bincount(self.classes[self.classes >= 0], minlength=len(self.names))
        return (counts / max(counts.sum(), 1)).tolist()

    @classmethod
    def of(cls, info: dict[str, Any], values: list) -> "LabelColumn":
        """Take values as `info`, an artifact's description of the column, says what they are."""
        if info["kind"] == "number":
            return cls.of_numbers(info["name"], values)
        return cls.of_categories(info["name"], values, info["classes"])

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


@dataclass(frozen=True)
class _Grouping:
    """Which group each firing pair is in, and how many labeled images of each class each group has."""

    count: int
    """Groups that have a labeled image."""
    order: Tensor
    """The pairs in the order of their (latent, group) cells."""
    cell_of: Tensor
    """The number of each pair's cell among those that occur, in that order."""
    latent: Tensor
    group: Tensor
    """Of each cell that occurs."""
    members: np.ndarray
    """[groups, classes] labeled images."""

    @classmethod
    def of(cls, groups: np.ndarray, column: LabelColumn, latent: Tensor, image: Tensor) -> "_Grouping":
        known = column.classes >= 0
        places = np.full(len(groups), -1)
        numbers, places[known] = np.unique(groups[known], return_inverse=True)
        members = np.zeros((len(numbers), len(column.names)))
        np.add.at(members, (places[known], column.classes[known]), 1.0)
        cells = latent * len(numbers) + torch.from_numpy(places).to(latent.device)[image]
        order, count = order_of(cells), max(len(numbers), 1)
        occurring, cell_of = torch.unique_consecutive(cells[order], return_inverse=True)
        return cls(len(numbers), order, cell_of, occurring // count, occurring % count, members)

    def sums(self, values: Tensor) -> Tensor:
        """Return the sum of a number a pair over each cell."""
        return sums_of_runs(self.cell_of, values[self.order], len(self.latent))


@dataclass(frozen=True)
class Pairs:
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
    grouping: _Grouping | None = None

    @classmethod
    def of(
        cls, maxima: Maxima, descending: Tensor, column: LabelColumn, groups: Int[np.ndarray, "images"] | None = None
    ) -> "Pairs":
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
            grouping=None if groups is None else _Grouping.of(groups, column, latent, maxima.image[record]),
        )

    @property
    def both(self) -> np.ndarray:
        """Which classes have images, and others beside them, [classes]."""
        return (self.class_images > 0) & (self.class_images < self.images)

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

    def auroc(self) -> np.ndarray:
        """Mann–Whitney: the chance that an image of the class scores above another one, ties counted half."""
        n = self.class_images
        rank_sums = (self.sum_by_class(self._twice_rank()) + (n - self.firing) * (self.silent + 1)) / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            return (rank_sums - n * (n + 1) / 2) / (n * (self.images - n))

    def average_precision(self) -> np.ndarray:
        """Σ precision · Δrecall over falling thresholds, ties taken together (scikit-learn's definition)."""
        hits, above = self.class_runs.last + 1, self.runs.last[self.by_class] + 1
        precision = self._collect(self.cell, hits.double() / above.double())
        rest = (self.class_images - self.firing) * self.class_images / max(self.images, 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (precision + rest) / self.class_images

    def interval(self, auroc: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """DeLong's 95 % interval; where all of a class stand alike to all others, as far as an exact bound.

        DeLong's error is 0 there. Where images form groups, the error is Obuchowski's and the pairs are of groups.
        """
        sides = self.class_images, self.images - self.class_images
        width = _NORMAL_95
        if self.grouping is not None:
            there = self.grouping.members > 0
            others = self.grouping.members.sum(1, keepdims=True) > self.grouping.members
            sides = there.sum(0), others.sum(0)
            width = float(stats.t.ppf(0.975, max(self.grouping.count - 1, 1)))
        alike = (auroc == 0) | (auroc == 1) | (error < NO_ERROR)
        margin = np.broadcast_to(exact_margin(np.minimum(*sides)), auroc.shape)
        error = np.where(alike & ~np.isnan(error), margin, width * error)
        return np.clip(auroc - error, 0, 1), np.clip(auroc + error, 0, 1)

    def standard_error(self, auroc: np.ndarray) -> np.ndarray:
        """DeLong's standard error of the AUROC (DeLong, DeLong & Clarke-Pearson 1988), of groups Obuchowski's (1997);
        NaN with fewer than 2 a side."""
        if self.grouping is not None:
            return self._clustered_error(self.grouping, auroc)
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

    def _clustered_error(self, grouping: _Grouping, auroc: np.ndarray) -> np.ndarray:
        """The error of groups drawn as one: Σ over groups of (its placements less their mean)², both sides, and twice
        their product. Groups without a firing image all add the same an image; the others are counted one by one."""
        found = np.full(auroc.shape, np.nan)
        latent, group = grouping.latent.cpu().numpy(), grouping.group.cpu().numpy()
        above_all = self.runs.first + self.runs.last + 1  # twice the pairs above each, its own tie counted half
        for c in range(self.shape[1]):
            members, others = grouping.members[:, c], grouping.members.sum(1) - grouping.members[:, c]
            n, m = others.sum(), members.sum()
            counts = np.array([(members > 0).sum(), (others > 0).sum(), grouping.count])
            if counts[:2].min() < 2:
                continue
            inside, above = self._of_class(c)
            outside = ~inside
            # In halves: of a positive, negatives below it; of a negative, positives above it.
            placed = (2 * n - (above_all - above)).double() / (2 * n)
            passed = above.double() / (2 * m)
            zero = torch.zeros_like(placed)
            firing, placements = grouping.sums(inside.double()), grouping.sums(torch.where(inside, placed, zero))
            firing_others, passings = grouping.sums(outside.double()), grouping.sums(torch.where(outside, passed, zero))
            theta, silent = auroc[:, c], self.silent[:, 0]
            silent_members = m - self.firing[:, c]
            a0 = (silent - silent_members) / (2 * n) - theta
            b0 = (self.firing[:, c] + silent_members / 2) / m - theta
            a, b = a0[latent] * members[group], b0[latent] * others[group]
            k, p = firing.cpu().numpy(), placements.cpu().numpy()
            j, q = firing_others.cpu().numpy(), passings.cpu().numpy()
            more_a, more_b = p - k * (a0 + theta)[latent], q - j * (b0 + theta)[latent]

            def total(of_silent: np.ndarray, cell: np.ndarray) -> np.ndarray:
                return of_silent + np.bincount(latent, cell, self.shape[0])

            first = total(a0**2 * (members**2).sum(), (a + more_a) ** 2 - a**2) / m**2
            second = total(b0**2 * (others**2).sum(), (b + more_b) ** 2 - b**2) / n**2
            both = total(a0 * b0 * (members * others).sum(), (a + more_a) * (b + more_b) - a * b) / (m * n)
            factors = counts / (counts - 1)
            found[:, c] = np.sqrt(np.maximum(factors @ np.stack([first, second, 2 * both]), 0))
        return found

    def _of_class(self, c: int) -> tuple[Tensor, Tensor]:
        """Which pairs are of a class, and twice the number of such pairs above each, of its tie counted half."""
        inside = torch.empty(len(self.latent), dtype=torch.bool, device=self.latent.device)
        inside[self.by_class] = self.cell % self.shape[1] == c
        until = torch.cat([inside.new_zeros(1, dtype=torch.int64), inside.long().cumsum(0)])
        heads = heads_of(self.latent)
        start = spread_over(heads, heads, len(inside))
        tie_first, tie_end = start + self.runs.first, start + self.runs.last + 1
        return inside, until[tie_first] + until[tie_end] - 2 * until[start]

    def _tie_correction(self) -> np.ndarray:
        """1 − Σ(t³ − t)/(N³ − N) over ties of size t, [latents]; 0 where all images tie."""
        heads = self.runs.heads
        sizes = (self.runs.last[heads] - self.runs.first[heads] + 1).double()
        ties = self._sum_by_latent(self.latent[heads], sizes * sizes * sizes - sizes)
        silent = self.silent[:, 0]
        n = float(self.images)
        return 1 - (ties + silent**3 - silent) / max(n**3 - n, 1)

    def p_values(self, auroc: np.ndarray, clustered: np.ndarray) -> np.ndarray:
        """p of the test that an image of the class scores as others do: AUROC one half; NaN where it is undefined.

        Mann & Whitney's (1947), ties corrected; of two classes Kruskal & Wallis' as well. Where images form groups, the
        error is Obuchowski's (`clustered`) if that is larger, and t has one degree of freedom less than groups.
        """
        n, others = self.class_images, self.images - self.class_images
        with np.errstate(invalid="ignore", divide="ignore"):
            error = np.sqrt((self.images + 1) * self._tie_correction()[:, None] / (12 * n * others))
            if self.grouping is None:
                return np.where(error > 0, 2 * stats.norm.sf(np.abs(auroc - 0.5) / error), np.nan)
            t = np.abs(auroc - 0.5) / np.maximum(error, clustered)
            p = 2 * stats.t.sf(t, max(self.grouping.count - 1, 1))
            return np.where((error > 0) & ~np.isnan(clustered), p, np.nan)

    def spearman(self, column: LabelColumn) -> np.ndarray:
        """Spearman's rank correlation with a column of numbers; NaN if undefined, and of categories."""
        n = self.images
        if n < 3 or column.ranks is None:
            return np.full(self.shape[0], np.nan)
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
            return np.where(scale > 0, np.clip(product / scale, -1, 1), np.nan)
