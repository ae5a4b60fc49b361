"""How much do a few latents know? k-sparse probes (Gurnee et al. 2023, 2305.01610) and full linear probes on labels."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from saetool.evaluation.splits import Split, side_by_side

K_SPARSE = (1, 2, 5, 16)
"""Numbers of latents a probe may read."""
ITERATIONS = 200
"""Of L-BFGS on standardized features; a probe that has not converged by then is used as it is."""
STRENGTHS = (1.0, 10.0, 100.0)
"""Inverse ridges times number of features that a full probe chooses from."""


class Standardizer:
    """Features minus their training mean, over their training standard deviation; constant features become 0."""

    def __init__(self, train: np.ndarray):
        moments = train if len(train) else np.zeros((1, train.shape[1]))  # no training image has the label
        self.mean = moments.mean(0, dtype=np.float64)
        deviation = moments.std(0, dtype=np.float64)
        self.factor = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return (features - self.mean) * self.factor


def fit_probe(features: np.ndarray, labels: np.ndarray, strength: float = 1.0) -> LogisticRegression:
    """Fit a logistic regression (balanced classes, ridge of 1/`strength`) on standardized features [images, n]."""
    return LogisticRegression(C=strength, class_weight="balanced", max_iter=ITERATIONS).fit(features, labels)


@contextmanager
def unconverged() -> Iterator[None]:
    """While the block runs, a probe that has not converged gives no warning; to be entered in one thread only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def fit_full_probe(features: np.ndarray, labels: np.ndarray) -> LogisticRegression:
    """Fit a probe on all features, its ridge chosen from STRENGTHS / n on every fifth image, then fitted on all.

    The strength is divided by the number of features, so that many features are not regularized less than few.
    """
    checked = np.arange(len(labels)) % 5 == 4
    strengths = [strength / features.shape[1] for strength in STRENGTHS]
    seen = set(np.unique(labels))
    if set(np.unique(labels[~checked])) != seen or set(np.unique(labels[checked])) != seen:
        return fit_probe(features, labels, strengths[1])

    def score(strength: float) -> float:
        probe = fit_probe(features[~checked], labels[~checked], strength)
        return float(balanced_accuracy_score(labels[checked], probe.predict(features[checked])))

    return fit_probe(features, labels, max(strengths, key=score))


def rotate(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates in the span of the training images where features outnumber images: the same ridge probe.

    The weights of a ridge-regularized linear model lie in that span and inner products do not change, so predictions
    stay the same, at the size images × images instead of images × features.
    """
    if train.shape[1] <= train.shape[0]:
        return train, test
    values, vectors = np.linalg.eigh(train @ train.T)
    kept = values > values.max(initial=0) * 1e-12
    root = np.sqrt(values[kept])
    return vectors[:, kept] * root, (test @ train.T) @ (vectors[:, kept] / root)


class Prepared:
    """Features of training and held-out images, standardized on training images, and the same in fewer coordinates."""

    def __init__(self, train: Float[np.ndarray, "train n"], test: Float[np.ndarray, "test n"]):
        scale = Standardizer(train)
        self.train, self.test = scale(train), scale(test)
        self.whole = rotate(self.train, self.test)


def choose_latents(
    train: Float[np.ndarray, "images n"], members: Bool[np.ndarray, "classes images"], k: int
) -> Int[np.ndarray, "classes k"]:
    """Return, for each class, the k features whose standardized class means differ most, ties to the lowest.

    A class without both members and others has no order; its row means nothing.
    """
    weights = members.astype(train.dtype)
    sums, counts = weights @ train, weights.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = np.abs(sums / counts - (train.sum(0) - sums) / (len(train) - counts))
    return np.argsort(-difference, axis=1, kind="stable")[:, :k]


def probe_labels(prepared: Prepared, splits: list[Split], ks: tuple[int, ...] = K_SPARSE) -> list[dict]:
    """Probe image features for each class of each label against the rest; fit on training images, score on held-out.

    Returns, a label, mean balanced accuracy and mean AUROC over classes for each k ("1", "2", …) and for all features
    ("full"); of two classes one suffices; classes that lack members or others on either side are left out, and null
    where none remains.
    """
    questions = []
    for i, split in enumerate(splits):
        positive, truth = split.members(split.train), split.members(split.test)
        order = choose_latents(prepared.train, positive, max(ks))
        for j in range(1 if len(split.classes) == 2 else 0, len(split.classes)):
            if _both(positive[j]) and _both(truth[j]):
                questions += [(i, str(k), positive[j], truth[j], order[j, :k]) for k in ks]
                questions.append((i, "full", positive[j], truth[j], None))

    def answer(question: tuple[int, str, np.ndarray, np.ndarray, np.ndarray | None]) -> tuple[float, float]:
        _, _, positive, truth, chosen = question
        if chosen is None:
            return _score(fit_full_probe(prepared.whole[0], positive), prepared.whole[1], truth)
        return _score(fit_probe(prepared.train[:, chosen], positive), prepared.test[:, chosen], truth)

    with unconverged():
        answers = side_by_side(answer, questions)
    scores: list[dict[str, list]] = [{str(k): [] for k in ks} | {"full": []} for _ in splits]
    for (i, key, *_), score in zip(questions, answers, strict=True):
        scores[i][key].append(score)
    return [{key: _mean(found) for key, found in label.items()} for label in scores]


def _both(members: np.ndarray) -> bool:
    return bool(members.any()) and not bool(members.all())


def _score(probe: LogisticRegression, test: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    accuracy = balanced_accuracy_score(truth, probe.predict(test))
    return float(accuracy), float(roc_auc_score(truth, probe.decision_function(test)))


def _mean(found: list[tuple[float, float]]) -> dict[str, float | None]:
    if not found:
        return {"balanced_accuracy": None, "auroc": None}
    accuracy, auroc = np.mean(found, axis=0)
    return {"balanced_accuracy": float(accuracy), "auroc": float(auroc)}
