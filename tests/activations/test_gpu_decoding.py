"""Decoding on a GPU, with torchvision on the CPU in its place: near Pillow's pixels, and never in silence."""

import numpy as np
import pytest
import torch
from PIL import Image

from saetool.activations import CacheSettings, cache, gpu_decoding
from saetool.activations.caching import CachingJob, caching_stage
from saetool.activations.decoding import Decoder
from saetool.activations.gpu_decoding import GpuDecoder, difference
from saetool.errors import RequestError, WorkError
from saetool.images import ImageSettings, open_source
from saetool.vision import BackboneSettings

CPU = torch.device("cpu")


@pytest.fixture
def stand_in(monkeypatch):
    """Let the CPU do what the GPU would."""
    monkeypatch.setattr(gpu_decoding, "require_gpu_decoding", lambda device: None)


@pytest.fixture
def photographs(tmp_path):
    """JPEGs of two sizes, smooth as photographs; and a PNG, a gray one, a turned one, a torn one."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, size in enumerate([(40, 30), (33, 48), (40, 30), (16, 16)]):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=95)
    picture = Image.open(folder / "0.jpg")
    picture.save(folder / "4.png")
    picture.convert("L").save(folder / "5.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(folder / "6.jpg", exif=turned)
    return folder


def decoders(tiny, folder, on_error="fail", **cache_settings):
    source, backbone = open_source(str(folder)), tiny()
    settings = CacheSettings(batch_size=4, **cache_settings)
    plan = CachingJob(lambda: backbone, lambda b: b.sites, source, settings, on_error).plan(backbone)
    given = (source, backbone.transform, plan, on_error)
    return GpuDecoder(*given, device=CPU), Decoder(*given), plan


def test_pixels_are_near_pillow_s_and_what_is_known_of_an_image_is_the_same(tiny, photographs, stand_in):
    gpu, pillow, plan = decoders(tiny, photographs)
    ours, theirs = (list(one.slices(range(plan.n_slices))) for one in (gpu, pillow))
    for a, b in zip(ours, theirs, strict=True):
        assert (a.images, a.kept, a.number) == (b.images, b.kept, b.number)
        apart = (a.pixels.int() - b.pixels.int())[a.kept].abs()
        assert apart.float().mean() < 1
        assert apart.max() <= 3
    others = [image["path"] for image in ours[1].images]
    assert others == ["4.png", "5.jpg", "6.jpg"]
    assert torch.equal(ours[1].pixels[:3], theirs[1].pixels[:3])  # those are Pillow's
    found = difference(gpu, pillow)
    assert found["images"] == 4
    assert 0 <= found["mean"] < 1


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_torn_file_is_refused_as_pillow_refuses_it(tiny, photographs, stand_in, on_error):
    torn = photographs / "1.jpg"
    torn.write_bytes(torn.read_bytes()[:-40])
    gpu, *_ = decoders(tiny, photographs, on_error)
    if on_error == "fail":
        with pytest.raises(WorkError, match=r"1\.jpg"):
            next(gpu.slices([0]))
        return
    decoded = next(gpu.slices([0]))
    assert decoded.kept == [0, 2, 3]
    assert decoded.skipped[0]["path"] == "1.jpg"
    assert not decoded.pixels[1].any()


def test_what_the_gpu_cannot_decode_is_pillow_s(tiny, photographs, stand_in, monkeypatch):
    def fails(*given):
        raise RuntimeError("unsupported")

    monkeypatch.setattr(gpu_decoding, "decoded_on", fails)
    gpu, pillow, _ = decoders(tiny, photographs)
    ours, theirs = next(gpu.slices([0])), next(pillow.slices([0]))
    assert torch.equal(ours.pixels, theirs.pixels)
    assert ours.images == theirs.images


def test_the_store_says_what_decoded_it(tiny, photographs, stand_in, tmp_path):
    images = ImageSettings(source=str(photographs), decode="gpu")
    settings = CacheSettings(batch_size=4)
    gpu = cache(tiny(), images, None, tmp_path / "gpu", settings)
    again = cache(tiny(), images, None, tmp_path / "again", settings)
    pillow = cache(tiny(), str(photographs), None, tmp_path / "pillow", settings)
    assert gpu.config["images"]["decode"] == "gpu"
    assert gpu.content["decoded"]["by"] == "gpu"
    assert gpu.content["decoded"]["difference"]["mean"] > 0
    assert "decode" not in pillow.config["images"]
    assert "decoded" not in pillow.content
    assert gpu.id == again.id != pillow.id


def test_a_run_s_config_says_it_where_it_is_asked_for_alone(photographs):
    backbone = BackboneSettings(name="demo/vits14", layers=[2])
    for decode, said in (("pillow", None), ("gpu", "gpu")):
        images = ImageSettings(source=str(photographs), decode=decode)
        stage = caching_stage(backbone, open_source(images), images, CacheSettings())
        assert stage.config["images"].get("decode") == said


@pytest.mark.parametrize(
    ("cache_settings", "transform", "words"),
    [
        ({"thumbnails": True}, {}, "thumbnails"),
        ({}, {"interpolation": "lanczos"}, "lanczos"),
        ({}, {"gray": True}, "gray"),
    ],
)
def test_what_it_cannot_do_is_refused(tiny, photographs, stand_in, cache_settings, transform, words):
    from dataclasses import replace

    source, backbone = open_source(str(photographs)), tiny()
    settings = CacheSettings(batch_size=4, **cache_settings)
    plan = CachingJob(lambda: backbone, lambda b: b.sites, source, settings, "fail").plan(backbone)
    with pytest.raises(RequestError, match=words):
        GpuDecoder(source, replace(backbone.transform, **transform), plan, "fail", device=CPU)


def test_without_a_gpu_there_is_one_message(tiny, photographs, tmp_path):
    with pytest.raises(RequestError, match=r"images.decode: gpu needs a CUDA GPU, .* Use images.decode: pillow"):
        cache(tiny(), ImageSettings(source=str(photographs), decode="gpu"), None, tmp_path / "store")


def test_a_torchvision_without_it_is_named(monkeypatch):
    def missing(*given):
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled with nvJPEG support")

    monkeypatch.setattr(gpu_decoding, "decoded_on", missing)
    with pytest.raises(RequestError, match=r"built with nvJPEG.*not compiled"):
        gpu_decoding.require_gpu_decoding(torch.device("cuda"))
