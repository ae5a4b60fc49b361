"""How much do a few latents know? k-sparse probes (Gurnee et al. 2023, 2305.01610) and full linear probes on labels."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

K_SPARSE = (1, 2, 5, 16)
"""Numbers of latents a probe may read."""

ITERATIONS = 200
"""Of L-BFGS on standardized features; a probe that has not converged by then is used as it is."""


STRENGTHS = (1.0, 10.0, 100.0)
"""Inverse ridges times number of features that a full probe chooses from."""


class Standardizer:
    """Features minus their training mean, over their training standard deviation; constant features become 0."""

    def __init__(self, train: np.ndarray):
        self.mean = train.mean(0, dtype=np.float64)
        deviation = train.std(0, dtype=np.float64)
        self.factor = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 0)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Map features [images, n]."""
        return (features - self.mean) * self.factor


def fit_probe(features: np.ndarray, labels: np.ndarray, strength: float = 1.0) -> LogisticRegression:
    """Fit a logistic regression (balanced classes, ridge of 1/`strength`) on standardized features [images, n]."""
    probe = LogisticRegression(C=strength, class_weight="balanced", max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return probe.fit(features, labels)


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


def choose_latents(train: np.ndarray, positive: np.ndarray, k: int) -> np.ndarray:
    """Return the k features whose standardized class means differ most on training images, ties to the lowest."""
    difference = np.abs(train[positive].mean(0) - train[~positive].mean(0))
    return np.argsort(-difference, kind="stable")[:k]


def probe_classes(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    classes: list[str],
    ks: tuple[int, ...] = K_SPARSE,
) -> dict:
    """Probe image features [images, n] for each class against the rest; fit on training images, score on held-out.

    Returns mean balanced accuracy and mean AUROC over classes for each k ("1", "2", …) and for all features
    ("full"); of two classes one suffices; classes that lack members or others on either side are left out, and null
    where none remains.
    """
    scale = Standardizer(train)
    train, test = scale(train), scale(test)
    whole = rotate(train, test)
    scores: dict[str, list[tuple[float, float]]] = {str(k): [] for k in ks} | {"full": []}
    for name in classes[1:] if len(classes) == 2 else classes:
        positive, truth = train_labels == name, test_labels == name
        if not _both(positive) or not _both(truth):
            continue
        order = choose_latents(train, positive, max(ks))
        for k in ks:
            probe = fit_probe(train[:, order[:k]], positive)
            scores[str(k)].append(_score(probe, test[:, order[:k]], truth))
        scores["full"].append(_score(fit_full_probe(whole[0], positive), whole[1], truth))
    return {key: _mean(found) for key, found in scores.items()}


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
