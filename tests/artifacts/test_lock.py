"""Locks: one that a kill left is swept, a file system without any is called so, and readers keep what they read."""

import errno
import fcntl
import os
import threading
import time

import pytest

from saetool.artifacts import Artifact, Partial, Stage, run_stage
from saetool.artifacts.lock import held, locked, unread
from saetool.errors import RequestError


def made(path, value=1) -> Artifact:
    def build(partial: Partial) -> dict:
        partial.write_json("value.json", value)
        return {}

    return run_stage(Stage("features", {"value": value}, build), path, force=True)


def test_a_lock_that_a_kill_left_is_swept_by_the_next_start(tmp_path):
    made(tmp_path / "a")
    (tmp_path / "a.lock").write_text("123\n")
    run_stage(Stage("features", {"value": 1}, lambda partial: {}), tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]


def test_a_lock_in_use_is_not_swept_and_the_finished_artifact_is_skipped(tmp_path):
    made(tmp_path / "a")
    with locked(tmp_path / "a"):
        run_stage(Stage("features", {"value": 1}, lambda partial: {}), tmp_path / "a")
        assert (tmp_path / "a.lock").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_no_other_process(tmp_path, monkeypatch, capfd, number):
    def flock(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    source = made(tmp_path / "a")
    stage = Stage("evaluation", {}, lambda partial: {}, (source,))
    run_stage(stage, tmp_path / "b")
    assert "no locks here" in capfd.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    assert made(tmp_path / "a", 2).config == {"value": 2}


def test_readers_do_not_wait_for_one_another_and_a_replacement_waits_for_all(tmp_path):
    artifact = made(tmp_path / "a")
    done = []
    with held(artifact), held(artifact):

        def replace() -> None:
            with unread(tmp_path / "a"):
                done.append(time.monotonic())

        waiting = threading.Thread(target=replace)
        waiting.start()
        time.sleep(0.2)
        assert not done
        left = time.monotonic()
    waiting.join()
    assert done[0] >= left


def test_a_reader_that_comes_after_a_replacement_is_told(tmp_path):
    artifact = made(tmp_path / "a")
    made(tmp_path / "a", 2)
    with pytest.raises(RequestError, match="was replaced since this command began"), held(artifact):
        pass


def test_a_forked_child_that_outlives_its_parent_holds_no_lock(tmp_path):
    """As decoding processes do for a moment, when the job is killed."""
    artifact = made(tmp_path / "read")
    with locked(tmp_path / "a"), held(artifact):
        ready, done = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            os.write(ready[1], b"x")
            os.read(done[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
        with pytest.raises(RequestError, match="another process"), locked(tmp_path / "a"):
            pass
    with locked(tmp_path / "a"), unread(artifact.path):
        pass
    os.write(done[1], b"x")
    assert os.waitpid(child, 0)[1] == 0
