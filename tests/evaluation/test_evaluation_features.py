"""An image's features equal loops over its tokens; rotating features changes no probe; images are taken whole."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from saetool.activations import CacheSettings, write_store
from saetool.errors import RequestError
from saetool.evaluation.baselines import Dictionary
from saetool.evaluation.pooled import POOLINGS, pool_codes, pool_latents
from saetool.evaluation.probing import fit_probe, rotate
from saetool.evaluation.subject import Subject, read_labels, spread
from saetool.sparse.codes import Codes


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_pooled_codes_equal_dense_ones(images, tokens, latents, seed):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(images * tokens, latents)) * (rng.random((images * tokens, latents)) < 0.5)
    z = torch.from_numpy(z)
    pooled = pool_codes(Codes.from_dense(z), tokens)
    dense = z.view(images, tokens, latents)
    assert torch.equal(pooled["max"], dense.amax(1))
    assert torch.equal(pooled["min"], dense.amin(1))
    assert torch.allclose(pooled["mean"], dense.mean(1))


def test_latents_and_raw_activations_are_pooled_alike_in_any_batches():
    x = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(0))
    dense, sparse = (Dictionary(torch.zeros(4), torch.eye(4), k) for k in (None, 3))
    raw, coded = pool_latents(None, x.split(2)), pool_latents(dense, x.split(3))
    for pooling in POOLINGS:
        assert np.allclose(raw[pooling], coded[pooling], atol=1e-6)
    assert torch.equal(raw["max"], x.amax(1))
    assert torch.equal(raw["min"], x.amin(1))
    kept = sparse.encode(x.flatten(0, 1)).view(x.shape)
    assert torch.equal(pool_latents(sparse, x.split(3))["min"], kept.amin(1))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_rotated_probe_predicts_the_same(n_classes):
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(30, 80)), rng.normal(size=(20, 80))
    labels = np.arange(30) % n_classes
    rotated = rotate(train, test)
    assert rotated[0].shape[1] <= 30
    plain = fit_probe(train, labels, 0.05).decision_function(test)
    turned = fit_probe(rotated[0], labels, 0.05).decision_function(rotated[1])
    assert np.allclose(plain, turned, atol=2e-3)
    assert np.abs(plain).max() > 0.1


def test_few_features_are_left_as_they_are():
    train, test = np.ones((5, 3)), np.ones((2, 3))
    assert rotate(train, test)[0] is train


def test_spread_takes_evenly_in_order():
    images = np.arange(100, 110)
    assert spread(images, 4).tolist() == [100, 102, 105, 107]
    assert spread(images, 20) is images
    assert spread(images, None) is images


@pytest.fixture
def store(tmp_path):
    x = torch.arange(10 * 2 * 3).view(10, 2, 3).float()
    kinds = ["a", "b", None, "a", "c", "a", "b", "a", "a", "b"]
    images = [{"kind": kind, "one": "same", "size": float(i)} for i, kind in enumerate(kinds)]
    columns = [
        {"name": "kind", "kind": "category", "classes": ["c", "b", "a", "never"]},
        {"name": "one", "kind": "category", "classes": ["same"]},
        {"name": "size", "kind": "number", "classes": None},
    ]
    cache = CacheSettings(dtype="float32", batch_size=3, shard_mb=1e-4)
    return write_store(tmp_path / "store", x, images=images, labels=columns, settings=cache)


def test_batches_are_the_chosen_images_whole_and_in_order(store, monkeypatch):
    from saetool.evaluation import subject as module

    monkeypatch.setattr(module, "ROWS_AT_ONCE", 5)
    chosen = np.array([0, 2, 3, 4, 8])
    subject = Subject(None, {}, store, store.site(), chosen, np.array([1]), chosen, 0)
    batches = list(subject.batches(chosen))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    expected = torch.arange(60).view(10, 2, 3).float()[chosen]
    assert torch.equal(torch.cat(batches), expected)
    assert torch.allclose(subject.mean(chosen), expected.double().mean((0, 1)))


def test_training_rows_never_come_from_held_out_images(store):
    held_out = np.array([1, 5, 9])
    subject = Subject(None, {}, store, store.site(), held_out, np.array([0]), held_out, 0)
    rows = subject.training_rows(1000)
    assert len(rows) == 14
    assert not set(rows[:, 0].tolist()) & {6.0, 9.0, 30.0, 33.0, 54.0, 57.0}
    everything = Subject(None, {}, store, store.site(), np.arange(10), np.array([], int), held_out, 0)
    with pytest.raises(RequestError, match="every image is held out"):
        everything.training_rows(10)


def test_labels_are_categories_with_two_classes_the_frequent_ones_in_their_order(store):
    labels = read_labels(store, 10)
    assert [(label.name, label.classes) for label in labels] == [("kind", ["c", "b", "a"])]
    assert read_labels(store, 2)[0].classes == ["b", "a"]
