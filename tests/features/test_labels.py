"""Label statistics equal scikit-learn, SciPy and counting by hand on any scores."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
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


@settings(max_examples=60, deadline=None)
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


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_p_value_is_mann_whitney_and_of_two_classes_kruskal_wallis(random_scores, maxima_of, seed):
    dense = random_scores(seed, images=12).astype(float)
    column = random_column(seed, 12)
    maxima = maxima_of(dense.astype(np.float32))
    found = label_statistics(maxima, by_value(maxima), column)
    known = column.classes >= 0
    for latent in range(dense.shape[1]):
        for c in range(len(column.names)):
            inside, outside = dense[column.classes == c, latent], dense[known & (column.classes != c), latent]
            if not len(inside) or not len(outside) or np.ptp(dense[known, latent]) == 0:
                assert np.isnan(found.p_value[latent, c])
                continue
            test = stats.mannwhitneyu(inside, outside, use_continuity=False, method="asymptotic")
            assert found.p_value[latent, c] == pytest.approx(test.pvalue, rel=1e-9)
            assert found.p_value[latent, c] == pytest.approx(stats.kruskal(inside, outside).pvalue, rel=1e-9)


def obuchowski_error(scores: np.ndarray, positive: np.ndarray, groups: np.ndarray) -> float:
    """Obuchowski (1997), as the paper writes it: a loop over groups."""
    inside, outside = scores[positive], scores[~positive]
    wins = (inside[:, None] > outside) + 0.5 * (inside[:, None] == outside)
    area, m, n = wins.mean(), len(inside), len(outside)
    first, second, both = [], [], []
    for group in np.unique(groups):
        a = (wins.mean(1) - area)[groups[positive] == group]
        b = (wins.mean(0) - area)[groups[~positive] == group]
        first += [a.sum()] if len(a) else []
        second += [b.sum()] if len(b) else []
        both.append(a.sum() * b.sum())
    if min(len(first), len(second)) < 2:
        return float("nan")
    s10 = len(first) / (len(first) - 1) / m * np.square(first).sum()
    s01 = len(second) / (len(second) - 1) / n * np.square(second).sum()
    s11 = len(both) / (len(both) - 1) * np.sum(both)
    return np.sqrt(max(s10 / m + s01 / n + 2 * s11 / (m * n), 0))


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_intervals_and_p_of_grouped_images_are_those_of_a_loop_over_groups(random_scores, maxima_of, seed):
    dense, column = random_scores(seed, images=20), random_column(seed, 20)
    groups = np.random.default_rng(seed).integers(0, 6, 20) * 7
    maxima = maxima_of(dense)
    found = label_statistics(maxima, by_value(maxima), column, None, groups)
    plain = label_statistics(maxima, by_value(maxima), column)
    known = column.classes >= 0
    count = len(np.unique(groups[known]))
    for latent, c in np.ndindex(dense.shape[1], len(column.names)):
        positive, score = column.classes[known] == c, dense[known, latent].astype(float)
        np.testing.assert_array_equal(found.auroc[latent, c], plain.auroc[latent, c])
        if not score.any() or positive.all() or not positive.any():
            continue
        area, error = found.auroc[latent, c], obuchowski_error(score, positive, groups[known])
        if 1e-9 < area < 1 - 1e-9:
            reach = stats.t.ppf(0.975, max(count - 1, 1)) * error
            if error < 1e-7:  # all groups stand alike
                sides = [len(np.unique(groups[known][side])) for side in (positive, ~positive)]
                reach = 1 - 0.025 ** (1 / min(sides))
            ends = found.auroc_low[latent, c], found.auroc_high[latent, c]
            np.testing.assert_allclose(ends, np.clip([area - reach, area + reach], 0, 1), atol=1e-7)
        if np.isnan(error) or np.isnan(plain.p_value[latent, c]):
            assert np.isnan(found.p_value[latent, c])
            continue
        alone = abs(area - 0.5) / stats.norm.isf(plain.p_value[latent, c] / 2) if abs(area - 0.5) > 1e-9 else 1.0
        wanted = 2 * stats.t.sf(abs(area - 0.5) / max(alone, error), count - 1)
        assert found.p_value[latent, c] == pytest.approx(wanted, rel=1e-5, abs=1e-12)


def test_copies_of_images_in_groups_are_no_more_evidence_than_the_images(random_scores, maxima_of):
    dense, column = random_scores(3, images=24), random_column(3, 24)
    ten = np.repeat(np.arange(24), 10)
    many = LabelColumn.of_categories(
        "kind", [column.names[c] if c >= 0 else None for c in column.classes[ten]], column.names
    )
    maxima = maxima_of(dense[ten])
    copied = label_statistics(maxima, by_value(maxima), many, None, ten)
    pretended = label_statistics(maxima, by_value(maxima), many)
    maxima = maxima_of(dense)
    once = label_statistics(maxima, by_value(maxima), column, None, np.arange(24))
    np.testing.assert_allclose(copied.auroc_low, once.auroc_low, atol=1e-9)
    sure = ~np.isnan(once.p_value) & (once.p_value < 0.9)
    assert sure.any()
    assert (pretended.p_value[sure] < once.p_value[sure]).all()
    assert (copied.p_value[sure] > pretended.p_value[sure]).all()


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_held_out_numbers_are_those_of_held_out_images_alone(random_scores, maxima_of, seed):
    dense, column = random_scores(seed, images=24), random_column(seed, 24)
    held_out = np.random.default_rng(seed).random(24) < 0.4
    maxima = maxima_of(dense)
    found = label_statistics(maxima, by_value(maxima), column, held_out)
    for part, area in ((~held_out, found.train_auroc), (held_out, found.held_out_auroc)):
        known = part & (column.classes >= 0)
        for latent, c in np.ndindex(dense.shape[1], len(column.names)):
            positive = column.classes[known] == c
            fires = dense[column.classes >= 0, latent].any()
            if not part.any() or not fires or positive.all() or not positive.any():
                assert np.isnan(area[latent, c]) or not held_out.any()
                continue
            assert area[latent, c] == pytest.approx(roc_auc_score(positive, dense[known, latent]), abs=1e-12)
    if held_out.any() and not np.isnan(found.train_auroc).all():
        best = found.best()
        chosen = found.train_auroc[np.arange(len(best)), best]
        least = np.where(np.isnan(found.train_auroc), -1, found.train_auroc).max(1)
        np.testing.assert_array_equal(np.where(best >= 0, chosen, least), least)


@settings(max_examples=40, deadline=None)
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
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = stats.spearmanr(x, y)
        assert found.spearman[latent] == pytest.approx(wanted.statistic, abs=1e-12)


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


def test_a_latent_that_is_silent_on_all_held_out_images_is_not_surely_at_one_half(maxima_of):
    dense, held_out = np.zeros((16, 1), np.float32), np.arange(16) >= 8
    dense[0] = 1.0
    column = LabelColumn.of_categories("kind", [*"aaaabbbb"] * 2)
    maxima = maxima_of(dense)
    found = label_statistics(maxima, by_value(maxima), column, held_out)
    assert found.held_out_auroc[0, 0] == 0.5
    reach = 1 - 0.025**0.25
    interval = found.held_out_low[0, 0], found.held_out_high[0, 0]
    assert interval == pytest.approx((max(0.5 - reach, 0), min(0.5 + reach, 1)))


def test_best_class_is_the_first_of_equals(maxima_of):
    dense = np.array([[1], [1], [0], [0]], np.float32)
    maxima = maxima_of(dense)
    column = LabelColumn.of_categories("kind", ["a", "b", "c", "c"], ["a", "b", "c"])
    assert label_statistics(maxima, by_value(maxima), column).best().tolist() == [0]


@settings(max_examples=20, deadline=None)
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
