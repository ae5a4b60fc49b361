"""Images that belong together are held out together, by a column, a folder, a pattern or their place."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from saetool.activations import held_out_images, held_out_mask, image_groups, write_store
from saetool.activations.split import require_groups
from saetool.autoencoders.families import AutoencoderSettings
from saetool.errors import RequestError
from saetool.evaluation.sections import held_out
from saetool.evaluation.settings import EvaluationSettings
from saetool.evaluation.subject import Subject
from saetool.features import index
from saetool.images.settings import Grouping
from saetool.training import TrainingSettings, train

VIDEOS = ["a", "a", "b", "b", "b", "c", None, None, "d", "d", "e", "f"]


def store_of(folder, copies: dict[int, int] | None = None):
    """Twelve images of six videos, two of none; `copies` have the digest of another image."""
    digests = [f"digest {i}" for i in range(len(VIDEOS))]
    for image, other in (copies or {}).items():
        digests[image] = digests[other]
    paths = [f"set{i % 2}/{video or 'none'}/frame-{video}-{i:02d}.png" for i, video in enumerate(VIDEOS)]
    images = [
        {"path": path, "digest": digest, "video": video}
        for path, digest, video in zip(paths, digests, VIDEOS, strict=True)
    ]
    labels = [{"name": "video", "kind": "category", "classes": list("abcdef")}]
    return write_store(folder, torch.randn(len(VIDEOS), 2, 3), images=images, labels=labels)


@pytest.mark.parametrize("seed", range(20))
def test_a_group_is_held_out_whole_and_an_image_of_no_group_alone(tmp_path, seed):
    store = store_of(tmp_path / "store")
    mask = held_out_images(store, {"seed": seed, "share": 0.4, "group": {"column": "video"}})
    for video in set(VIDEOS) - {None}:
        of_video = [bool(out) for out, name in zip(mask, VIDEOS, strict=True) if name == video]
        assert len(set(of_video)) == 1
    keys = [f"digest {i}" if video is None else f"video {video}" for i, video in enumerate(VIDEOS)]
    np.testing.assert_array_equal(mask, held_out_mask(keys, seed, 0.4))
    assert 0 < mask.sum() < len(mask)


@pytest.mark.parametrize(
    ("rule", "together"),
    [
        ({"folder": 1}, [i % 2 for i in range(12)]),
        ({"folder": 2}, [(i % 2, video) for i, video in enumerate(VIDEOS)]),
        ({"pattern": "frame-([a-f])-"}, [video or i for i, video in enumerate(VIDEOS)]),
        ({"pattern": "set[01]"}, [i % 2 for i in range(12)]),
        ({"pattern": "frame-([ab])-|frame-[c-f]-"}, [video or i for i, video in enumerate(VIDEOS)]),
        ({"block": 5}, list(range(12))),  # a twentieth of twelve is less than one
        ({"column": "video"}, [video or i for i, video in enumerate(VIDEOS)]),
    ],
)
def test_every_rule_says_who_belongs_together(tmp_path, rule, together):
    found = image_groups(store_of(tmp_path / "store"), {"group": rule})
    same = np.array([[a == b for a in together] for b in together])
    np.testing.assert_array_equal(found[:, None] == found[None, :], same)


def test_blocks_are_of_so_many_neighbors_and_of_a_twentieth_at_most(tmp_path):
    store = write_store(tmp_path / "store", torch.randn(100, 1, 2))
    for block, size in ((3, 3), (5, 5), (60, 5)):
        found = image_groups(store, {"group": {"block": block}})
        np.testing.assert_array_equal(
            found[:, None] == found, np.arange(100)[:, None] // size == np.arange(100) // size
        )


def test_a_duplicate_of_a_held_out_image_is_held_out_in_whatever_group(tmp_path):
    split = {"seed": 0, "share": 0.3, "group": {"column": "video"}}
    before = held_out_images(store_of(tmp_path / "before"), split)
    inside, outside = int(np.flatnonzero(before)[0]), int(np.flatnonzero(~before)[0])
    after = held_out_images(store_of(tmp_path / "after", {outside: inside}), split)
    np.testing.assert_array_equal(np.flatnonzero(after != before), [outside])


def test_without_a_rule_the_split_is_that_of_digests(tmp_path):
    store = store_of(tmp_path / "store")
    split = {"seed": 3, "share": 0.3}
    np.testing.assert_array_equal(held_out_images(store, split), held_out_mask(store.digests, 3, 0.3))
    assert image_groups(store, split) is None


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"column": "clip"}, "no label column 'clip'. Columns: video"),
        ({"folder": 3}, "folder: 3 fits no image"),
        ({"pattern": "clip-(.)"}, "fits no image.*the first is set0/a/frame-a-00.png"),
        ({"pattern": "set"}, "holds out every image.*too few groups"),
    ],
)
def test_a_rule_that_does_not_fit_is_refused_in_words(tmp_path, rule, words):
    with pytest.raises(RequestError, match=words):
        require_groups(store_of(tmp_path / "store"), {"seed": 0, "share": 0.3, "group": rule})


def test_a_rule_that_holds_out_far_more_than_asked_for_says_so(tmp_path, capsys):
    store = store_of(tmp_path / "store")
    require_groups(store, {"seed": 0, "share": 0.05, "group": {"pattern": "set([01])"}})
    assert "makes 2 groups, and holds out 50% of the images, not 5%" in capsys.readouterr().err
    require_groups(store, {"seed": 0, "share": 0.4, "group": {"column": "video"}})
    assert capsys.readouterr().err == ""


def test_a_store_that_the_rule_says_nothing_of_is_split_image_by_image(tmp_path):
    """Other images at the same site are welcome to what was trained by groups."""
    store = write_store(tmp_path / "store", torch.randn(50, 1, 3))
    split = {"seed": 0, "share": 0.3, "group": {"column": "video"}}
    np.testing.assert_array_equal(held_out_images(store, split), held_out_mask(store.digests, 0, 0.3))
    assert len(set(image_groups(store, split).tolist())) == 50


def test_training_index_and_evaluation_agree_on_who_is_held_out_and_who_belongs_together(tmp_path):
    store = store_of(tmp_path / "store")
    autoencoder = TypeAdapter(AutoencoderSettings).validate_python({"kind": "linear", "n_latents": 2})
    settings = TrainingSettings(tokens=20, batch_size=4, held_out=0.4)
    model = train(store.artifact, autoencoder, settings, tmp_path / "model", seed=1, group=Grouping(column="video"))
    split = {"seed": 1, "share": 0.4, "group": {"column": "video"}}
    assert model.content["held_out"] == split
    mask = held_out_images(store, split)
    assert model.content["final"]["rows"] == 2 * mask.sum()
    found = index(model, store.artifact, tmp_path / "features")
    assert found.read_table("images.parquet")["held_out"].to_pylist() == mask.tolist()
    subject = Subject.open(model, store.artifact, EvaluationSettings(bootstrap=10), 0)
    np.testing.assert_array_equal(subject.held_out, np.flatnonzero(mask))
    np.testing.assert_array_equal(subject.groups, image_groups(store, split))
    numbers = held_out(subject)
    assert numbers["groups"] == len(set(subject.groups[mask].tolist()))
    alone = train(store.artifact, autoencoder, settings, tmp_path / "alone", seed=1)
    assert alone.content["held_out"] == {"seed": 1, "share": 0.4}
    assert alone.id != model.id


@pytest.mark.parametrize("given", [{}, {"column": "a", "block": 2}, {"pattern": "("}, {"block": 0}, {"folder": 0}])
def test_a_rule_is_one_rule(given):
    with pytest.raises(ValueError, match=r"exactly one|no regular expression|greater than 0"):
        Grouping(**given)
