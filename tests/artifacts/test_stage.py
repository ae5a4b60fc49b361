"""The stage loop: skip, resume, refuse, force; and a crash at every single write, fsync and rename."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from saetool.artifacts import Artifact, Partial, Stage, run_stage, run_stages, verify
from saetool.errors import RequestError, WorkError


def stage(size: int = 3, calls: list | None = None, **config) -> Stage:
    """A small stage that writes `size` shards, resumable shard by shard, and a log."""

    def build(partial: Partial) -> dict:
        for i in range(size):
            if partial.record_of(f"shards/{i}") is None:
                if calls is not None:
                    calls.append(i)
                partial.write_tensors(f"site/{i}.safetensors", {"t": torch.full((4,), float(i))})
                partial.record(f"shards/{i}", True)
        partial.write_json("summary.json", {"size": size})
        return {"size": size}

    return Stage("activations", {"size": size, **config}, build)


def snapshot(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_finished_stage_is_skipped(tmp_path):
    calls: list[int] = []
    first = run_stage(stage(calls=calls), tmp_path / "a")
    again = run_stage(stage(calls=calls), tmp_path / "a")
    assert calls == [0, 1, 2]
    assert again.id == first.id
    assert verify(tmp_path / "a") == []
    assert os.listdir(tmp_path) == ["a"]


def test_another_request_at_the_same_place_is_refused_and_says_what_differs(tmp_path):
    run_stage(stage(lr=1), tmp_path / "a")
    before = snapshot(tmp_path)
    with pytest.raises(RequestError, match="lr: 1 there, 2 asked"):
        run_stage(stage(lr=2), tmp_path / "a")
    assert snapshot(tmp_path) == before


def test_force_replaces_and_leaves_nothing_beside(tmp_path):
    run_stage(stage(lr=1), tmp_path / "a")
    made = run_stage(stage(lr=2), tmp_path / "a", force=True)
    assert made.config["lr"] == 2
    assert os.listdir(tmp_path) == ["a"]


def test_a_failed_build_keeps_its_work_and_is_not_an_artifact(tmp_path):
    def fail(partial: Partial) -> dict:
        stage().build(partial)
        raise WorkError("the image is corrupt")

    broken = Stage("activations", stage().config, fail)
    with pytest.raises(WorkError):
        run_stage(broken, tmp_path / "a")
    with pytest.raises(RequestError, match="not finished"):
        Artifact.open(tmp_path / "a")
    calls: list[int] = []
    run_stage(stage(calls=calls), tmp_path / "a")
    assert calls == []


@pytest.mark.parametrize("name", [".scratch/work/half", ".scratch/checkpoint/step", "work/0.safetensors"])
def test_unfinished_work_on_something_else_is_not_thrown_away_without_force(tmp_path, name):
    def fail(partial: Partial) -> dict:
        partial.file(name).write_bytes(b"work")
        raise WorkError("no")

    with pytest.raises(WorkError):
        run_stage(Stage("activations", {"size": 3, "lr": 1}, fail), tmp_path / "a")
    with pytest.raises(RequestError, match=r"unfinished work[^\0]*lr: 1 there, 2 asked"):
        run_stage(stage(lr=2), tmp_path / "a")
    assert run_stage(stage(lr=2), tmp_path / "a", force=True).config["lr"] == 2


def test_a_request_that_failed_before_any_work_is_forgotten(tmp_path):
    def fail(partial: Partial) -> dict:
        partial.scratch("half").unlink(missing_ok=True)
        raise RequestError("there is no such model")

    with pytest.raises(RequestError):
        run_stage(Stage("activations", {"size": 3, "lr": 1}, fail), tmp_path / "a")
    assert run_stage(stage(lr=2), tmp_path / "a").config["lr"] == 2


def test_the_id_covers_content_and_not_notes(tmp_path):
    def noted(note: int, value: int) -> Stage:
        def build(partial: Partial) -> dict:
            partial.note("rate", note)
            partial.append_log("metrics.jsonl", {"rate": note})
            partial.write_json("x.json", value)
            return {}

        return Stage("activations", {}, build)

    ids = [run_stage(noted(n, v), tmp_path / f"{n}{v}").id for n, v in [(1, 1), (2, 1), (1, 2)]]
    assert ids[0] == ids[1]
    assert ids[0] != ids[2]


def test_several_artifacts_of_one_build_skip_the_finished_ones(tmp_path):
    def build_all(partials: list[Partial]) -> list[dict]:
        names.extend(p.out.name for p in partials)
        return [stage(lr=int(p.out.name)).build(p) for p in partials]

    names: list[str] = []
    members = [(stage(lr=i), tmp_path / str(i)) for i in range(3)]
    run_stage(stage(lr=1), tmp_path / "1")
    made = run_stages(members, build_all)
    assert names == ["0", "2"]
    assert [a.config["lr"] for a in made] == [0, 1, 2]


def test_a_second_writer_is_refused(tmp_path):
    from saetool.artifacts.lock import locked

    with locked(tmp_path / "a"), pytest.raises(RequestError, match=f"pid {os.getpid()}"):
        run_stage(stage(), tmp_path / "a")
    assert run_stage(stage(), tmp_path / "a")


def test_a_full_disk_ends_in_words_and_resumes(tmp_path, monkeypatch):
    written = 0
    real = os.fsync

    def full(descriptor: int) -> None:
        nonlocal written
        written += 1
        if written > 6:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkError, match=r"no space left.*resumes"):
        run_stage(stage(), tmp_path / "a")
    monkeypatch.undo()
    calls: list[int] = []
    run_stage(stage(calls=calls), tmp_path / "a")
    assert calls
    assert calls != [0, 1, 2]
    assert verify(tmp_path / "a") == []


class Crash(BaseException):
    """Stands for a kill: nothing catches it."""


def crash_at(monkeypatch, number: int) -> None:
    """Let the number-th durable step (fsync, replace, rename, rmtree) end the process instead of happening."""
    count = 0

    def wrap(module, name: str) -> None:
        real = getattr(module, name)

        def step(*args, **kwargs):
            nonlocal count
            count += 1
            if count == number:
                raise Crash
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, step)

    for name in ("fsync", "replace", "rename"):
        wrap(os, name)
    wrap(shutil, "rmtree")


@pytest.mark.parametrize("force", [False, True])
def test_a_crash_at_any_step_loses_nothing(tmp_path, monkeypatch, force):
    """Crash at step 1, 2, 3, …: the old artifact, the new one or none is there, and the next start ends the same."""
    expected = run_stage(stage(lr=2), tmp_path / "expected").id
    for number in range(1, 200):
        out = tmp_path / str(number) / "a"
        if force:
            old = run_stage(stage(lr=1), out).id
        with monkeypatch.context() as patch:
            crash_at(patch, number)
            try:
                run_stage(stage(lr=2), out, force=force)
            except Crash:
                crashed = True
            else:
                crashed = False
        if out.exists():
            assert Artifact.open(out).id in ({old, expected} if force else {expected})
            assert verify(out) == []
        assert run_stage(stage(lr=2), out, force=force).id == expected
        assert verify(out) == []
        assert os.listdir(out.parent) == ["a"]
        shutil.rmtree(out.parent)
        if not crashed:
            break
    assert number > 15


def test_what_saetool_did_not_make_is_never_replaced_even_by_force(tmp_path):
    for name in ("a", "b.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "photo.png").write_bytes(b"precious")
        with pytest.raises(RequestError, match="not the work of saetool"):
            run_stage(stage(), tmp_path / name.removesuffix(".partial"), force=True)
        assert (tmp_path / name / "photo.png").read_bytes() == b"precious"


def test_a_copy_that_a_user_named_old_survives(tmp_path):
    run_stage(stage(lr=1), tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "a.old")
    run_stage(stage(lr=1), tmp_path / "a")
    assert verify(tmp_path / "a.old") == []


def test_a_kill_while_the_old_one_is_deleted_leaves_nothing_in_the_way(tmp_path, monkeypatch):
    run_stage(stage(lr=1), tmp_path / "a")
    real = shutil.rmtree

    def half(path, **kwargs) -> None:
        if Path(path).name.endswith(".deleted") and Path(path).exists():
            (Path(path) / "manifest.json").unlink()
            raise Crash
        real(path, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", half)
    with pytest.raises(Crash):
        run_stage(stage(lr=2), tmp_path / "a", force=True)
    monkeypatch.undo()
    assert run_stage(stage(lr=3), tmp_path / "a", force=True).config["lr"] == 3
    assert os.listdir(tmp_path) == ["a"]


def test_force_begins_anew_unless_a_forced_start_was_killed(tmp_path):
    def interrupted(error: BaseException) -> Stage:
        def build(partial: Partial) -> dict:
            stage().build(partial)
            raise error

        return Stage("activations", stage().config, build)

    for error, again in ((WorkError("diverged"), [0, 1, 2]), (Crash(), [])):
        calls: list[int] = []
        with pytest.raises(type(error)):
            run_stage(interrupted(error), tmp_path / "a", force=True)
        run_stage(stage(calls=calls), tmp_path / "a", force=True)
        assert calls == again


def test_different_keeps_what_is_the_same_and_replaces_what_is_not(tmp_path):
    calls: list[int] = []
    run_stage(stage(lr=1), tmp_path / "a")
    run_stage(stage(lr=1, calls=calls), tmp_path / "a", force="different")
    assert calls == []
    assert run_stage(stage(lr=2), tmp_path / "a", force="different").config["lr"] == 2


def test_a_link_to_another_disk_is_followed(tmp_path):
    (tmp_path / "big").mkdir()
    run_stage(stage(lr=1), tmp_path / "big" / "a")
    (tmp_path / "a").symlink_to(tmp_path / "big" / "a")
    run_stage(stage(lr=2), tmp_path / "a", force=True)
    assert (tmp_path / "a").is_symlink()
    assert Artifact.open(tmp_path / "a").config["lr"] == 2
    assert sorted(os.listdir(tmp_path)) == ["a", "big"]


def test_a_file_that_shrank_before_sealing_is_noticed(tmp_path):
    def build(partial: Partial) -> dict:
        partial.write_bytes("x.bin", b"12345678")
        os.truncate(partial.path / "x.bin", 3)
        return {}

    with pytest.raises(WorkError, match="3 bytes where 8 were written"):
        run_stage(Stage("activations", {}, build), tmp_path / "a")


def test_finished_work_on_something_else_is_not_thrown_away(tmp_path, monkeypatch):
    real = os.rename
    monkeypatch.setattr(
        os, "rename", lambda *a: (_ for _ in ()).throw(Crash()) if str(a[0]).endswith(".partial") else real(*a)
    )
    with pytest.raises(Crash):
        run_stage(stage(lr=1), tmp_path / "a")
    monkeypatch.undo()
    with pytest.raises(RequestError, match="lr: 1 there, 2 asked"):
        run_stage(stage(lr=2), tmp_path / "a")
    assert run_stage(stage(lr=1), tmp_path / "a").config["lr"] == 1


def test_a_kill_while_unfinished_work_is_thrown_away_leaves_nothing_in_the_way(tmp_path, monkeypatch):
    def fail(partial: Partial) -> dict:
        stage().build(partial)
        raise WorkError("no")

    with pytest.raises(WorkError):
        run_stage(Stage("activations", {"size": 3, "lr": 1}, fail), tmp_path / "a")
    real = shutil.rmtree

    def half(path, **kwargs) -> None:
        if (Path(path) / ".scratch").exists():
            real(Path(path) / ".scratch")
            raise Crash
        real(path, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", half)
    with pytest.raises(Crash):
        run_stage(stage(lr=2), tmp_path / "a", force=True)
    monkeypatch.undo()
    assert run_stage(stage(lr=2), tmp_path / "a").config["lr"] == 2
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("name", ["caf\udce9", "red\x1b[31m"])
def test_names_that_no_manifest_can_hold_are_refused_before_the_work(name, tmp_path):
    def build(partial):
        raise AssertionError("no work is begun")

    with pytest.raises(RequestError, match="a name that no manifest can hold"):
        run_stage(Stage("features", {}, build), tmp_path / name)


def test_a_command_line_that_is_no_text_is_noted_as_far_as_it_goes(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["saetool", "run", "caf\udce9.yaml"])
    made = run_stage(Stage("features", {}, lambda partial: {}), tmp_path / "made")
    assert made.notes["command"] == r"saetool run caf\udce9.yaml"
