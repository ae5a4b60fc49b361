"""What is written comes back; what is damaged or does not fit is refused with its name."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file

from saetool.activations import ActivationStore, CacheSettings, store as store_module, write_store
from saetool.activations.shard import Shard, shard_bytes
from saetool.activations.store import runs
from saetool.artifacts import verify
from saetool.errors import RequestError


def test_rows_come_back(numbered):
    store, values = numbered()
    site = store.site()
    assert (site.tokens, site.d, site.dtype, store.n_images) == (6, 8, torch.float32, 50)
    for start, stop in [(0, 50), (0, 0), (50, 50), (3, 4), (11, 13), (12, 24), (10, 40), (49, 50)]:
        assert torch.equal(site.rows(start, stop), values[start:stop])


def test_rows_inside_a_shard_are_views(numbered):
    site = numbered()[0].site()
    first, second = site.rows(0, 3), site.rows(1, 2)
    assert first[1].data_ptr() == second.data_ptr()


def test_writing_into_a_view_leaves_the_file_alone(numbered):
    store, _ = numbered()
    store.site().rows(0, 3).zero_()
    assert verify(store.artifact.path) == []


def test_the_files_are_plain_safetensors(numbered):
    store, values = numbered()
    found = load_file(store.artifact.file("rows/00001.safetensors"))
    assert list(found) == ["tokens"]
    assert torch.equal(found["tokens"], values[12:24])


def test_slices_and_shards_cover_the_images(numbered):
    store, _ = numbered()
    assert [i for block in store.slices for i in block] == list(range(50))
    assert [len(block) for block in store.slices] == [4] * 12 + [2]
    assert store.artifact.content["shards"] == [12, 12, 12, 12, 2]
    assert store.images["slice"].to_pylist() == [i // 4 for i in range(50)]


def test_stored_statistics_are_those_of_the_rows(numbered):
    store, values = numbered()
    found = load_file(store.artifact.file("rows/stats.safetensors"))
    rows = values.reshape(-1, 8).double()
    assert int(found["count"]) == 300
    assert int(found["non_finite"]) == 0
    assert torch.allclose(found["mean"], rows.mean(0))
    assert torch.allclose(found["variance"], rows.var(0, correction=0))
    assert float(found["mean_norm"]) == pytest.approx(float(rows.norm(dim=1).mean()), rel=1e-6)
    assert float(found["max_abs"]) == float(rows.abs().max())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_statistics_of_some_images(numbered, share):
    store, values = numbered()
    mask = np.random.default_rng(0).random(50) < share
    found, rows = store.site().statistics(mask), values[torch.from_numpy(mask)].reshape(-1, 8).double()
    assert found.count == len(rows)
    assert torch.allclose(found.mean, rows.mean(0), rtol=1e-10, atol=1e-12)
    assert torch.allclose(found.variance, rows.var(0, correction=0), rtol=1e-10, atol=1e-12)


def test_several_sites_keep_the_order_they_were_given_in(tmp_path):
    sites = {"layer-11": torch.zeros(5, 2, 3), "layer-02": torch.ones(5, 4, 6)}
    store = write_store(tmp_path / "store", sites)
    assert [site.info["folder"] for site in store.sites] == ["layer-11", "layer-02"]
    assert store.site("layer-02").rows(0, 5).shape == (5, 4, 6)
    with pytest.raises(RequestError, match="layer-11, layer-02"):
        store.site()
    with pytest.raises(RequestError, match="layer-11, layer-02"):
        store.site(7)


def test_labels_are_kept(tmp_path):
    labels = [
        {"name": "kind", "kind": "category", "classes": ["a", "b"]},
        {"name": "size", "kind": "number", "classes": None},
    ]
    images = [{"path": f"{i}.png", "kind": "ab"[i % 2], "size": i / 2} for i in range(4)] + [{"path": "4.png"}]
    store = write_store(tmp_path / "store", torch.zeros(5, 1, 2), images=images, labels=labels)
    assert store.images["kind"].to_pylist() == ["a", "b", "a", "b", None]
    assert store.images["size"].to_pylist() == [0, 0.5, 1, 1.5, None]
    assert store.artifact.content["labels"] == labels


def test_a_label_that_would_hide_a_column_is_refused(tmp_path):
    with pytest.raises(RequestError, match="digest"):
        write_store(
            tmp_path / "s", torch.zeros(2, 1, 2), labels=[{"name": "digest", "kind": "category", "classes": None}]
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    rows = torch.zeros(5, 2, 3)
    rows[3, 1, 2] = value
    with pytest.raises(RequestError, match="finite"):
        write_store(tmp_path / "store", rows)
    with pytest.raises(RequestError, match="float16"):
        write_store(tmp_path / "half", torch.full((2, 1, 2), 1e6), settings=CacheSettings(dtype="float16"))


def test_the_place_does_not_matter(numbered, tmp_path):
    store, values = numbered()
    shutil.move(store.artifact.path, tmp_path / "elsewhere")
    moved = ActivationStore.open(tmp_path / "elsewhere")
    assert moved.artifact.id == store.artifact.id
    assert torch.equal(moved.site().rows(0, 50), values)
    assert str(tmp_path) not in json.dumps(moved.artifact.content) + json.dumps(moved.artifact.config)


def test_the_same_rows_make_the_same_store(numbered):
    first, second = numbered(name="a")[0], numbered(name="b")[0]
    assert first.artifact.id == second.artifact.id


def damaged_shard(numbered, damage) -> ActivationStore:
    store, _ = numbered()
    path = store.artifact.path / "rows/00001.safetensors"
    damage(path)
    return store


def overwrite(path, data: bytes) -> None:
    """Put other bytes of the same length in the place of a file's first ones."""
    with path.open("r+b") as file:
        file.write(data)


HUGE = (1 << 62).to_bytes(8, "little")
DAMAGES = {
    "another dtype": lambda path: save_file({"tokens": torch.zeros(12, 6, 8, dtype=torch.bfloat16)}, path),
    "another shape": lambda path: save_file({"tokens": torch.zeros(6, 12, 8)}, path),
    "another name": lambda path: save_file({"activations": torch.zeros(12, 6, 8)}, path),
    "two tensors": lambda path: save_file({"tokens": torch.zeros(12, 6, 8), "zz": torch.zeros(3)}, path),
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "huge header": lambda path: overwrite(path, HUGE),
    "not JSON": lambda path: overwrite(path, path.read_bytes()[:8] + b"}}}}"),
    "a list": lambda path: path.write_bytes((2).to_bytes(8, "little") + b"[]"),
    "nested": lambda path: path.write_bytes((90_000).to_bytes(8, "little") + b"[" * 90_000),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_shard_is_refused_by_name(numbered, name):
    store = damaged_shard(numbered, DAMAGES[name])
    site = store.site()
    site.rows(0, 12)  # the shards beside it stay readable
    with pytest.raises(RequestError, match="00001"):
        site.rows(12, 13)
    assert any("00001" in problem for problem in verify(store.artifact.path))


def test_another_writers_header_without_padding_is_read(tmp_path):
    values = torch.randn(2, 3, 4)
    header = json.dumps({"tokens": {"dtype": "F32", "shape": [2, 3, 4], "data_offsets": [0, 96]}}).encode()
    header += b" " * (3 - len(header) % 4)  # so that the data begins at an odd place
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + values.numpy().tobytes())
    shard = Shard.open(path, (2, 3, 4), torch.float32)
    assert shard.begin % 4
    assert torch.equal(shard.map(), values)
    out = torch.empty(1, 3, 4)
    shard.read_into(out, 1)
    assert torch.equal(out, values[1:])


def test_reading_does_not_map(numbered):
    store, values = numbered()
    out = torch.empty(20, 6, 8)
    store.site().read_into(out, 5, 25)
    assert torch.equal(out, values[5:25])


@pytest.mark.parametrize("skipped", [0, 200, 400, 1 << 20])  # an image has 192 bytes
@pytest.mark.parametrize("short", [False, True])
def test_runs_of_images_are_read_whatever_lies_between_them(numbered, monkeypatch, skipped, short):
    monkeypatch.setattr(store_module, "_SKIPPED", skipped)
    store, values = numbered()
    assert len(store.site()._shards) > 1
    calls, read = [], os.preadv

    def preadv(file, targets, place):
        calls.append(sum(map(len, targets)))
        if short and len(targets[0]) > 100:  # a system may give less than was asked for
            return read(file, [targets[0][:100]], place)
        return read(file, targets, place)

    monkeypatch.setattr(os, "preadv", preadv)
    wanted = [(0, 1), (2, 5), (7, 8), (11, 30), (31, 32)]
    out = torch.empty(25, 6, 8)
    store.site().read_runs_into(out, wanted)
    assert torch.equal(out, torch.cat([values[a:b] for a, b in wanted]))
    if skipped == 200 and not short:
        assert calls[0] == 5 * 192  # images 0 to 4, and what is nobody's in between


def test_many_shards_need_few_file_descriptors(numbered):
    site = numbered(images=200, batch_size=1, shard_mb=1e-4)[0].site()
    before = len(os.listdir("/proc/self/fd"))
    kept = [site.rows(i, i + 1) for i in range(200)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert [int(rows[0, 0, 0]) for rows in kept] == list(range(200))


def test_images_outside_the_store_are_refused(numbered):
    site = numbered()[0].site()
    for start, stop in [(-1, 2), (0, 51), (3, 2)]:
        with pytest.raises(RequestError, match="50"):
            site.rows(start, stop)


def test_an_empty_store_of_no_images_can_be_made(tmp_path):
    store = write_store(tmp_path / "empty", torch.zeros(0, 2, 3))
    assert store.n_images == 0
    assert store.site().rows(0, 0).shape == (0, 2, 3)


def test_runs():
    assert runs(np.array([], dtype=bool)) == []
    assert runs(np.array([1, 1, 0, 1, 0, 0, 1], dtype=bool)) == [(0, 2), (3, 4), (6, 7)]


def test_numpy_arrays_are_taken_and_other_things_refused(tmp_path):
    store = write_store(tmp_path / "store", np.ones((2, 3, 4), np.float32))
    assert store.site().rows(0, 2).shape == (2, 3, 4)
    for wrong, kind in ((["no"], "list"), ({"a": 7}, "int"), ({}, "nothing")):
        with pytest.raises(RequestError, match=f"write_store takes tensors or numpy arrays .*, not {kind}"):
            write_store(tmp_path / "wrong", wrong)
    for shape in ((2, 0, 4), (2, 3, 0)):
        with pytest.raises(RequestError, match="has no tokens or no width"):
            write_store(tmp_path / "wrong", torch.ones(shape))


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("category", 1, "are text; 1 is not"),
        ("category", "cow", r"is 'cow', which is none of its classes \(cat, dog\)"),
        ("category", "\ud800", "no text that a table can hold"),
        ("number", "three", "a column of numbers, and 'three' is none"),
        ("number", True, "a column of numbers, and True is none"),
    ],
)
def test_labels_of_another_kind_than_their_column_are_refused(kind, value, message, tmp_path):
    columns = [{"name": "x", "kind": kind, "classes": ["cat", "dog"] if kind == "category" else None}]
    with pytest.raises(RequestError, match=message):
        write_store(tmp_path / "wrong", torch.ones(1, 2, 3), images=[{"x": value}], labels=columns)


def test_labels_that_are_no_number_are_none(tmp_path):
    columns = [{"name": "x", "kind": "number"}]
    images = [{"x": value} for value in (1, float("nan"), float("-inf"), None)]
    store = write_store(tmp_path / "store", torch.ones(4, 2, 3), images=images, labels=columns)
    assert store.images["x"].to_pylist() == [1.0, None, None, None]


def test_values_too_large_to_square_are_refused(tmp_path):
    rows = torch.ones(2, 2, 3)
    rows[1, 0, 1] = 1e19
    with pytest.raises(RequestError, match="not finite and below 1e"):
        write_store(tmp_path / "wrong", rows)
    rows[1, 0, 1] = 1e16
    assert write_store(tmp_path / "store", rows).site().statistics().mean.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("cuts", [[7], [3, 4], [0, 5, 2], [0]])
def test_a_shard_written_in_pieces_has_the_bytes_that_safetensors_writes(dtype, cuts):
    rows = torch.randn(sum(cuts), 5, 3).to(dtype)
    pieces = [piece.transpose(1, 2).contiguous().transpose(1, 2) for piece in rows.split(cuts)]
    assert b"".join(map(bytes, shard_bytes(pieces))) == save({"tokens": rows})
