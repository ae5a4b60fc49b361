"""Thumbnails beside the shards: those that a report would make of the originals."""

import shutil

import numpy as np
import pytest
import torch

from saetool.activations import ActivationStore, CacheSettings, cache, write_store
from saetool.activations.estimate import estimate
from saetool.activations.shard import shard_name
from saetool.activations.thumbnails import FOLDER, StoredThumbnails
from saetool.artifacts import Artifact, verify
from saetool.errors import RequestError
from saetool.images import ImageSettings, open_source
from saetool.images.picture import thumbnail_of
from saetool.report.thumbnails import Thumbnails

SMALL = CacheSettings(batch_size=4, shard_mb=2 * 4 * 16 * 12 * 2 / 2**20)
KEEPING = SMALL.model_copy(update={"thumbnails": True})


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("processes", [0, 2])
def test_a_store_keeps_the_thumbnail_of_every_image_it_holds(tiny, pictures, tmp_path, monkeypatch, processes):
    monkeypatch.setattr("saetool.activations.caching.decoding_processes", lambda source: processes)
    (pictures / "dogs/12.png").write_bytes(b"not a picture")
    source = open_source(ImageSettings(source=str(pictures)))
    store = ActivationStore(cache(tiny(), source, [1], tmp_path / "a", KEEPING, on_error="skip"))
    assert store.artifact.content["shards"] == [8, 8, 6]
    places = {source.path(i): i for i in range(len(source))}
    kept = StoredThumbnails(store.artifact)
    for row, path in enumerate(store.images["path"].to_pylist()):
        assert kept.read(row) == thumbnail_of(source.read(places[path]).image)
    assert verify(store.artifact.path) == []


def test_beside_thumbnails_nothing_changes(tiny, pictures, tmp_path):
    source = open_source(ImageSettings(source=str(pictures)))
    plain, kept = (cache(tiny(), source, [1], tmp_path / name, s) for name, s in (("a", SMALL), ("b", KEEPING)))
    assert "thumbnails" not in plain.config["cache"]
    assert (StoredThumbnails.are_in(plain), StoredThumbnails.are_in(kept)) == (False, True)
    assert {name: entry for name, entry in kept.files.items() if not name.startswith("thumbnails/")} == plain.files
    assert ActivationStore(kept).site().info == ActivationStore(plain).site().info


def test_a_report_needs_no_originals_where_the_store_has_thumbnails(tiny, pictures, tmp_path):
    source = open_source(ImageSettings(source=str(pictures)))
    plain, kept = (cache(tiny(), source, [1], tmp_path / name, s) for name, s in (("a", SMALL), ("b", KEEPING)))
    images, order = ActivationStore(plain).images, np.arange(23)[::-1]
    Thumbnails(plain, images, source).make(order, tmp_path / "originals", 10**9)
    shutil.rmtree(pictures)
    made = Thumbnails(kept, images, None).make(order, tmp_path / "kept", 10**9)
    assert made.tolist() == list(range(23))
    for file in (tmp_path / "originals").rglob("*.webp"):
        assert (tmp_path / "kept" / file.relative_to(tmp_path / "originals")).read_bytes() == file.read_bytes()


def test_a_damaged_thumbnail_is_found_when_work_resumes_and_when_it_is_read(tiny, pictures, tmp_path):
    source = open_source(ImageSettings(source=str(pictures)))
    made = cache(tiny(), source, [1], tmp_path / "a", KEEPING)
    file = made.path / shard_name(FOLDER, 1)
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)
    with pytest.raises(RequestError, match="00001"):
        StoredThumbnails(Artifact.open(made.path)).read(9)
    assert verify(made.path)


def test_tensors_have_no_thumbnails(tmp_path):
    with pytest.raises(RequestError, match=r"cache\.thumbnails"):
        write_store(tmp_path / "a", torch.zeros(2, 1, 3), settings=KEEPING)


@pytest.mark.usefixtures("brief_timing")
def test_a_dry_run_counts_thumbnails(tiny, pictures):
    from saetool.activations.caching import CachingJob

    source, backbone = open_source(ImageSettings(source=str(pictures))), tiny()
    found = estimate(CachingJob(lambda: backbone, lambda b: b.sites, source, KEEPING, "fail"))
    assert (
        found["bytes_on_disk"] == found["bytes at layer-01"] + found["bytes at layer-03"] + found["bytes of thumbnails"]
    )
