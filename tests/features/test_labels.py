"""Label statistics equal scikit-learn, SciPy and counting by hand on any scores."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from saetool.features.labels import LabelColumn, auroc, benjamini_hochberg, label_statistics
from saetool.features.ranking import by_value

SEEDS = st.integers(0, 2**32 - 1)


def random_column(seed: int, images: int) -> LabelColumn:
    rng = np.random.default_rng(seed)
    names = ["crack", "sound", "other"][: rng.integers(1, 4)]
    values = [None if rng.random() < 0.2 else names[rng.integers(len(names))] for _ in range(images)]
    return LabelColumn.of_categories("kind", values, names)


def delong_error(positive: np.ndarray, negative: np.ndarray) -> float:
    if len(positive) < 2 or len(negative) < 2:
        return float("nan")
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    return np.sqrt(wins.mean(1).var(ddof=1) / len(positive) + wins.mean(0).var(ddof=1) / len(negative))


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_auroc_and_precision_equal_scikit_learn(random_scores, maxima_of, seed):
    dense = random_scores(seed)
    column = random_column(seed, len(dense))
    maxima = maxima_of(dense)
    found = label_statistics(maxima, by_value(maxima), column)
    known = column.classes >= 0
    for latent in range(dense.shape[1]):
        score = dense[known, latent]
        for class_ in range(len(column.names)):
            positive = column.classes[known] == class_
            assert found.firing_images[latent, class_] == (score[positive] > 0).sum()
            if not score.any() or positive.all() or not positive.any():
                assert np.isnan(found.auroc[latent, class_])
                assert np.isnan(found.average_precision[latent, class_])
                continue
            area = roc_auc_score(positive, score)
            assert found.auroc[latent, class_] == pytest.approx(area, abs=1e-12)
            wanted = average_precision_score(positive, score)
            assert found.average_precision[latent, class_] == pytest.approx(wanted, abs=1e-12)
            error = 1.959963984540054 * delong_error(score[positive], score[~positive])
            low, high = found.auroc_low[latent, class_], found.auroc_high[latent, class_]
            wanted = np.clip([area - error, area + error], 0, 1)
            pairs = int(min(positive.sum(), (~positive).sum()))
            if min(area, 1 - area) < 1e-9 and pairs > 1:  # scikit-learn rounds
                wanted = stats.binomtest(round(area * pairs), pairs).proportion_ci(0.95)
            assert low == pytest.approx(wanted[0], abs=1e-7, nan_ok=True)
            assert high == pytest.approx(wanted[1], abs=1e-7, nan_ok=True)


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_p_value_is_kruskal_wallis(random_scores, maxima_of, seed):
    dense = random_scores(seed, images=12)
    column = random_column(seed, 12)
    maxima = maxima_of(dense)
    found = label_statistics(maxima, by_value(maxima), column)
    known = column.classes >= 0
    for latent in range(dense.shape[1]):
        groups = [
            dense.astype(float)[column.classes == c, latent]
            for c in range(len(column.names))
            if (column.classes == c).any()
        ]
        if len(groups) < 2 or np.ptp(dense[known, latent]) == 0:
            assert np.isnan(found.p_value[latent])
        else:
            assert found.p_value[latent] == pytest.approx(stats.kruskal(*groups).pvalue, rel=1e-9)


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_numbers_are_correlated_by_rank(random_scores, maxima_of, seed):
    dense = random_scores(seed, images=10)
    rng = np.random.default_rng(seed)
    numbers = [None if rng.random() < 0.2 else float(rng.integers(0, 4)) for _ in range(10)]
    column = LabelColumn.of_numbers("probability", numbers)
    maxima = maxima_of(dense)
    found = label_statistics(maxima, by_value(maxima), column)
    known = np.array([value is not None for value in numbers])
    y = np.array([value for value in numbers if value is not None])
    for latent in range(dense.shape[1]):
        x = dense[known, latent]
        if known.sum() < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
            assert np.isnan(found.spearman[latent])
            assert np.isnan(found.p_value[latent])
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = stats.spearmanr(x, y)
        assert found.spearman[latent] == pytest.approx(wanted.statistic, abs=1e-12)
        assert found.p_value[latent] == pytest.approx(wanted.pvalue, abs=1e-6)


def test_mass_shares_count_every_token_not_only_the_maximum(maxima_of):
    dense = np.array([[1, 2], [1, 0], [2, 0]], np.float32)
    mass = np.array([[1, 8], [2, 0], [5, 0]], np.float32)
    maxima = maxima_of(dense, mass)
    column = LabelColumn.of_categories("kind", ["a", "b", "b"])
    found = label_statistics(maxima, by_value(maxima), column)
    np.testing.assert_allclose(found.mass_share, [[1 / 8, 7 / 8], [1, 0]])
    np.testing.assert_allclose(found.purity(), [7 / 8, 1])
    entropy = -(1 / 8 * np.log(1 / 8) + 7 / 8 * np.log(7 / 8)) / np.log(2)
    np.testing.assert_allclose(found.entropy(), [entropy, 0])


def test_a_silent_latent_has_no_numbers(maxima_of):
    maxima = maxima_of(np.zeros((4, 2), np.float32))
    column = LabelColumn.of_categories("kind", ["a", "b", "b", "a"])
    found = label_statistics(maxima, by_value(maxima), column)
    for values in (found.auroc, found.mass_share, found.p_value, found.purity(), found.entropy()):
        assert np.isnan(values).all()
    assert (found.best() == -1).all()


def test_numbers_are_cut_at_their_median():
    column = LabelColumn.of_numbers("p", [0.0, 0.0, 1 / 3, 1.0, None])
    assert column.names == ["≤ 0", "> 0"]
    assert column.classes.tolist() == [0, 0, 1, 1, -1]
    topped = LabelColumn.of_numbers("p", [0.0, 1.0, 1.0])
    assert topped.classes.tolist() == [0, 1, 1]


def test_the_interval_covers_at_perfect_separation(maxima_of):
    """Normal scores with a true AUROC of .9, four images a side: separation is common and proves little."""
    rng = np.random.default_rng(0)
    latents, distance = 2000, 2**0.5 * stats.norm.ppf(0.9)
    dense = np.concatenate([rng.normal(10 + distance, 1, (4, latents)), rng.normal(10, 1, (4, latents))])
    maxima = maxima_of(dense.astype(np.float32))
    found = label_statistics(maxima, by_value(maxima), LabelColumn.of_categories("kind", [*"aaaabbbb"]))
    separate = found.auroc[:, 0] == 1
    assert separate.mean() > 0.2
    assert (found.auroc_low[separate, 0] < 0.9).all()
    assert found.auroc_low[separate, 0] == pytest.approx(np.full(separate.sum(), 0.025**0.25))
    assert (found.auroc_high[separate, 0] == 1).all()


def test_best_class_is_the_first_of_equals(maxima_of):
    dense = np.array([[1], [1], [0], [0]], np.float32)
    maxima = maxima_of(dense)
    column = LabelColumn.of_categories("kind", ["a", "b", "c", "c"], ["a", "b", "c"])
    assert label_statistics(maxima, by_value(maxima), column).best().tolist() == [0]


@settings(max_examples=50, deadline=None)
@given(SEEDS)
def test_dense_auroc_equals_scikit_learn(random_scores, seed):
    dense = random_scores(seed, images=8)
    positive = np.arange(8) < 3
    wanted = [roc_auc_score(positive, column) for column in dense.T]
    np.testing.assert_allclose(auroc(dense, positive), wanted)


def test_q_values_equal_scipy_and_skip_undefined_tests():
    p = np.array([0.01, np.nan, 0.04, 0.03, 0.9])
    q = benjamini_hochberg(p)
    assert np.isnan(q[1])
    np.testing.assert_allclose(q[[0, 2, 3, 4]], stats.false_discovery_control(p[[0, 2, 3, 4]]))
