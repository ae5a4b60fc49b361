"""From pictures to a sealed store: the right tokens, whatever the slicing; failures that name the image."""

import json
import os
import shutil
import time

import pytest
import torch

from saetool.activations import ActivationStore, CacheSettings, cache, caching_stage, require_space, write_store
from saetool.activations.caching import CachingJob, _stage
from saetool.activations.estimate import estimate
from saetool.artifacts import Artifact, digest_file, run_stage, verify
from saetool.errors import RequestError, WorkError
from saetool.images import ImageSettings, open_cached, open_source
from saetool.images.source import SourceError
from saetool.vision import BackboneSettings, load_backbone

SMALL = CacheSettings(batch_size=4, shard_mb=2 * 4 * 16 * 12 * 2 / 2**20)
"""Slices of four pictures, two slices a shard."""
OFF = {"embedding": None}


def source_of(folder, **kwargs):
    return open_source(ImageSettings(source=str(folder), **kwargs))


def store_of(tiny, folder, out, settings=SMALL, **kwargs) -> ActivationStore:
    return ActivationStore(cache(tiny(), source_of(folder), [1, 3], out, settings, **kwargs))


def tokens_of(backbone, image: torch.Tensor) -> list[torch.Tensor]:
    """Return the patches after every block, computed by hand."""
    x = backbone.model.patch_embed(image[None]).flatten(2).transpose(1, 2)
    x = torch.cat([backbone.model.cls_token, x], 1)
    layers = []
    for block in backbone.model.blocks:
        x = block(x)
        layers.append(x[0, 1:])
    return layers


@pytest.mark.parametrize("layers", [(1, 3), (3, 1)])
def test_the_store_holds_what_the_model_computes(tiny, pictures, tmp_path, layers):
    settings = CacheSettings(dtype="float32", batch_size=4, shard_mb=0.01)
    store = ActivationStore(cache(tiny(), source_of(pictures), layers, tmp_path / "a", settings))
    assert [site.info["layer"] for site in store.sites] == list(layers)
    backbone, source = tiny(), source_of(pictures)
    for i in range(23):
        wanted = tokens_of(backbone, backbone.transform(source.read(i).image))
        for layer in layers:
            assert torch.allclose(store.site(layer).rows(i, i + 1)[0], wanted[layer - 1], atol=1e-5)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_the_mean_token_of_another_layer_embeds_each_image(tiny, pictures, tmp_path, layer):
    settings = CacheSettings(dtype="float32", batch_size=4, shard_mb=0.01, embedding=layer)
    store = ActivationStore(cache(tiny(), source_of(pictures), [2], tmp_path / "a", settings))
    plain = ActivationStore(cache(tiny(), source_of(pictures), [2], tmp_path / "b", settings.model_copy(update=OFF)))
    embedding = store.embedding
    assert (embedding.tokens, embedding.grid, embedding.info["folder"]) == (1, None, f"layer-{layer:02d}-mean")
    backbone, source = tiny(), source_of(pictures)
    for i in range(23):
        wanted = tokens_of(backbone, backbone.transform(source.read(i).image))[layer - 1].mean(0)
        assert torch.allclose(embedding.rows(i, i + 1)[0, 0], wanted, atol=1e-5)
    # Beside it nothing changes: the only site is still the only one, with the same files.
    assert plain.embedding is None
    assert store.site().info == plain.site().info == store.site(2).info
    files = [s.artifact.files["layer-02/00000.safetensors"]["digest"] for s in (store, plain)]
    assert files[0] == files[1]
    assert "embedding" not in plain.artifact.config["cache"]


def test_the_table_says_where_each_image_is(tiny, pictures, tmp_path):
    store = store_of(tiny, pictures, tmp_path / "a")
    paths = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.png"))
    assert store.images["path"].to_pylist() == paths
    assert store.images["id"].to_pylist() == list(range(23))
    assert store.images["class"].to_pylist() == [path.split("/")[0] for path in paths]
    assert store.digests == [digest_file(pictures / path) for path in paths]
    assert set(store.images["width"].to_pylist()) == {20}
    assert set(store.images["height"].to_pylist()) == {16}


def test_the_manifest_describes_the_store(tiny, pictures, tmp_path):
    content = store_of(tiny, pictures, tmp_path / "a").artifact.content
    assert (content["images"], content["tokens"], content["grid"], content["token_kind"]) == (23, 16, [4, 4], "patches")
    assert content["slices"] == [4, 4, 4, 4, 4, 3]
    assert content["shards"] == [8, 8, 7]
    assert [site["digest"] for site in content["sites"]] == [
        tiny().describe_site(site)["digest"] for site in tiny().sites
    ]
    assert content["labels"] == [{"name": "class", "kind": "category", "classes": ["cats", "dogs"]}]
    assert str(tmp_path) not in json.dumps(content)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_shards_do_not_change_the_values(tiny, pictures, tmp_path, dtype):
    one = store_of(tiny, pictures, tmp_path / "one", CacheSettings(dtype=dtype, batch_size=4, shard_mb=64))
    many = store_of(tiny, pictures, tmp_path / "many", CacheSettings(dtype=dtype, batch_size=4, shard_mb=1e-6))
    assert (len(one.artifact.content["shards"]), len(many.artifact.content["shards"])) == (1, 6)
    for site, other in zip(one.sites, many.sites, strict=True):
        assert site.dtype == getattr(torch, dtype)
        assert torch.equal(site.rows(0, 23), other.rows(0, 23))


def test_the_last_slice_is_computed_like_a_whole_one(tiny, pictures, tmp_path):
    seen = []
    backbone = tiny()
    forward = backbone.forward_to
    backbone.forward_to = lambda batch, sites: seen.append(tuple(batch.shape)) or forward(batch, sites)
    cache(backbone, source_of(pictures), [1], tmp_path / "a", SMALL)
    assert seen[-6:] == [(4, 3, 16, 16)] * 6


def test_the_same_request_makes_the_same_store_and_is_skipped(tiny, pictures, tmp_path):
    first = store_of(tiny, pictures, tmp_path / "a").artifact
    shutil.copytree(pictures, tmp_path / "elsewhere")
    assert store_of(tiny, tmp_path / "elsewhere", tmp_path / "b").artifact.content["images"] == 23
    untouched = (tmp_path / "a/manifest.json").stat().st_mtime_ns
    assert store_of(tiny, pictures, tmp_path / "a").artifact.id == first.id
    assert (tmp_path / "a/manifest.json").stat().st_mtime_ns == untouched


def test_other_settings_and_other_images_are_other_requests(tiny, pictures, tmp_path):
    store_of(tiny, pictures, tmp_path / "a")
    with pytest.raises(RequestError, match="batch_size"):
        store_of(tiny, pictures, tmp_path / "a", CacheSettings(batch_size=5))
    os.remove(sorted(pictures.rglob("*.png"))[5])
    with pytest.raises(RequestError, match="images: 23 → 22 images"):
        store_of(tiny, pictures, tmp_path / "a")


def test_a_corrupt_image_stops_the_job_and_is_named(tiny, pictures, tmp_path):
    (pictures / "dogs/12.png").write_bytes(b"not a picture")
    with pytest.raises(WorkError, match=r"dogs/12\.png"):
        store_of(tiny, pictures, tmp_path / "a")
    with pytest.raises(RequestError, match="not finished"):
        ActivationStore.open(tmp_path / "a")


def test_a_corrupt_image_is_skipped_where_that_is_wanted(tiny, pictures, tmp_path):
    whole = store_of(tiny, pictures, tmp_path / "whole")
    (pictures / "dogs/12.png").write_bytes(b"not a picture")
    store = store_of(tiny, pictures, tmp_path / "a", on_error="skip")
    lost = whole.images["path"].to_pylist().index("dogs/12.png")
    content = store.artifact.content
    assert content["skipped"] == [{"index": lost, "path": "dogs/12.png"}]
    assert content["images"] == 22
    assert content["slices"][lost // 4] == 3
    assert store.images["id"].to_pylist() == list(range(22))
    kept = [i for i in range(23) if i != lost]
    assert store.digests == [whole.digests[i] for i in kept]
    assert torch.equal(store.site(3).rows(0, 22), whole.site(3).rows(0, 23)[kept])
    assert verify(store.artifact.path) == []


def test_a_slice_may_lose_all_its_images(tiny, pictures, tmp_path):
    for path in sorted(pictures.rglob("*.png"))[4:12]:
        path.write_bytes(b"")
    store = store_of(tiny, pictures, tmp_path / "a", on_error="skip")
    assert store.artifact.content["slices"] == [4, 0, 0, 4, 4, 3]
    assert store.site(1).rows(0, 15).shape == (15, 16, 12)
    assert store.site(1).statistics().count == 15 * 16


def test_statistics_are_those_of_the_stored_rows(tiny, pictures, tmp_path):
    store = store_of(tiny, pictures, tmp_path / "a")
    for site in store.sites:
        rows = site.rows(0, 23).reshape(-1, 12).double()
        assert torch.allclose(site.statistics().mean, rows.mean(0), rtol=1e-12, atol=1e-12)
        assert torch.allclose(site.statistics().variance, rows.var(0, correction=0), rtol=1e-10)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_stop_the_job_naming_image_and_layer(tiny, pictures, tmp_path, value):
    backbone = tiny()
    forward = backbone.forward_to
    calls = []

    def broken(batch, sites):
        outputs = forward(batch, sites)
        calls.append(1)
        if len(calls) == 1 + 3:  # the first call measures precision
            outputs[1] = outputs[1].clone()
            outputs[1][2, 5, 7] = value
        return outputs

    backbone.forward_to = broken
    source = source_of(pictures)
    with pytest.raises(WorkError, match=rf"{source.path(10)}.*layer 3 \(blocks\.2\)"):
        cache(backbone, source, [1, 3], tmp_path / "a", SMALL)


def test_a_value_beyond_float16_is_explained(tiny, pictures, tmp_path):
    backbone = tiny()
    backbone.model.blocks[0].linear.bias.data.fill_(0)
    backbone.model.cls_token.data.mul_(0)
    backbone.model.patch_embed.bias.data.fill_(1e5)
    with pytest.raises(WorkError, match="bfloat16"):
        cache(backbone, source_of(pictures), [1], tmp_path / "a", CacheSettings(dtype="float16"))


def test_other_weights_are_not_mixed_into_begun_work(tiny, pictures, tmp_path):
    """A model whose published weights changed between two attempts: its name, and so the request, is the same."""

    def stage(seed):
        backbone = tiny(seed=seed)
        return _stage(CachingJob(lambda: backbone, lambda b: b.sites, source_of(pictures), SMALL, "fail"), {})

    path = sorted(pictures.rglob("*.png"))[20]
    good = path.read_bytes()
    path.write_bytes(bytes(len(good)))  # names and sizes, so the listing, stay what they were
    with pytest.raises(WorkError):
        run_stage(stage(seed=0), tmp_path / "a")
    path.write_bytes(good)
    with pytest.raises(RequestError, match="weights"):
        run_stage(stage(seed=1), tmp_path / "a")
    run_stage(stage(seed=0), tmp_path / "a")


def test_settings_are_enough(pictures, tmp_path):
    """The stage of the commands: everything from settings, pixels as the backbone."""
    images = ImageSettings(source=str(pictures), limit=9)
    backbone = BackboneSettings(name="pixels", layers=[1], tokens="all", image_size=8)
    stage = caching_stage(backbone, open_source(images), images, CacheSettings(dtype="float32"))
    assert str(pictures) not in json.dumps(stage.config)
    store = ActivationStore(run_stage(stage, tmp_path / "a"))
    site = store.site()
    assert (store.n_images, site.tokens, site.d) == (9, 1, 8 * 8 * 3)
    assert 0 <= float(site.rows(0, 9).min()) <= float(site.rows(0, 9).max()) <= 1
    assert store.artifact.notes["images_root"] == str(pictures)
    assert store.artifact.notes["errors"][site.info["folder"]]["round_trip"] == 0


def test_precision_costs_are_measured(tmp_path, pictures):
    images = ImageSettings(source=str(pictures), limit=4)
    name = "timm/vit_tiny_patch16_224"
    settings = BackboneSettings(name=name, layers=[2], pretrained=False, image_size=32, precision="bf16")
    stage = caching_stage(settings, open_source(images), images, CacheSettings(batch_size=4))
    errors = run_stage(stage, tmp_path / "a").notes["errors"]["layer-02"]
    assert 1e-4 < errors["forward"] < 0.05
    assert 1e-4 < errors["round_trip"] < 2**-8  # half a unit in bf16's eighth bit, at most


@pytest.mark.usefixtures("brief_timing")
def test_a_dry_run_says_what_it_takes_and_the_store_agrees(tiny, pictures, tmp_path):
    source, backbone = source_of(pictures), tiny()
    job = CachingJob(lambda: backbone, lambda b: b.sites, source, SMALL, "fail")
    found = estimate(job)
    artifact = store_of(tiny, pictures, tmp_path / "a").artifact
    assert not (tmp_path / "a.partial").exists()
    assert found["images"] == 23
    assert found["bytes_on_disk"] == found["bytes at layer-01"] + found["bytes at layer-03"]
    for folder in ("layer-01", "layer-03"):
        assert found[f"rows at {folder}"] == 23 * 16
        shards = [entry["bytes"] for name, entry in artifact.files.items() if name.startswith(f"{folder}/0")]
        assert len(shards) == found["shards"]
        assert 0 < sum(shards) - found[f"bytes at {folder}"] < 200 * len(shards)  # the headers
    assert found["seconds"] == pytest.approx(23 / found["images_per_second"], rel=0.1, abs=0.1)
    json.dumps(found)


@pytest.mark.usefixtures("brief_timing")
@pytest.mark.parametrize("free", [1 << 50, 1 << 20, 1 << 10], ids=["wide", "narrow", "full"])
def test_a_dry_run_believes_no_disk_that_may_be_the_limit(tiny, pictures, tmp_path, monkeypatch, free):
    from saetool.activations import estimate as estimating

    backbone, written = tiny(), []
    job = CachingJob(lambda: backbone, lambda b: b.sites, source_of(pictures), SMALL, "fail")
    before = sorted(tmp_path.rglob("*"))
    quick = estimate(job, tmp_path / "not yet" / "there")["seconds"]
    disk = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(estimating.shutil, "disk_usage", lambda _: disk)
    monkeypatch.setattr(estimating, "_DOUBTFUL", 0)
    write = estimating.StoreWriter.write_shard

    def slow(self, shard, *rest):
        write(self, shard, *rest)
        written.append(shard)
        time.sleep(0.3 + 2 * quick)

    monkeypatch.setattr(estimating.StoreWriter, "write_shard", slow)
    found = estimate(job, tmp_path / "not yet" / "there")
    if free == 1 << 10:  # not even the slices that come before those timed would fit
        assert not written
    else:
        assert found["seconds"] >= 0.3 + 2 * quick - 0.05  # rounded
        assert sorted(written) == list(range(found["shards"]))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_is_too_small_is_refused(tmp_path):
    require_space(tmp_path / "not/there/yet", 1000)
    with pytest.raises(RequestError, match="GB free"):
        require_space(tmp_path / "not/there/yet", 1 << 60)


def test_moving_the_store_breaks_nothing(tiny, pictures, tmp_path):
    store = store_of(tiny, pictures, tmp_path / "a")
    rows = store.site(1).rows(0, 23).clone()
    (tmp_path / "b").mkdir()
    shutil.move(tmp_path / "a", tmp_path / "b/c")
    shutil.rmtree(pictures)
    moved = ActivationStore.open(tmp_path / "b/c")
    assert torch.equal(moved.site(1).rows(0, 23), rows)
    assert verify(tmp_path / "b/c") == []
    assert Artifact.open(tmp_path / "b/c").id == store.artifact.id


@pytest.mark.parametrize("loaded", [True, False])
def test_a_job_that_stopped_at_a_corrupt_image_goes_on_without_it(tiny, pictures, tmp_path, loaded, capsys):
    """Skipping is no other request: what was done before the corrupt image is kept."""
    (pictures / "dogs/12.png").write_bytes(b"not a picture")
    backbone = tiny() if loaded else BackboneSettings(name="pixels", layers=[1], tokens="all", image_size=8)
    settings = CacheSettings(batch_size=2, shard_mb=1e-6)

    def start(out, on_error):
        return cache(backbone, ImageSettings(source=str(pictures), on_error=on_error), None, tmp_path / out, settings)

    with pytest.raises(WorkError, match=r"dogs/12\.png"):
        start("a", "fail")
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "a.partial/layer-01").glob("0*.safetensors")}
    assert 0 < len(times) < 12
    made = start("a", "skip")
    assert {name: (made.path / "layer-01" / name).stat().st_mtime_ns for name in times} == times
    assert f"resuming: {len(times)} of 12 shards are there" in capsys.readouterr().err
    assert made.id == start("b", "skip").id
    assert made.content["images"] == 22
    assert [image["path"] for image in made.content["skipped"]] == ["dogs/12.png"]
    assert "cannot be read as an image" in made.notes["skip_reasons"]["dogs/12.png"]
    assert str(pictures) not in json.dumps(made.content)


def test_the_argument_says_more_than_the_settings_about_corrupt_images(tiny, pictures, tmp_path):
    (pictures / "dogs/12.png").write_bytes(b"not a picture")
    images = ImageSettings(source=str(pictures), on_error="skip")
    with pytest.raises(WorkError, match=r"dogs/12\.png"):
        cache(tiny(), images, [1], tmp_path / "a", SMALL, on_error="fail")
    assert cache(tiny(), images, [1], tmp_path / "a", SMALL).content["images"] == 22


def test_a_store_without_any_image_is_not_sealed(tiny, pictures, tmp_path):
    for path in pictures.rglob("*.png"):
        path.write_bytes(b"not a picture")
    with pytest.raises(WorkError, match=r"not one of the 23 images could be read, the first because: .*cats"):
        store_of(tiny, pictures, tmp_path / "a", on_error="skip")
    assert not (tmp_path / "a").exists()


def test_skipping_images_does_not_pass_over_a_source_that_is_gone(tiny, pictures, tmp_path):
    source = source_of(pictures)
    read = source.read

    def broken(i):
        if i == 9:
            raise SourceError("the stream broke off at row 9")
        return read(i)

    source.read = broken
    with pytest.raises(WorkError, match="row 9"):
        cache(tiny(), source, [1], tmp_path / "a", SMALL, on_error="skip")


def test_sites_are_all_that_is_probed(pictures, tmp_path):
    """The default layer, 10, does not exist in a model of six blocks."""
    settings = BackboneSettings(name="timm/test_vit", pretrained=False, image_size=32, precision="fp32")
    source = source_of(pictures, limit=2)
    store = ActivationStore(cache(settings, source, [2, "blocks.1", 3], tmp_path / "a"))
    assert [site.info["folder"] for site in store.sites] == ["layer-02", "layer-03"]


def test_the_pictures_of_a_store_are_found_where_they_were_and_where_they_are(tiny, pictures, tmp_path):
    images = ImageSettings(source=str(pictures), limit=6)
    pixels = BackboneSettings(name="pixels", layers=[1], image_size=8)
    store = cache(pixels, images, None, tmp_path / "a")
    assert len(open_cached(store)) == 6
    pictures.rename(tmp_path / "moved")
    assert len(open_cached(store, str(tmp_path / "moved"))) == 6
    with pytest.raises(RequestError, match="there is no"):
        open_cached(store)
    with pytest.raises(RequestError, match="no pictures"):
        open_cached(write_store(tmp_path / "b", torch.zeros(2, 1, 3)).artifact)
    digits = cache(pixels, ImageSettings(source="digits", limit=2), None, tmp_path / "c")
    digits.notes["images_root"] = "/another/machine"
    assert len(open_cached(digits)) == 2


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_weights_that_are_not_there_are_a_wrong_request(pictures, tmp_path, make):
    make(tmp_path / "w.safetensors")
    images = ImageSettings(source=str(pictures))
    settings = BackboneSettings(name="timm/test_vit", layers=[1], weights=str(tmp_path / "w.safetensors"))
    with pytest.raises(RequestError, match=r"backbone\.weights: .*w\.safetensors cannot be read"):
        caching_stage(settings, open_source(images), images, SMALL)


@pytest.mark.parametrize("name", ["image", "held_out", "slice"])
def test_labels_do_not_take_the_tables_own_names(tmp_path, name):
    with pytest.raises(RequestError, match=f"'{name}'.*rename"):
        write_store(tmp_path / "a", torch.zeros(2, 1, 3), labels=[{"name": name, "kind": "number", "classes": None}])


def test_pixels_are_float32_whatever_the_processor(pictures):
    for name in ("pixels", "pixels/gray"):
        settings = BackboneSettings(name=name, layers=[1], image_size=8, precision="bf16")
        images = ImageSettings(source=str(pictures))
        assert caching_stage(settings, open_source(images), images, SMALL).config["backbone"]["precision"] == "fp32"
        assert load_backbone(settings).precision == "fp32"


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_number_of_decoding_processes_is_no_part_of_the_store(tiny, pictures, tmp_path, monkeypatch):
    threads = store_of(tiny, pictures, tmp_path / "threads").artifact
    for processes in (1, 3):
        monkeypatch.setattr("saetool.activations.caching.decoding_processes", lambda source, n=processes: n)
        made = store_of(tiny, pictures, tmp_path / f"by-{processes}").artifact
        assert made.id == threads.id
        assert made.files == threads.files
