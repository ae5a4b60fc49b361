"""Whatever bytes stand where a parser looks, it gives what was written or one of our errors, and nothing else."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import save

from saetool.activations.shard import Shard
from saetool.artifacts import Artifact, Partial, Stage, digest_bytes, run_stage, verify
from saetool.artifacts.describe import describe
from saetool.artifacts.manifest import MANIFEST, id_of, read_manifest, recipe_of, render, seal_of
from saetool.artifacts.partial import DamagedRecord
from saetool.errors import RequestError

QUICK, LONG = 40, pytest.param(1200, marks=pytest.mark.slow)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
CHANGES = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert", "repeat"]), st.floats(0, 1), st.binary(min_size=1, max_size=8)),
    min_size=1,
    max_size=4,
)


def changed(data: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    """Return the bytes after some changes, each at a share of their length."""
    for how, share, extra in changes:
        at = min(int(share * len(data)), max(len(data) - 1, 0))
        if how == "flip":
            data = data[:at] + bytes(a ^ b for a, b in zip(data[at:], extra, strict=False)) + data[at + len(extra) :]
        elif how == "cut":
            data = data[:at]
        elif how == "insert":
            data = data[:at] + extra + data[at:]
        else:
            data = data[:at] + data[at // 2 :]
    return data


def ask(call, *given):
    """Return what a call gives, and the words of its refusal; anything but a refusal of ours comes out."""
    try:
        return call(*given), None
    except (RequestError, DamagedRecord) as refusal:
        return None, str(refusal)


def fuzz(examples: int, check, *strategies) -> None:
    """Run a check on so many examples, the same ones every time."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=slow, database=None)(
        given(*strategies)(check)
    )()


def places_in(value, path=()):
    """Yield where each value inside nested JSON stands."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in inner:
        yield from places_in(entry, (*path, key))


@pytest.fixture(scope="module")
def sealed(tmp_path_factory) -> Path:
    """A sealed artifact with an input, a log, a table and notes."""
    folder = tmp_path_factory.mktemp("fuzz")

    def build(partial: Partial) -> dict:
        partial.write_table("images.parquet", pa.table({"id": [0, 1], "path": ["ä.png", "b.png"]}))
        partial.append_log("metrics.jsonl", {"step": 1})
        return {"images": 2}

    source = run_stage(Stage("features", {}, lambda partial: {}), folder / "source")
    return run_stage(Stage("activations", {"seed": 0}, build, (source,)), folder / "a").path


def looks(path: Path) -> None:
    """Open, verify and describe; only our own refusals may come out."""
    verify(path)
    assert ask(Artifact.open, path) != (None, "")
    assert ask(describe, path) != (None, "")


@pytest.mark.parametrize("examples", [QUICK, LONG])
def test_any_bytes_for_a_manifest(sealed, examples):
    whole = (sealed / MANIFEST).read_bytes()

    def check(changes):
        data = changed(whole, changes)
        (sealed / MANIFEST).write_bytes(data)
        assert bool(verify(sealed)) == (data != whole)
        looks(sealed)

    fuzz(examples, check, CHANGES)
    (sealed / MANIFEST).write_bytes(whole)


@pytest.mark.parametrize("examples", [QUICK, LONG])
def test_any_value_anywhere_in_a_manifest_under_digests_that_fit(sealed, examples):
    whole = read_manifest(sealed)
    places = sorted(filter(None, places_in(whole)), key=str)

    def check(place, value):
        manifest = json.loads(json.dumps(whole))
        inside = manifest
        for key in place[:-1]:
            inside = inside[key]
        inside[place[-1]] = value
        try:
            inputs = [entry["id"] for entry in manifest["inputs"]]
            listing = manifest["notes"]["listing"]
            manifest["recipe"] = recipe_of(manifest["kind"], manifest["config"], inputs, listing)
            manifest["id"] = id_of(manifest)
            manifest["seal"] = seal_of(manifest)
            data = render(manifest)
        except (ValueError, TypeError, KeyError, AttributeError):  # this value has no digest
            data = json.dumps(manifest).encode("utf-8", "surrogatepass")
        (sealed / MANIFEST).write_bytes(data)
        looks(sealed)

    fuzz(examples, check, st.sampled_from(places), JSON)
    (sealed / MANIFEST).write_bytes(render(whole))


@pytest.mark.parametrize("examples", [QUICK, LONG])
def test_any_bytes_for_an_entry_of_the_journal(tmp_path, examples):
    partial = Partial(tmp_path / "x.partial", tmp_path / "x")
    value = partial.record("shards/0", {"images": [{"path": "ä"}], "moments": [0.1, -2.0]})
    (file,) = (path for path in (tmp_path / "x.partial").rglob("*") if path.is_file())
    whole = file.read_bytes()

    def check(changes):
        file.write_bytes(changed(whole, changes))
        found, refusal = ask(partial.record_of, "shards/0")
        assert found == value if refusal is None else "--force" in refusal
        assert partial.unit_of("shards/0") in (value, None)

    fuzz(examples, check, CHANGES)


@pytest.mark.parametrize("examples", [QUICK, LONG])
def test_any_bytes_for_a_shard(tmp_path, examples):
    rows = torch.arange(24.0).view(2, 3, 4)
    whole, file = save({"tokens": rows}), tmp_path / "0.safetensors"

    def check(changes):
        file.unlink(missing_ok=True)
        file.write_bytes(changed(whole, changes))
        shard, refusal = ask(Shard.open, file, (2, 3, 4), torch.float32)
        assert shard.map().shape == rows.shape if refusal is None else file.name in refusal

    fuzz(examples, check, CHANGES)


@pytest.mark.parametrize("examples", [QUICK, LONG])
def test_any_json_for_the_header_of_a_shard(tmp_path, examples):
    body, file = np.zeros(24, np.float32).tobytes(), tmp_path / "0.safetensors"
    entry = {"dtype": "F32", "shape": [2, 3, 4], "data_offsets": [0, 96]}

    def check(key, value):
        header = json.dumps({"tokens": entry | {key: value}}).encode()
        file.unlink(missing_ok=True)
        file.write_bytes(len(header).to_bytes(8, "little") + header + body)
        _, refusal = ask(Shard.open, file, (2, 3, 4), torch.float32)
        assert key not in entry or value == entry[key] if refusal is None else file.name in refusal

    fuzz(examples, check, st.sampled_from(["dtype", "shape", "data_offsets", "more"]), JSON)


@pytest.mark.parametrize("examples", [QUICK, LONG])
def test_any_bytes_for_a_table_under_a_digest_that_fits(tmp_path, examples):
    buffer, file = io.BytesIO(), tmp_path / "t.parquet"
    parquet.write_table(pa.table({"id": [0, 1], "path": ["ä.png", "b.png"], "heat": [b"x", None]}), buffer)

    def check(changes):
        data = changed(buffer.getvalue(), changes)
        file.unlink(missing_ok=True)
        file.write_bytes(data)
        entry = {"bytes": len(data), "digest": digest_bytes(data)}
        artifact = Artifact(tmp_path, {"files": {"t.parquet": entry}})
        _, refusal = ask(artifact.read_table, "t.parquet")
        assert refusal is None or "t.parquet is not a table" in refusal

    fuzz(examples, check, CHANGES)
