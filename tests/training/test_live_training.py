"""Training straight from a model: the same quality as from a store, and the same after a kill."""

import os

import pytest
from PIL import Image
from pydantic import TypeAdapter

from saetool.activations import CacheSettings, caching_stage
from saetool.activations.live import LiveSource, LiveStream
from saetool.artifacts import run_stage
from saetool.autoencoders.families import AutoencoderSettings, load
from saetool.images import ImageSettings, open_source
from saetool.training import TrainingSettings, train
from saetool.vision import BackboneSettings

IMAGES = ImageSettings(source="digits", limit=600)
PIXELS = BackboneSettings(name="pixels/gray", layers=[1], tokens="all", image_size=8)
CACHE = CacheSettings(batch_size=32)
HOW = TrainingSettings(tokens=64 * 300, batch_size=64, pool_rows=128, lr=3e-3, log_every=10, checkpoint_minutes=0)


@pytest.fixture
def autoencoder():
    settings = {"kind": "linear", "n_latents": 16, "solver": "gradient"}
    return TypeAdapter(AutoencoderSettings).validate_python(settings)


@pytest.fixture
def source():
    return LiveSource(PIXELS, open_source(IMAGES), IMAGES, CACHE)


@pytest.mark.slow
def test_live_training_is_as_good_as_cached_training(source, autoencoder, tmp_path):
    store = run_stage(caching_stage(PIXELS, open_source(IMAGES), IMAGES, CACHE), tmp_path / "store")
    cached = train(store, autoencoder, HOW, tmp_path / "cached")
    live = train(source, autoencoder, HOW, tmp_path / "live")
    assert live.content["final"]["rows"] == cached.content["final"]["rows"]
    assert live.content["final"]["fvu"] == pytest.approx(cached.content["final"]["fvu"], rel=0.02)
    assert live.content["final"]["fvu"] < 0.25
    assert live.content["site"]["digest"] == cached.content["site"]["digest"]
    assert live.content["trained_on"] is None
    assert load(tmp_path / "live").site == live.content["site"]


def test_live_training_resumes_bit_for_bit(source, autoencoder, tmp_path, monkeypatch):
    how = HOW.model_copy(update={"tokens": 64 * 60})
    whole = train(source, autoencoder, how, tmp_path / "whole")
    original = LiveStream.batches

    def crashing(self):
        for i, batch in enumerate(original(self)):
            if i == 37:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(LiveStream, "batches", crashing)
    with pytest.raises(KeyboardInterrupt):
        train(source, autoencoder, how, tmp_path / "killed")
    monkeypatch.undo()
    assert train(source, autoencoder, how, tmp_path / "killed").id == whole.id


def test_images_that_were_written_since_are_told(autoencoder, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for i in range(24):
        Image.new("L", (8, 8), 10 * i).save(tmp_path / "images" / f"{i}.bmp")
    images = ImageSettings(source=str(tmp_path / "images"))
    backbone = PIXELS.model_copy(update={"image_size": 8})
    how = HOW.model_copy(update={"tokens": 64 * 4})
    for written, told in ((None, 0), (None, 0), (1, 1)):
        if written:
            os.utime(tmp_path / "images/3.bmp", (written, written))
        train(LiveSource(backbone, open_source(images), images, CACHE), autoencoder, how, tmp_path / "model")
        assert capsys.readouterr().err.count("files of images were written since") == told
