"""What `verify` and `info` are asked for is looked at: behind links, in old names, unreadable, emptied."""

import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from saetool.artifacts import Artifact, Partial, Stage, run_stage, verify
from saetool.artifacts.verification import find_artifacts
from saetool.cli import app
from saetool.errors import RequestError


@pytest.fixture
def runs(tmp_path) -> Path:
    """Two artifacts in a run, one of them with a folder inside."""

    def build(partial: Partial) -> dict:
        partial.write_json("layer-01/x.json", 1)
        return {}

    for kind in ("activations", "autoencoder"):
        run_stage(Stage(kind, {}, build), tmp_path / "runs" / "a" / kind)
    return tmp_path / "runs"


def names(found: list[Path], runs: Path) -> list[str]:
    return [path.relative_to(runs).as_posix() for path in found]


def test_both_are_found_in_order(runs):
    assert names(find_artifacts(runs), runs) == ["a/activations", "a/autoencoder"]


def test_an_artifact_behind_a_link_is_found_and_a_loop_ends(runs, tmp_path):
    os.rename(runs / "a/activations", tmp_path / "elsewhere")
    (runs / "a/activations").symlink_to(tmp_path / "elsewhere")
    (runs / "a/loop").symlink_to(runs)
    (tmp_path / "b").mkdir()
    (runs / "b").symlink_to(tmp_path / "b")
    os.rename(runs / "a/autoencoder", tmp_path / "b/autoencoder")
    assert names(find_artifacts(runs), runs) == ["a/activations", "b/autoencoder"]
    (tmp_path / "elsewhere/layer-01/x.json").write_bytes(b"2\n")
    assert verify(runs / "a/activations") == ["layer-01/x.json: its bytes have changed"]


def test_a_link_that_leads_nowhere_is_a_failure(runs):
    shutil.rmtree(runs / "a/activations")
    (runs / "a/activations").symlink_to(runs / "gone")
    assert "a/activations" in names(find_artifacts(runs), runs)
    assert verify(runs / "a/activations") == ["manifest.json: No such file or directory"]


@pytest.mark.parametrize("left", [[], ["layer-01"], ["layer-01/x.json"]])
def test_an_emptied_folder_is_a_failure(runs, left):
    shutil.rmtree(runs / "a/activations")
    (runs / "a/activations").mkdir()
    for name in left:
        (runs / "a/activations" / name).mkdir(parents=True)
    assert "a/activations" in names(find_artifacts(runs), runs)
    assert verify(runs / "a/activations")


def test_a_run_that_is_called_like_an_artifact_is_not_one(runs):
    os.rename(runs / "a", runs / "features")
    assert names(find_artifacts(runs), runs) == ["features/activations", "features/autoencoder"]


def test_what_an_interrupted_replacement_left_is_found_and_said(runs):
    os.rename(runs / "a/activations", runs / "a/activations.old")
    assert "a/activations.old" in names(find_artifacts(runs), runs)
    assert verify(runs / "a/activations.old") == [
        "a replacement was interrupted: the command that began it puts this one back"
    ]
    ended = CliRunner().invoke(app, ["info", str(runs / "a/activations")])
    assert "replacing it was interrupted; it waits as activations.old" in str(ended.exception)


def test_extra_folders_and_links_in_an_artifact_do_not_belong_to_it(runs, tmp_path):
    place = runs / "a/activations"
    (place / "empty/deep").mkdir(parents=True)
    (place / "linked").symlink_to(tmp_path)
    (place / "layer-01/empty").mkdir()
    (place / "broken").symlink_to(tmp_path / "gone")
    assert sorted(verify(place)) == [
        f"{name}: does not belong to it" for name in ("broken", "empty", "layer-01/empty", "linked")
    ]


def test_a_folder_of_an_artifact_may_be_a_link_to_another_disk(runs, tmp_path):
    place = runs / "a/activations"
    os.rename(place / "layer-01", tmp_path / "big")
    (place / "layer-01").symlink_to(tmp_path / "big")
    assert verify(place) == []
    (tmp_path / "big/extra").touch()
    assert verify(place) == ["layer-01/extra: does not belong to it"]


@pytest.mark.parametrize("closed", ["a", "a/activations", "a/activations/layer-01"])
def test_what_cannot_be_looked_into_is_a_failure(runs, closed, monkeypatch):
    """Root may look everywhere, so the system's answer is made up here; tests/attack asks as somebody else."""
    real = {"listdir": os.listdir, "scandir": os.scandir}

    def refuse(name):
        def look(path, *rest):
            if os.path.realpath(path) == str(runs / closed):
                raise PermissionError(13, "Permission denied", str(path))
            return real[name](path, *rest)

        return look

    monkeypatch.setattr(os, "access", lambda path, mode: os.path.realpath(path) != str(runs / closed))
    monkeypatch.setattr(os, "listdir", refuse("listdir"))
    monkeypatch.setattr(os, "scandir", refuse("scandir"))
    found = find_artifacts(runs)
    if closed == "a/activations/layer-01":
        assert verify(runs / "a/activations") == ["layer-01: Permission denied"]
    else:
        assert closed in names(found, runs)


def test_info_describes_the_others_and_ends_with_what_is_damaged(runs):
    (runs / "a/activations/manifest.json").write_bytes(b"{")
    ended = CliRunner().invoke(app, ["info", str(runs)])
    assert ended.exit_code != 0
    assert "kind      autoencoder" in ended.output
    assert "activations/manifest.json: damaged" in str(ended.exception)


@pytest.mark.parametrize("name", ["manifest.json", "layer-01/x.json"])
def test_a_pipe_or_a_device_is_not_waited_for(runs, name):
    file = runs / "a/activations" / name
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        file.unlink()
        make(file)
        assert name in verify(runs / "a/activations")[0]
        with pytest.raises(RequestError):
            Artifact.open(runs / "a/activations")
