"""AUROC equals scikit-learn's; probes and alignment find a planted latent and nothing in shuffled labels."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from saetool.evaluation.alignment import align, aurocs
from saetool.evaluation.probing import choose_latents, probe_classes


def planted(images=200, latents=30, seed=0, informative=7, strength=2.0):
    """Sparse values in which one latent is larger on images of class 'b'."""
    rng = np.random.default_rng(seed)
    labels = np.array(["a", "b", "c"])[rng.integers(0, 3, images)]
    values = rng.exponential(size=(images, latents)) * (rng.random((images, latents)) < 0.4)
    values[:, informative] += strength * (labels == "b") * rng.random(images)
    return values.astype(np.float32), labels


def test_aurocs_of_all_classes_equal_sklearn():
    values, labels = planted(60, 8)
    found = aurocs(values, labels, ["a", "b", "c"])
    for i, name in enumerate("abc"):
        for j in range(5):
            assert float(found[i, j]) == pytest.approx(roc_auc_score(labels == name, values[:, j]), abs=1e-12)


def test_an_empty_class_has_no_auroc():
    values = np.random.default_rng(0).random((4, 3))
    found = align(values, np.array(list("aabb")), values, np.array(list("aaaa")), ["a", "b", "c"], 0)
    assert [row["auroc"] for row in found["classes"]] == [None, None, None]
    assert found["classes"][2]["latent"] is None
    assert found["mean_auroc"] is None


def test_alignment_finds_the_planted_latent_and_the_control_nothing():
    train, train_labels = planted(400, seed=0)
    test, test_labels = planted(400, seed=1)
    found = align(train, train_labels, test, test_labels, ["a", "b", "c"], seed=0)
    b = found["classes"][1]
    assert b["latent"] == 7
    assert b["auroc"] == pytest.approx(roc_auc_score(test_labels == "b", test[:, 7]), abs=1e-9)
    assert b["auroc"] > 0.75
    assert abs(found["control_mean_auroc"] - 0.5) < 0.06


def test_a_probe_on_one_latent_takes_the_planted_one():
    train, labels = planted()
    assert choose_latents(train, labels == "b", 1).tolist() == [7]


def test_probes_find_the_planted_class_and_nothing_in_shuffled_labels():
    train, train_labels = planted(400, seed=0, strength=4)
    test, test_labels = planted(400, seed=1, strength=4)
    found = probe_classes(train, train_labels, test, test_labels, ["b"])
    assert found["1"]["auroc"] > 0.85
    assert found["16"]["balanced_accuracy"] > 0.75
    assert set(found) == {"1", "2", "5", "16", "full"}
    rng = np.random.default_rng(0)
    control = probe_classes(train, rng.permutation(train_labels), test, rng.permutation(test_labels), ["b"])
    assert abs(control["full"]["auroc"] - 0.5) < 0.12


def test_features_of_any_scale_probe_alike():
    train, train_labels = planted(200, seed=0)
    test, test_labels = planted(200, seed=1)
    factors = np.random.default_rng(0).uniform(1e-3, 1e3, 30).astype(np.float32)
    plain = probe_classes(train, train_labels, test, test_labels, ["b"])
    scaled = probe_classes(train * factors, train_labels, test * factors, test_labels, ["b"])
    assert scaled["5"]["auroc"] == pytest.approx(plain["5"]["auroc"], abs=1e-3)


def test_a_class_that_is_everything_is_left_out():
    train, _ = planted(50)
    everything = np.array(["a"] * 50)
    found = probe_classes(train, everything, train, everything, ["a"])
    assert found["full"] == {"balanced_accuracy": None, "auroc": None}
