"""AUROC equals scikit-learn's; probes and alignment find a planted latent and nothing in shuffled labels."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm, rankdata, t as student
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from saetool.evaluation.alignment import SHUFFLES, Best, align, auroc_with_interval, aurocs, choose
from saetool.evaluation.probing import Prepared, choose_latents, fit_full_probe, fit_probe, probe_labels
from saetool.evaluation.splits import Split


def planted(images=200, latents=30, seed=0, informative=7, strength=2.0):
    """Sparse values in which one latent is larger on images of class 'b'."""
    rng = np.random.default_rng(seed)
    labels = np.array(["a", "b", "c"])[rng.integers(0, 3, images)]
    values = rng.exponential(size=(images, latents)) * (rng.random((images, latents)) < 0.4)
    values[:, informative] += strength * (labels == "b") * rng.random(images)
    return values.astype(np.float32), labels


def auroc(members, values) -> float:
    """Return what scikit-learn's roc_auc_score does, many times as fast."""
    inside, outside = members.sum(), (~members).sum()
    return (rankdata(values)[members].sum() - inside * (inside + 1) / 2) / (inside * outside)


def test_aurocs_of_all_classes_equal_sklearn():
    values, labels = planted(60, 8)
    assert auroc(labels == "b", values[:, 1]) == pytest.approx(roc_auc_score(labels == "b", values[:, 1]), abs=1e-12)
    found = aurocs(values, Split(["a", "b", "c"], labels, labels).members(labels))
    for i, name in enumerate("abc"):
        for j in range(5):
            assert float(found[i, j]) == pytest.approx(roc_auc_score(labels == name, values[:, j]), abs=1e-12)


def features(values):
    return {"max": values}


def aligned(train, test, splits, seed=0, beside=None):
    """Return the table of each label."""
    best, shuffled = choose(train, test, splits, seed)
    others = beside or [[None] * len(split.classes) for split in splits]
    return [align(*rows, split.classes) for *rows, split in zip(best, shuffled, others, splits, strict=True)]


def test_an_empty_class_has_no_auroc():
    values = features(np.random.default_rng(0).random((4, 3)))
    (found,) = aligned(values, values, [Split(["a", "b", "c"], np.array(list("aabb")), np.array(list("aaaa")))])
    assert [row["auroc"]["value"] for row in found["classes"]] == [None, None, None]
    assert found["classes"][2]["latent"] is None
    assert found["mean_auroc"] is None


def test_alignment_finds_the_planted_latent_and_the_control_nothing():
    train, train_labels = planted(400, seed=0)
    test, test_labels = planted(400, seed=1)
    other = Split(["x", "y"], *(np.where(labels == "b", "x", "y") for labels in (train_labels, test_labels)))
    split = Split(["a", "b", "c"], train_labels, test_labels)
    found, again = aligned(features(train), features(test), [split, other])
    assert again["classes"][0] == found["classes"][1] | {"class": "x"}  # labels asked together do not mix
    b = found["classes"][1]
    assert (b["latent"], b["sign"]) == (7, 1)
    assert b["auroc"]["value"] == pytest.approx(roc_auc_score(test_labels == "b", test[:, 7]), abs=1e-9)
    assert b["auroc"]["value"] > 0.75
    assert abs(found["control_mean_auroc"] - 0.5) < 0.03
    assert len(found["control"]) == 3 * SHUFFLES
    assert np.std(found["control"]) > 0.01  # every time other labels


def test_a_latent_that_is_silent_on_a_class_and_any_pooling_may_be_chosen():
    (train, train_labels), (test, test_labels) = planted(300, seed=0), planted(300, seed=1)
    split = Split(["b"], train_labels, test_labels)
    noise = np.random.default_rng(5).random((2, 300, 30)).astype(np.float32)
    (found,) = aligned(
        {"max": noise[0], "mean": noise[0], "min": -train}, {"max": noise[1], "mean": noise[1], "min": -test}, [split]
    )
    row = found["classes"][0]
    assert (row["latent"], row["pooling"], row["sign"]) == (7, "min", -1)
    assert row["auroc"]["value"] == pytest.approx(roc_auc_score(test_labels == "b", test[:, 7]), abs=1e-9)
    assert row["train_auroc"] == pytest.approx(roc_auc_score(train_labels == "b", train[:, 7]), abs=1e-9)


def test_a_difference_is_paired_and_its_interval_is_that_of_resampled_images():
    (train, train_labels), (test, test_labels) = planted(300, seed=0), planted(300, seed=1)
    weaker, held = train + 0.0, test + 0.0
    rng = np.random.default_rng(2)
    weaker[:, 7] += rng.normal(size=300) * 0.7
    held[:, 7] += rng.normal(size=300) * 0.7
    split = Split(["b"], train_labels, test_labels)
    beside, _ = choose(features(weaker), features(held), [split], 0)
    (found,) = aligned(features(train), features(test), [split], beside=beside)
    row, members = found["classes"][0], test_labels == "b"
    for got, scores in (
        (row["auroc"], [roc_auc_score(members, test[:, 7])]),
        (row["difference"], [roc_auc_score(members, test[:, 7]), -roc_auc_score(members, held[:, 7])]),
    ):
        assert got["value"] == pytest.approx(sum(scores), abs=1e-9)
    draws = []
    for _ in range(400):
        rows = rng.integers(0, 300, 300)
        draws.append([auroc(members[rows], values[rows, 7]) for values in (test, held)])
    own, theirs = np.array(draws).T
    for got, drawn in ((row["auroc"], own), (row["difference"], own - theirs)):
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert got["low"] == pytest.approx(low, abs=0.02)
        assert got["high"] == pytest.approx(high, abs=0.02)


def test_intervals_of_grouped_images_are_those_of_resampled_groups():
    """Ten near copies of an image say what the image says."""
    (train, train_labels), (few, few_labels) = planted(300, seed=0), planted(60, strength=1.0, seed=1)
    groups = np.repeat(np.arange(60), 10)
    rng = np.random.default_rng(2)
    test, test_labels = few[groups] + rng.normal(size=(600, 30)) * 0.05, few_labels[groups]
    members = test_labels == "b"
    alone = aligned(features(train), features(test), [Split(["b"], train_labels, test_labels)])[0]["classes"][0]
    together = aligned(features(train), features(test), [Split(["b"], train_labels, test_labels, groups)])[0][
        "classes"
    ][0]
    assert together["auroc"]["value"] == alone["auroc"]["value"]
    draws = []
    for _ in range(1000):
        rows = (rng.integers(0, 60, 60)[:, None] * 10 + np.arange(10)).ravel()
        draws.append(auroc(members[rows], test[rows, 7]))
    low, high = np.quantile(draws, [0.025, 0.975])
    assert together["auroc"]["low"] == pytest.approx(low, abs=0.02)
    assert together["auroc"]["high"] == pytest.approx(high, abs=0.02)
    widths = [one["auroc"]["high"] - one["auroc"]["low"] for one in (together, alone)]
    assert widths[0] > 2 * widths[1]


def test_the_error_of_groups_is_obuchowskis_and_of_single_images_delongs():
    rng = np.random.default_rng(4)
    values, members, groups = rng.normal(size=40), rng.random(40) < 0.4, rng.integers(0, 8, 40)
    values[members] += 0.7
    best = Best(0, "max", 1, 0.5, values, members, groups)
    found = auroc_with_interval(best)
    reach = student.ppf(0.975, 7) * obuchowski_error(values, members, groups)
    assert found["high"] == pytest.approx(min(found["value"] + reach, 1), abs=1e-9)
    single = auroc_with_interval(replace(best, groups=np.arange(40)))
    delong = auroc_with_interval(replace(best, groups=None))
    ratio = student.ppf(0.975, 39) / norm.ppf(0.975)
    assert single["value"] - single["low"] == pytest.approx(ratio * (delong["value"] - delong["low"]), abs=1e-9)


def obuchowski_error(scores, positive, groups):
    """Obuchowski (1997), as the paper writes it: a loop over groups."""
    inside, outside = scores[positive], scores[~positive]
    wins = (inside[:, None] > outside) + 0.5 * (inside[:, None] == outside)
    area, m, n = wins.mean(), len(inside), len(outside)
    sums = [
        ((wins.mean(1) - area)[groups[positive] == g].sum(), (wins.mean(0) - area)[groups[~positive] == g].sum())
        for g in np.unique(groups)
    ]
    both, first, second = len(sums), len(np.unique(groups[positive])), len(np.unique(groups[~positive]))
    variance = first / (first - 1) * sum(a * a for a, _ in sums) / m**2
    variance += second / (second - 1) * sum(b * b for _, b in sums) / n**2
    return (variance + 2 * both / (both - 1) * sum(a * b for a, b in sums) / (m * n)) ** 0.5


def test_one_image_on_a_side_gives_no_interval():
    values = features(np.array([[3.0], [1.0], [0.0], [0.0]]))
    labels = np.array(list("abbb"))
    (found,) = aligned(values, values, [Split(["a"], labels, labels)])
    assert found["classes"][0]["auroc"] == {"value": 1.0, "low": None, "high": None}


def test_where_all_stand_alike_the_interval_is_an_exact_bounds():
    values = np.array([3.0, 2.0, 1.0, 0.0, 0.0])
    for members, groups, pairs in [([1, 1, 0, 0, 0], None, 2), ([1, 1, 0, 0, 0], [0, 1, 2, 3, 4], 2)]:
        grouped = None if groups is None else np.array(groups)
        best = Best(0, "maximum", 1, 1.0, values, np.array(members, bool), grouped)
        found = auroc_with_interval(best)
        assert (found["value"], found["low"], found["high"]) == pytest.approx((1.0, 0.025 ** (1 / pairs), 1.0))
        both = auroc_with_interval(best, replace(best, held_out=values * 2))
        assert (both["value"], both["high"]) == (0.0, pytest.approx(1 - 0.025 ** (1 / pairs)))
        silent = auroc_with_interval(replace(best, held_out=np.zeros(5)))
        assert (silent["low"], silent["high"]) == (0.0, 1.0)


def test_a_probe_on_one_latent_takes_the_planted_one():
    train, labels = planted()
    assert choose_latents(train, Split(["b", "c"], labels, labels).members(labels), 1).tolist()[0] == [7]


def test_the_chosen_latents_are_those_whose_class_means_differ_most():
    train, labels = planted(80)
    members = Split(["a", "b", "c"], labels, labels).members(labels)
    for name, row in zip("abc", choose_latents(train, members, 5), strict=True):
        slow = [abs(train[labels == name, j].mean() - train[labels != name, j].mean()) for j in range(train.shape[1])]
        assert row.tolist() == np.argsort(-np.array(slow), kind="stable")[:5].tolist()


def test_a_sparse_probe_is_scikit_learns_on_the_chosen_latents():
    (train, train_labels), (test, test_labels) = planted(300, seed=0), planted(300, seed=1)
    (found,) = probe_labels(Prepared(train, test), [Split(["b"], train_labels, test_labels)], ks=(2,))
    scale = StandardScaler().fit(train.astype(np.float64))
    a, b = scale.transform(train), scale.transform(test)
    chosen = choose_latents(a, (train_labels == "b")[None], 2)[0]
    slow = LogisticRegression(class_weight="balanced").fit(a[:, chosen], train_labels == "b")
    assert found["2"]["auroc"] == pytest.approx(roc_auc_score(test_labels == "b", slow.decision_function(b[:, chosen])))
    accuracy = balanced_accuracy_score(test_labels == "b", slow.predict(b[:, chosen]))
    assert found["2"]["balanced_accuracy"] == pytest.approx(accuracy)
    full = fit_full_probe(a, train_labels == "b")  # 300 images, 30 latents: no rotation
    assert found["full"]["auroc"] == pytest.approx(roc_auc_score(test_labels == "b", full.decision_function(b)))


def test_more_latents_than_images_are_probed_in_the_span_of_the_images_alike():
    train, labels = planted(40, latents=90)
    test, _ = planted(60, latents=90, seed=1)
    prepared = Prepared(train, test)
    assert prepared.whole[0].shape[1] < 40
    direct = fit_probe(prepared.train, labels == "b", 0.1).decision_function(prepared.test)
    rotated = fit_probe(prepared.whole[0], labels == "b", 0.1).decision_function(prepared.whole[1])
    assert np.allclose(direct, rotated, atol=1e-3)
    assert direct.std() > 0.1


def test_probes_find_the_planted_class_and_nothing_in_shuffled_labels():
    train, train_labels = planted(400, seed=0, strength=4)
    test, test_labels = planted(400, seed=1, strength=4)
    (found,) = probe_labels(Prepared(train, test), [Split(["b"], train_labels, test_labels)])
    assert found["1"]["auroc"] > 0.85
    assert found["16"]["balanced_accuracy"] > 0.75
    assert set(found) == {"1", "2", "5", "16", "full"}
    rng = np.random.default_rng(0)
    shuffled = Split(["b"], rng.permutation(train_labels), rng.permutation(test_labels))
    (control,) = probe_labels(Prepared(train, test), [shuffled])
    assert abs(control["full"]["auroc"] - 0.5) < 0.12


def test_features_of_any_scale_probe_alike():
    train, train_labels = planted(200, seed=0)
    test, test_labels = planted(200, seed=1)
    factors = np.random.default_rng(0).uniform(1e-3, 1e3, 30).astype(np.float32)
    split = Split(["b"], train_labels, test_labels)
    (plain,), (scaled,) = (probe_labels(Prepared(train * f, test * f), [split]) for f in (1, factors))
    assert scaled["5"]["auroc"] == pytest.approx(plain["5"]["auroc"], abs=1e-3)


def test_a_class_that_is_everything_is_left_out():
    train, _ = planted(50)
    everything = np.array(["a"] * 50)
    (found,) = probe_labels(Prepared(train, train), [Split(["a"], everything, everything)])
    assert found["full"] == {"balanced_accuracy": None, "auroc": None}


@pytest.mark.filterwarnings("error")
def test_a_label_that_no_training_image_has_is_null_and_warns_of_nothing():
    prepared = Prepared(np.zeros((0, 5), np.float32), np.ones((3, 5), np.float32))
    (found,) = probe_labels(prepared, [Split(["a", "b"], np.array([], dtype=str), np.array(["a", "b", "a"]))])
    assert found["full"] == found["1"] == {"balanced_accuracy": None, "auroc": None}
