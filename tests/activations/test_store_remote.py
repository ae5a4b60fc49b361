"""A store behind an fsspec address is the store: same rows, same batches, same model trained on it."""

import fsspec
import pytest
import torch
from pydantic import TypeAdapter
from typer.testing import CliRunner

from saetool.activations import ActivationStore, StoreStream, held_out_mask
from saetool.artifacts import Artifact
from saetool.autoencoders.families import AutoencoderSettings
from saetool.cli import app
from saetool.errors import RequestError, WorkError
from saetool.training import TrainingSettings, train

ADDRESS = "memory://bucket/runs/store"


@pytest.fixture
def both(numbered):
    """A store of five shards, and a copy of it in memory://."""
    local, values = numbered(images=50)
    files = fsspec.filesystem("memory")
    for file in sorted(local.artifact.path.rglob("*")):
        if file.is_file():
            files.pipe_file(f"/bucket/runs/store/{file.relative_to(local.artifact.path)}", file.read_bytes())
    yield local, ActivationStore.open(ADDRESS), values
    files.rm("/bucket", recursive=True)


def test_every_row_is_the_same(both):
    local, remote, values = both
    assert remote.artifact.id == local.artifact.id
    assert remote.images.equals(local.images)
    site = remote.site()
    assert torch.equal(site.rows(0, 50), values)
    assert torch.equal(site.rows(11, 13), values[11:13])
    out = torch.empty(30, 6, 8)
    site.read_into(out, 7, 37)
    assert torch.equal(out, values[7:37])
    mask = held_out_mask(local.digests, 0, 0.3)
    for name in ("count", "mean", "variance"):
        wanted, found = (getattr(s.site().statistics(mask), name) for s in (local, remote))
        torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(wanted), rtol=0, atol=0)


def test_a_file_address_and_a_path_are_one(both):
    local, _, values = both
    assert torch.equal(ActivationStore.open(f"file://{local.artifact.path}").site().rows(3, 9), values[3:9])


def test_batches_come_in_the_same_order(both):
    local, remote, _ = both
    mask = held_out_mask(local.digests, 0, 0.3)
    batches = [StoreStream(store.site(), 16, 60, 1, mask).batches() for store in (local, remote)]
    for _ in range(30):
        assert torch.equal(next(batches[0]), next(batches[1]))


def test_only_the_last_few_shards_stay_in_memory(both):
    _, remote, _ = both
    site = remote.site()
    for image in range(50):
        site.rows(image, image + 1)
    assert site._mapped.cache_info().misses == 5  # a pass in order fetches each shard once
    assert site._mapped.cache_info().currsize == 4


def test_training_on_it_gives_the_same_model_which_finds_its_store_again(both, tmp_path):
    local = both[0]
    settings = TypeAdapter(AutoencoderSettings).validate_python({"kind": "linear", "n_latents": 3})
    training = TrainingSettings(tokens=64, batch_size=16)
    wanted = train(local.artifact, settings, training, tmp_path / "local")
    made = train(ADDRESS, settings, training, tmp_path / "remote")
    assert made.id == wanted.id
    assert str(made.find_input("activations").path) == "memory:///bucket/runs/store"


def test_damage_is_named_with_its_address(both):
    files, (_, remote, _) = fsspec.filesystem("memory"), both
    shard = f"/bucket/runs/store/{remote.site().info['folder']}/00001.safetensors"
    site, data = remote.site(), files.cat_file(shard)
    site.rows(12, 13)
    files.pipe_file(shard, data[:-8])
    with pytest.raises(RequestError, match=r"00001\.safetensors has \d+ bytes"):
        Artifact.open(ADDRESS)
    with pytest.raises(RequestError, match="ends too early"):
        site.read_into(torch.empty(12, 6, 8), 12, 24)
    files.rm_file(shard)
    with pytest.raises(WorkError, match=r"memory:///bucket.*00001\.safetensors: cannot be read"):
        site.read_into(torch.empty(12, 6, 8), 12, 24)
    with pytest.raises(RequestError, match=r"memory:///bucket.*is missing"):
        Artifact.open(ADDRESS)


def test_a_server_that_gives_whole_files_for_parts_is_named(both, monkeypatch):
    files, (_, remote, _) = fsspec.filesystem("memory"), both
    whole = type(files).cat_file
    monkeypatch.setattr(type(files), "cat_file", lambda self, path, start=None, end=None: whole(self, path))
    site = remote.site()
    site.read_into(torch.empty(2, 6, 8), 3, 5)
    with pytest.raises(WorkError, match=r"00000\.safetensors: cannot be read \(its server answers.*whole file"):
        site.read_into(torch.empty(2, 6, 8), 3, 5)


def test_a_wrong_range_of_the_right_length_is_noticed(both, monkeypatch):
    files, (_, remote, values) = fsspec.filesystem("memory"), both
    site, out, right = remote.site(), torch.empty(2, 6, 8), type(files).cat_file
    site.read_into(out, 3, 5)
    site.read_into(out, 3, 5)
    assert torch.equal(out, values[3:5])

    def shifted(self, path, start=None, end=None):
        return right(self, path, start and start - 4, end and end - 4)

    monkeypatch.setattr(type(files), "cat_file", shifted)
    with pytest.raises(RequestError, match=r"00000\.safetensors: its server sends other bytes"):
        site.read_into(out, 3, 5)


def test_an_artifact_at_an_address_can_be_described_and_verified(both):
    def said(command, address):
        ended = CliRunner().invoke(app, [command, address])
        return ended.exit_code, ended.output + str(ended.exception)

    code, text = said("info", ADDRESS)
    assert code == 0
    assert both[0].artifact.id in text
    assert said("verify", ADDRESS) == (0, "memory:///bucket/runs/store: intact\nNone")
    fsspec.filesystem("memory").pipe_file("/bucket/runs/store/images.parquet", b"x")
    code, text = said("verify", ADDRESS)
    assert code == 1
    assert "images.parquet: 1 bytes instead of" in text
    code, text = said("verify", "memory://bucket/none")
    assert "memory:///bucket/none: no saetool artifact" in text


@pytest.mark.parametrize("address", ["memory://bucket/none", "strange://bucket/none"])
def test_nothing_there_is_said(address):
    with pytest.raises(RequestError, match=r"bucket/none"):
        Artifact.open(address)
