"""What an artifact is made from stays what it was: replacements wait, changed bytes are found, sealing looks again."""

import os
import threading
import time
from pathlib import Path

import pytest
import torch

from saetool.activations import ActivationStore, write_store
from saetool.artifacts import Artifact, Partial, Stage, run_stage, verify
from saetool.artifacts.manifest import MANIFEST, read_manifest, render, seal_of
from saetool.errors import RequestError, WorkError


def made(path: Path, value: int, force: bool = False) -> Artifact:
    """An artifact of one file that says `value`."""

    def build(partial: Partial) -> dict:
        partial.write_json("value.json", value)
        return {}

    return run_stage(Stage("features", {"value": value}, build), path, force=force)


def reader(source: Artifact, meanwhile) -> Stage:
    """A stage that copies its input's value, with something happening before it reads and after."""

    def build(partial: Partial) -> dict:
        meanwhile()
        partial.write_bytes("copy.json", source.read_bytes("value.json"))
        return {}

    return Stage("evaluation", {}, build, (source,))


def test_a_replacement_waits_for_the_stage_that_reads(tmp_path):
    source = made(tmp_path / "a", 1)
    replacing = threading.Thread(target=lambda: made(tmp_path / "a", 2, force=True))

    def meanwhile() -> None:
        replacing.start()
        deadline = time.monotonic() + 10
        while not (tmp_path / "a.partial" / MANIFEST).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert read_manifest(tmp_path / "a")["id"] == source.id

    copy = run_stage(reader(source, meanwhile), tmp_path / "b")
    replacing.join()
    assert copy.read_bytes("copy.json") == b"1\n"
    assert Artifact.open(tmp_path / "a").read_bytes("value.json") == b"2\n"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_an_input_that_was_replaced_before_the_stage_began_is_refused(tmp_path):
    source = made(tmp_path / "a", 1)
    made(tmp_path / "a", 2, force=True)
    with pytest.raises(RequestError, match="a: was replaced since this command began"):
        run_stage(reader(source, lambda: None), tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("how", ["moved away", "exchanged", "damaged", "written to"])
def test_nothing_is_sealed_from_an_input_that_something_else_changed(tmp_path, how):
    source = made(tmp_path / "a", 1)
    made(tmp_path / "other", 2)

    def build(partial: Partial) -> dict:
        partial.write_bytes("copy.json", source.read_bytes("value.json"))
        source.file("value.json")
        if how == "written to":
            (tmp_path / "a/value.json").write_bytes(b"2\n")
        elif how == "damaged":
            (tmp_path / "a" / MANIFEST).write_bytes(b"{}")
        else:
            os.rename(tmp_path / "a", tmp_path / "away")
            if how == "exchanged":
                os.rename(tmp_path / "other", tmp_path / "a")
        return {}

    with pytest.raises(WorkError, match="b: cannot be sealed, as what it was made from is not there any more"):
        run_stage(Stage("evaluation", {}, build, (source,)), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_touching_or_linking_an_input_does_no_harm(tmp_path):
    source = made(tmp_path / "a", 1)

    def build(partial: Partial) -> dict:
        partial.write_bytes("copy.json", source.file("value.json").read_bytes())
        os.link(tmp_path / "a/value.json", tmp_path / "linked")
        (tmp_path / "a/value.json").touch()
        return {}

    assert run_stage(Stage("evaluation", {}, build, (source,)), tmp_path / "b")


def test_an_opened_file_that_changes_is_compared_again(tmp_path):
    source = made(tmp_path / "a", 1)
    assert source.file("value.json").read_bytes() == b"1\n"
    (tmp_path / "a/value.json").write_bytes(b"2\n")
    for read in (source.file, source.read_bytes):
        with pytest.raises(RequestError, match=r"a: damaged: value\.json.*Restore.*--force"):
            read("value.json")


@pytest.mark.parametrize("key", ["config", "content", "recipe"])
def test_a_manifest_that_was_edited_and_sealed_again_is_refused(tmp_path, key):
    made(tmp_path / "a", 1)
    manifest = read_manifest(tmp_path / "a")
    manifest[key] = {"value": 3} if key != "recipe" else "xxh3-128:0"
    manifest["seal"] = seal_of(manifest)
    (tmp_path / "a" / MANIFEST).write_bytes(render(manifest))
    with pytest.raises(RequestError, match="its id does not follow from its content"):
        Artifact.open(tmp_path / "a")
    assert verify(tmp_path / "a")


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"x": 1}},
        {"files": {"x": {"bytes": "1", "digest": "y"}}},
        {"inputs": [1]},
        {"notes": {"logs": 1}},
        {"content": []},
        {"kind": 1},
    ],
)
def test_a_manifest_of_another_shape_is_refused_whatever_its_seal_says(tmp_path, change):
    made(tmp_path / "a", 1)
    manifest = read_manifest(tmp_path / "a") | change
    manifest["seal"] = seal_of(manifest)
    (tmp_path / "a" / MANIFEST).write_bytes(render(manifest))
    with pytest.raises(RequestError, match="not a saetool manifest"):
        Artifact.open(tmp_path / "a")
    assert verify(tmp_path / "a")


@pytest.mark.parametrize(
    "text", ['{"schema": NaN}', '{"schema": 1, "kind": "\\ud800"}', '{"schema": Infinity}', "\ud800"]
)
def test_numbers_and_texts_that_json_does_not_have_are_refused(tmp_path, text):
    made(tmp_path / "a", 1)
    (tmp_path / "a" / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RequestError, match=r"manifest\.json: damaged: not JSON"):
        Artifact.open(tmp_path / "a")
    assert verify(tmp_path / "a")


def test_a_store_that_is_open_says_so_when_another_takes_its_place(tmp_path):
    rows = torch.arange(48.0).view(4, 2, 6)
    store = write_store(tmp_path / "s", rows)
    site = store.site()
    before = site.rows(0, 4)
    write_store(tmp_path / "s", rows + 1, force=True)
    assert torch.equal(before, rows)
    with pytest.raises(RequestError, match="has changed since it was opened"):
        site.read_into(torch.empty(4, 2, 6), 0, 4)
    with pytest.raises(RequestError, match="its bytes have changed since it was sealed"):
        ActivationStore(store.artifact).site().rows(0, 1)
