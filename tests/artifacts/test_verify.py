"""Whatever happens to a sealed directory, `verify` sees it; and nothing that opens it falls over."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from saetool.artifacts import Artifact, Partial, Stage, run_stage, verify
from saetool.artifacts.manifest import MANIFEST
from saetool.errors import RequestError

MANY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Return a sealed artifact with every kind of file, an empty one and a log among them."""

    def build(partial: Partial) -> dict:
        partial.write_tensors("layer-01/00000.safetensors", {"tokens": torch.arange(24.0).view(2, 3, 4)})
        partial.write_table("images.parquet", pyarrow.table({"id": [0, 1], "path": ["ä.png", "b.png"]}))
        partial.write_json("summary.json", {"mean": 0.1})
        partial.write_bytes("empty.bin", b"")
        partial.append_log("metrics.jsonl", {"step": 1, "seconds": 0.5})
        return {"images": 2}

    path = tmp_path_factory.mktemp("sealed") / "a"
    run_stage(Stage("activations", {"seed": 0}, build), path)
    assert verify(path) == []
    return path


@pytest.fixture
def copy(whole, tmp_path):
    """Return a maker of fresh copies."""

    def make() -> Path:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        return Path(shutil.copytree(whole, tmp_path / "copy"))

    return make


def files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file())


def opens_or_refuses(path: Path) -> None:
    """Opening a damaged artifact gives it or a RequestError, never anything else."""
    try:
        artifact = Artifact.open(path)
    except RequestError:
        return
    assert artifact.kind == "activations"


@MANY
@given(st.data())
def test_any_flipped_bit_is_found(copy, data):
    path = copy()
    file = data.draw(st.sampled_from([file for file in files_of(path) if file.stat().st_size]))
    content = bytearray(file.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    assert verify(path)
    opens_or_refuses(path)


@MANY
@given(st.data())
def test_any_truncation_is_found(copy, data):
    path = copy()
    file = data.draw(st.sampled_from([file for file in files_of(path) if file.stat().st_size]))
    os.truncate(file, data.draw(st.integers(0, file.stat().st_size - 1)))
    assert verify(path)
    with pytest.raises(RequestError):
        Artifact.open(path)


@MANY
@given(st.data())
def test_any_change_of_some_bytes_is_found(copy, data):
    path = copy()
    file = data.draw(st.sampled_from([file for file in files_of(path) if file.stat().st_size]))
    content = file.read_bytes()
    start = data.draw(st.integers(0, len(content) - 1))
    stop = data.draw(st.integers(start + 1, min(len(content), start + 64)))
    other = data.draw(
        st.binary(min_size=stop - start, max_size=stop - start).filter(lambda b: b != content[start:stop])
    )
    file.write_bytes(content[:start] + other + content[stop:])
    assert verify(path)
    opens_or_refuses(path)


def test_any_missing_file_is_found(whole, copy):
    for file in files_of(whole):
        path = copy()
        (path / file.relative_to(whole)).unlink()
        assert verify(path)
        with pytest.raises(RequestError):
            Artifact.open(path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("extra.bin", "extra.bin"),
        ("layer-01/00001.safetensors", "layer-01/00001.safetensors"),
        ("new/folder/x", "new"),
        (".hidden", ".hidden"),
        ("images.parquet.tmp", "images.parquet.tmp"),
    ],
)
def test_any_extra_file_is_found(copy, name, said):
    path = copy()
    (path / name).parent.mkdir(parents=True, exist_ok=True)
    (path / name).write_bytes(b"")
    assert verify(path) == [f"{said}: does not belong to it"]


def test_two_files_of_one_size_exchanged_are_found(tmp_path):
    def build(partial: Partial) -> dict:
        for name, value in (("a", 0.0), ("b", 1.0)):
            partial.write_tensors(f"{name}.safetensors", {"t": torch.full((8,), value)})
        return {}

    run_stage(Stage("activations", {}, build), tmp_path / "x")
    a, b = tmp_path / "x/a.safetensors", tmp_path / "x/b.safetensors"
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    assert len(verify(tmp_path / "x")) == 2


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.binary(max_size=300) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["kind", "schema", "files", "notes", "seal", "id", "inputs", "config", "content"]), inner),
    max_leaves=12,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_anything_in_the_manifests_place_is_refused(copy, content):
    path = copy()
    (path / MANIFEST).write_bytes(content)
    assert verify(path)
    with pytest.raises(RequestError):
        Artifact.open(path)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../outside", "", "x\0y", "a\\..\\b"])
def test_a_name_that_leads_outside_is_refused_even_under_a_right_seal(copy, name):
    from saetool.artifacts.manifest import id_of, read_manifest, render, seal_of

    path = copy()
    (path.parent / "outside").write_bytes(b"secret")
    manifest = read_manifest(path)
    manifest["files"][name] = {"bytes": 6, "digest": "xxh3-128:0"}
    manifest["id"] = id_of(manifest)
    manifest["seal"] = seal_of(manifest)
    (path / MANIFEST).write_bytes(render(manifest))
    assert verify(path)
    with pytest.raises(RequestError):
        Artifact.open(path)


def test_a_renamed_directory_is_intact(copy):
    path = copy()
    moved = path.rename(path.with_name("moved somewhere else"))
    assert verify(moved) == []
    assert Artifact.open(moved).content == {"images": 2}


def test_reading_reports_every_byte(whole):
    seen = []
    verify(whole, seen.append)
    assert sum(seen) == sum(file.stat().st_size for file in files_of(whole) if file.name != MANIFEST)
    assert np.all(np.array(seen) >= 0)


def test_a_table_is_read_whole_or_in_part_and_a_column_that_it_lacks_is_named(whole):
    artifact = Artifact.open(whole)
    assert artifact.read_table("images.parquet").column_names == ["id", "path"]
    assert artifact.read_table("images.parquet", ["path", "id"]).column_names == ["path", "id"]
    filtered = artifact.read_table("images.parquet", ["path"], [("id", "=", 1)])
    assert filtered.to_pydict() == {"path": ["b.png"]}
    for filters in (None, [("id", "=", 1)]):
        with pytest.raises(RequestError, match=r"images\.parquet has no column 'lab'"):
            artifact.read_table("images.parquet", ["id", "lab"], filters)
