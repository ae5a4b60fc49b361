"""The index does not depend on how the store is cut, how often the job was killed, or how many chunks run at once."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

from saetool.activations import ActivationStore, CacheSettings, cache, write_store
from saetool.artifacts import Artifact
from saetool.autoencoders.families import AutoencoderSettings
from saetool.errors import RequestError
from saetool.features import Features, IndexSettings, encoding, index, neighbors, spill
from saetool.training import TrainingSettings, train
from saetool.vision import wrap


def random_tokens(images: int = 13, tokens: int = 4, latents: int = 9) -> torch.Tensor:
    z = torch.randn(images, tokens, latents, generator=torch.Generator().manual_seed(3))
    return (z * 8).round() / 4 - 1


def digests(artifact: Artifact) -> dict[str, str]:
    return {name: entry["digest"] for name, entry in artifact.files.items()}


LABELED = {
    "images": [{"kind": "ab"[i % 2], "size": float(i % 5)} for i in range(13)],
    "labels": [{"name": "kind", "kind": "category", "classes": ["a", "b"]}, {"name": "size", "kind": "number"}],
    "grid": (2, 2),
}


@pytest.fixture(scope="module")
def whole(build_index):
    return build_index(random_tokens(), **LABELED)


def test_a_dark_first_image_does_not_set_the_scale_of_the_sums(build_index):
    tokens = random_tokens()
    tokens[0] *= 2.0**-40
    found = Features(build_index(tokens)).latents
    positive = tokens.flatten(0, 1).double().clamp_min(0)
    expected = positive.sum(0) / (positive > 0).sum(0)
    np.testing.assert_allclose(found["mean_firing"].to_numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_slices_and_shards_make_no_difference(build_index, whole, batch_size):
    other = build_index(random_tokens(), batch_size=batch_size, shard_mb=1e-6, **LABELED)
    assert digests(other) == digests(whole)


@pytest.mark.parametrize(
    ("chunk_rows", "part_rows", "block", "cells"),
    [(4, 4, 1, 1 << 20), (12, 16, 7, 1 << 20), (1, 1000, 1 << 22, 1), (1000, 1000, 1 << 22, 10)],
)
def test_chunks_parts_and_blocks_make_no_difference(
    build_index, whole, monkeypatch, chunk_rows, part_rows, block, cells
):
    monkeypatch.setattr(encoding, "CHUNK_ROWS", chunk_rows)
    monkeypatch.setattr(encoding, "PART_ROWS", part_rows)
    monkeypatch.setattr(spill, "BLOCK_RECORDS", block)
    monkeypatch.setattr(spill, "BLOCK_CELLS", cells)
    monkeypatch.setattr(neighbors, "_CELLS", cells)
    monkeypatch.setattr(neighbors, "BLOCK", 4)
    monkeypatch.setattr(spill, "STRIPES", 5)
    assert digests(build_index(random_tokens(), **LABELED)) == digests(whole)


def test_one_worker_or_three_make_no_difference(build_index, whole, monkeypatch):
    monkeypatch.setattr(encoding, "CHUNK_ROWS", 8)
    for workers in (1, 3):
        monkeypatch.setattr(encoding, "worker_count", lambda device, n=workers: n)
        assert digests(build_index(random_tokens(), **LABELED)) == digests(whole)


@pytest.mark.parametrize("cells", [1, 6 * 8, 1 << 20])
def test_the_stages_that_feed_a_gpu_make_no_difference(build_index, whole, monkeypatch, cells):
    monkeypatch.setattr(encoding.Pass, "staged", True)
    monkeypatch.setattr(encoding, "GPU_CELLS", cells)
    monkeypatch.setattr(encoding, "GPU_PART_ROWS", 16)
    with monkeypatch.context() as plain:
        plain.setenv("SAETOOL_BACKEND", "reference")
        assert digests(build_index(random_tokens(), **LABELED)) == digests(whole)


def test_an_error_in_a_stage_is_raised(build_index, monkeypatch, tmp_path):
    def broken(self, rows, *given):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("broken stage")
        return encode(self, rows, *given)

    encode, calls = encoding.Pass.codes, []
    monkeypatch.setattr(encoding.Pass, "staged", True)
    monkeypatch.setattr(encoding, "GPU_CELLS", 1)
    monkeypatch.setattr(encoding.Pass, "codes", broken)
    with pytest.raises(RuntimeError, match="broken stage"):
        build_index(random_tokens(), where=tmp_path, **LABELED)
    assert not (tmp_path / "features").exists()


def test_work_begun_on_a_device_that_cuts_otherwise_is_not_taken_for_this_one_s(
    build_index, whole, monkeypatch, tmp_path
):
    """Parts are told by their images: the first of four is not the first of two."""
    with monkeypatch.context() as other:
        other.setattr(encoding, "CHUNK_ROWS", 8)
        other.setattr(encoding, "PART_ROWS", 12)
        other.setattr(encoding, "_gather", _stop)
        with pytest.raises(KeyboardInterrupt):
            build_index(random_tokens(), where=tmp_path, **LABELED)
    monkeypatch.setattr(encoding, "CHUNK_ROWS", 8)
    monkeypatch.setattr(encoding, "PART_ROWS", 24)
    assert digests(build_index(random_tokens(), where=tmp_path, **LABELED)) == digests(whole)


def _stop(*given):
    raise KeyboardInterrupt


def test_only_images_of_which_something_is_drawn_are_encoded_again(build_index, monkeypatch, tmp_path):
    """Latent 0 fires on two of thirteen images."""
    z = torch.zeros(13, 4, 3)
    z[[3, 9], 1, 0] = torch.tensor([2.0, 1.0])
    encode, seen = encoding.Pass.encode, []
    monkeypatch.setattr(
        encoding.Pass, "encode", lambda self, rows, *g: seen.append(len(rows)) or encode(self, rows, *g)
    )
    features = Features(build_index(z, where=tmp_path, grid=(2, 2)))
    assert seen == [13, 13, 2]  # for the unit, for the pass, for the heat maps
    assert [features.heat(row).argmax() for row in features.top(0)] == [1, 1]


@pytest.mark.parametrize("calls", [1, 3, 6, 9, 14])
def test_a_killed_index_resumes_to_the_same_files(build_index, whole, monkeypatch, tmp_path, calls):
    monkeypatch.setattr(encoding, "CHUNK_ROWS", 8)
    monkeypatch.setattr(encoding, "PART_ROWS", 16)
    monkeypatch.setattr(encoding, "worker_count", lambda device: 1)
    encode, left, seen = encoding.Pass.encode, [calls], []

    def killed(self, chunk, *given):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        seen.append(chunk)
        return encode(self, chunk, *given)

    monkeypatch.setattr(encoding.Pass, "encode", killed)
    with pytest.raises(KeyboardInterrupt):
        build_index(random_tokens(), where=tmp_path, **LABELED)
    assert not (tmp_path / "features").exists()
    left[0], first = -1, len(seen)
    resumed = build_index(random_tokens(), where=tmp_path, **LABELED)
    assert digests(resumed) == digests(whole)
    chunks = 7
    # Each chunk twice (pass and heat maps) and the first once for the unit, less what the first attempt had finished.
    assert len(seen) - first <= 2 * chunks + 1 - max(0, (calls - 1) // 2 * 2 - 1) + 1


@pytest.mark.parametrize("cut", ["heat-00000000-00000013.bin", "heat.bin"])
def test_a_kill_that_leaves_an_empty_heat_file_is_survived(build_index, whole, monkeypatch, tmp_path, cut):
    opened, left = Path.open, []

    def killed(self, *given, **named):
        if self.name == cut and not left:
            left.append(self)
            opened(self, *given, **named).close()
            raise KeyboardInterrupt
        return opened(self, *given, **named)

    monkeypatch.setattr(Path, "open", killed)
    with pytest.raises(KeyboardInterrupt):
        build_index(random_tokens(), where=tmp_path, **LABELED)
    assert left[0].stat().st_size == 0
    assert digests(build_index(random_tokens(), where=tmp_path, **LABELED)) == digests(whole)


def test_an_error_in_a_worker_is_raised_and_leaves_no_artifact(build_index, monkeypatch, tmp_path):
    def broken(self, codes, first_image):
        raise RuntimeError("broken worker")

    monkeypatch.setattr("saetool.features.firing_statistics.FiringStatistics.add", broken)
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="broken worker"):
        build_index(random_tokens(), where=tmp_path, **LABELED)
    assert not (tmp_path / "features").exists()
    assert torch.get_num_threads() == threads


def test_tokens_without_a_grid_have_no_patches_and_no_heat(build_index):
    features = Features(build_index(random_tokens(tokens=1)))
    assert features.grid is None
    row = features.top(0)[0]
    assert (row["patch"], row["heat"]) == (None, None)
    assert row["value"] == random_tokens(tokens=1)[:, 0, 0].max()
    with pytest.raises(RequestError, match="no grid"):
        features.heat(row)
    assert features.latent(0)["spatial_entropy"] is None
    with pytest.raises(RequestError, match="no labels"):
        _ = features.label_statistics


@pytest.mark.parametrize("images", [1, 4])
def test_when_every_latent_is_dead_there_is_a_row_each_and_no_example(build_index, images):
    features = Features(build_index(-torch.ones(images, 6, 3), grid=(2, 3)))
    assert features.latents["status"].to_pylist() == ["dead"] * 3
    assert len(features.top(1)) == 0
    assert len(features.similar(1, "coactivation")) == 0
    assert len(features.firing(0)) == 0
    assert features.latent(1)["max"] is None
    assert features.latent(1)["mean"] == 0


def test_another_site_is_refused_naming_both(build_index, tmp_path):
    artifact = build_index(random_tokens(), grid=(2, 2))
    autoencoder = artifact.find_input("autoencoder")
    settings = CacheSettings(dtype="float32")
    other = write_store(tmp_path / "other", {"layer-3": random_tokens()}, grid=(2, 2), settings=settings)
    with pytest.raises(RequestError, match=r"rows.*layer-3"):
        index(autoencoder, other.artifact, tmp_path / "features")


def test_another_set_of_images_at_the_same_site_is_welcome(build_index, tmp_path):
    artifact = build_index(random_tokens(), grid=(2, 2))
    fewer = write_store(tmp_path / "fewer", random_tokens()[:5], grid=(2, 2), settings=CacheSettings(dtype="float32"))
    small = Features(index(artifact.find_input("autoencoder"), fewer.artifact, tmp_path / "features"))
    assert small.content["images"] == 5
    whole = Features(artifact).images.slice(0, 5)
    assert small.images["held_out"].to_pylist() == whole["held_out"].to_pylist()


def test_an_unknown_embedding_layer_is_refused(build_index, tmp_path):
    with pytest.raises(RequestError, match="No site"):
        build_index(random_tokens(), where=tmp_path, settings=IndexSettings(embedding_layer="layer-12"))


def test_monosemanticity_comes_from_another_layer_of_the_store(tmp_path, build_index):
    z = random_tokens().clamp_min(0)
    embeddings = torch.randn(13, 2, 5, generator=torch.Generator().manual_seed(0))
    features = Features(
        build_index(
            {"rows": z, "layer-12": embeddings}, where=tmp_path, settings=IndexSettings(embedding_layer="layer-12")
        )
    )
    u = torch.nn.functional.normalize(embeddings.mean(1), dim=1).double()
    for j in range(z.shape[2]):
        a = z[:, :, j].amax(1).double()
        a = (a - a.min()) / (a.max() - a.min())
        pairs = [(n, m) for n in range(13) for m in range(13) if n != m]
        weight = sum(a[n] * a[m] for n, m in pairs)
        wanted = sum(a[n] * a[m] * (u[n] @ u[m]) for n, m in pairs) / weight
        assert features.latent(j)["monosemanticity"] == pytest.approx(float(wanted), abs=1e-6)
    every = [float(u[n] @ u[m]) for n in range(13) for m in range(13) if n != m]
    assert features.content["embedding"]["all_pairs"] == pytest.approx(np.mean(every), abs=1e-6)
    assert features.content["embedding"]["site"] == "layer-12"


def test_embeddings_of_a_second_model_come_from_a_store_of_the_same_images(build_index, tmp_path):
    """`index.embeddings` names the store; it counts as an input, its place does not count."""
    z, u = random_tokens(), torch.randn(13, 1, 5, generator=torch.Generator().manual_seed(0))
    images = [{"digest": f"image {i}"} for i in range(13)]
    one_store = {"rows": z.clamp_min(0), "layer-12": u.expand(-1, 4, -1)}
    wanted = Features(build_index(one_store, images=images, settings=IndexSettings(embedding_layer="layer-12")))
    cache = CacheSettings(dtype="float32")
    write_store(tmp_path / "other", {"mean": u}, images=images, settings=cache)
    settings = IndexSettings(embeddings=str(tmp_path / "other"))
    found = Features(build_index(z, images=images, settings=settings))
    assert found.latents["monosemanticity"].to_pylist() == pytest.approx(
        wanted.latents["monosemanticity"].to_pylist(), abs=1e-6
    )
    assert [entry["kind"] for entry in found.artifact.inputs] == ["autoencoder", "activations", "activations"]
    (tmp_path / "other").rename(tmp_path / "moved")
    moved = build_index(z, images=images, settings=IndexSettings(embeddings=str(tmp_path / "moved")))
    assert moved.id == found.artifact.id
    write_store(tmp_path / "two", {"a": u, "b": u}, images=images, settings=cache)
    with pytest.raises(RequestError, match=r"several sites; name one as index\.embedding_layer: a, b"):
        build_index(z, images=images, settings=IndexSettings(embeddings=str(tmp_path / "two")))
    write_store(tmp_path / "fewer", {"a": u[:12]}, images=images[:12], settings=cache)
    with pytest.raises(RequestError, match="hold different images"):
        build_index(z, images=images, settings=IndexSettings(embeddings=str(tmp_path / "fewer")))


class Patches(torch.nn.Module):
    """Four patches of an 8 × 8 picture through two layers."""

    def __init__(self, d=6):
        super().__init__()
        self.embed = torch.nn.Conv2d(3, d, 4, stride=4)
        self.blocks = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Linear(d, d), torch.nn.GELU()) for _ in "ab"])

    def forward(self, images):
        x = self.embed(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return x.mean(1)


def test_what_the_store_keeps_as_embedding_is_taken_unasked(tmp_path):
    """Trained, indexed and found without naming a site: the embedding is none."""
    torch.manual_seed(0)
    model = wrap(Patches(), [2], image_size=8, name="patches")
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 255, (8, 8, 3)).astype(np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i:02d}.png")
    source = str(tmp_path / "images")
    stores = [
        cache(model, source, layers, tmp_path / name, CacheSettings(dtype="float32", batch_size=4, embedding=embedding))
        for name, layers, embedding in (("kept", [2], 1), ("both", [1, 2], None))
    ]
    settings = TypeAdapter(AutoencoderSettings).validate_python(
        {"kind": "sparse", "n_latents": 12, "penalty": {"kind": "l1", "weight": 0.1}}
    )
    trained = train(stores[0], settings, TrainingSettings(tokens=128, batch_size=32, held_out=0.2), tmp_path / "model")
    found = Features(index(trained, stores[0], tmp_path / "a")).latents["monosemanticity"].to_pylist()
    named = index(trained, stores[1], tmp_path / "b", IndexSettings(embedding_layer=1))
    assert found == pytest.approx(Features(named).latents["monosemanticity"].to_pylist(), abs=1e-6)
    assert any(score is not None for score in found)
    from_other = index(trained, stores[1], tmp_path / "c", embeddings=stores[0])
    assert Features(from_other).latents["monosemanticity"].to_pylist() == found


def test_the_store_is_found_again_from_the_features(whole):
    assert ActivationStore(whole.find_input("activations")).n_images == 13


def test_of_latents_with_many_columns_few_are_held_at_a_time(tmp_path, monkeypatch):
    from saetool.features.firing_statistics import FiringStatistics
    from saetool.features.maxima import RECORD

    monkeypatch.setattr(spill, "BLOCK_CELLS", 1000)
    writer = spill.PartWriter(tmp_path, 256)
    records = np.zeros(256, RECORD)
    records["latent"] = np.arange(256)
    writer.add(records, torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, 1))
    writer.close(FiringStatistics.empty(256, 1, 1.0))
    read = spill.Spill([tmp_path], 256)
    assert [read.latents_of(*span) for span in read.spans()] == [(0, 256)]
    cut = [read.latents_of(*span) for span in read.spans(100)]
    assert max(stop - first for first, stop in cut) == 10
    assert np.concatenate([read.block(*span)["latent"] for span in read.spans(100)]).tolist() == list(range(256))
