"""AUROC equals scikit-learn's; probes and alignment find a planted latent and nothing in shuffled labels."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from saetool.evaluation.alignment import SHUFFLES, align, aurocs
from saetool.evaluation.probing import Prepared, choose_latents, fit_full_probe, fit_probe, probe_labels
from saetool.evaluation.splits import Split


def planted(images=200, latents=30, seed=0, informative=7, strength=2.0):
    """Sparse values in which one latent is larger on images of class 'b'."""
    rng = np.random.default_rng(seed)
    labels = np.array(["a", "b", "c"])[rng.integers(0, 3, images)]
    values = rng.exponential(size=(images, latents)) * (rng.random((images, latents)) < 0.4)
    values[:, informative] += strength * (labels == "b") * rng.random(images)
    return values.astype(np.float32), labels


def test_aurocs_of_all_classes_equal_sklearn():
    values, labels = planted(60, 8)
    found = aurocs(values, Split(["a", "b", "c"], labels, labels).members(labels))
    for i, name in enumerate("abc"):
        for j in range(5):
            assert float(found[i, j]) == pytest.approx(roc_auc_score(labels == name, values[:, j]), abs=1e-12)


def test_an_empty_class_has_no_auroc():
    values = np.random.default_rng(0).random((4, 3))
    (found,) = align(values, values, [Split(["a", "b", "c"], np.array(list("aabb")), np.array(list("aaaa")))], 0)
    assert [row["auroc"] for row in found["classes"]] == [None, None, None]
    assert found["classes"][2]["latent"] is None
    assert found["mean_auroc"] is None


def test_alignment_finds_the_planted_latent_and_the_control_nothing():
    train, train_labels = planted(400, seed=0)
    test, test_labels = planted(400, seed=1)
    other = Split(["x", "y"], *(np.where(labels == "b", "x", "y") for labels in (train_labels, test_labels)))
    split = Split(["a", "b", "c"], train_labels, test_labels)
    found, again = align(train, test, [split, other], seed=0)
    assert again["classes"][0] == found["classes"][1] | {"class": "x"}  # labels asked together do not mix
    b = found["classes"][1]
    assert b["latent"] == 7
    assert b["auroc"] == pytest.approx(roc_auc_score(test_labels == "b", test[:, 7]), abs=1e-9)
    assert b["auroc"] > 0.75
    assert abs(found["control_mean_auroc"] - 0.5) < 0.03
    assert len(found["control"]) == 3 * SHUFFLES
    assert np.std([row["auroc"] for row in found["control"]]) > 0.01  # every time other labels


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
