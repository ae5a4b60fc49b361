"""Commands of several processes at once: one reads what another is about to replace."""

import threading

import pytest

from saetool.artifacts import Artifact, verify

pytestmark = pytest.mark.slow


def test_training_and_a_store_that_is_made_anew_meanwhile(server, another_server, place, drop_from, counts):
    """The store is of other weights: numbers of the new one under the old one's id would be another model."""
    long = ("train", "config.yaml", "training.tokens=32000")
    alone = place("alone")
    drop_from(alone / "run", "train")
    assert server(alone, *long).code == 0
    expected = Artifact.open(alone / "run/autoencoder").id

    here = place("here")
    drop_from(here / "run", "train")
    before = Artifact.open(here / "run/activations").id
    replacing = threading.Thread(target=lambda: ended.append(another_server(here, "cache", *again)))
    again, ended = ("config.yaml", "seed=5", "--force"), []
    timer = threading.Timer(0.3, replacing.start)
    timer.start()
    trained = server(here, *long)
    timer.join()
    replacing.join()
    assert ended[0].require_words().code == 0
    assert trained.require_words().code == 0
    assert Artifact.open(here / "run/autoencoder").id == expected
    assert Artifact.open(here / "run/autoencoder").inputs[0]["id"] == before
    assert Artifact.open(here / "run/activations").id != before
    assert verify(here / "run/activations") == []
    counts["replaced while it was read"] += 1
