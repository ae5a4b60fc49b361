"""What the machine does to a running command: the disk fills up, Ctrl-C comes, folders may not be written or read."""

import os
import shutil
import subprocess
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

from saetool.artifacts import Artifact, verify

pytestmark = pytest.mark.slow

STAGES = {
    "cache": "activations",
    "train": "autoencoder",
    "index": "features",
    "evaluate": "evaluation",
    "report": "report",
}
NOBODY = 65534


@contextmanager
def small_disk(folder: Path, counts: Counter):
    """A file system of its own at `folder`; skips where that cannot be had."""
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder]).returncode:
        counts["full disk: skipped, as only root can mount one"] += 1
        pytest.skip("a small file system can be mounted by root only")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def leave_free(disk: Path, free: int) -> None:
    """Make a disk so small that `free` bytes are left on it."""
    used = shutil.disk_usage(disk).used
    subprocess.run(["mount", "-o", f"remount,size={(used + free) // 1024}k", disk], check=True)


@pytest.mark.parametrize("command", STAGES)
def test_a_full_disk_ends_in_words_and_the_command_goes_on(server, place, drop_from, ids, counts, tmp_path, command):
    kind = STAGES[command]
    with small_disk(tmp_path / "disk", counts):
        here = tmp_path / "disk" / "run"
        shutil.copytree(place(), here)
        drop_from(here / "run", command)
        before = shutil.disk_usage(here).used
        assert server(here, command, "config.yaml").code == 0
        needed = shutil.disk_usage(here).used - before
        for share in (0.02, 0.4, 0.8):
            drop_from(here / "run", command)
            leave_free(tmp_path / "disk", int(needed * share))
            ended = server(here, command, "config.yaml")
            leave_free(tmp_path / "disk", 32 << 20)
            assert ended.require_words().code == 1, (share, ended)
            assert "no space left" in ended.said, (share, ended)
            assert not (here / "run" / kind).exists()
            assert server(here, command, "config.yaml").require_words().code == 0
            assert Artifact.open(here / "run" / kind).id == ids[kind]
            assert verify(here / "run" / kind) == []
            counts[f"full disk in {command}"] += 1


@pytest.mark.parametrize("command", STAGES)
def test_a_limit_on_files_ends_in_words(server, place, drop_from, ids, counts, command):
    kind = STAGES[command]
    for limit in (100,):
        here = place()
        drop_from(here / "run", command)
        ended = server(here, command, "config.yaml", limit=limit)
        if ended.code:  # else no file was larger
            assert ended.require_words().code == 1, (limit, ended)
            assert "larger than a file may be here" in ended.said
            counts[f"limit on files in {command}"] += 1
            assert server(here, command, "config.yaml").require_words().code == 0
        assert Artifact.open(here / "run" / kind).id == ids[kind]


def test_ctrl_c_is_always_130_and_the_same_command_goes_on(server, place, drop_from, counts):
    here = place()
    drop_from(here / "run", "train")
    long = ("train", "config.yaml", "training.tokens=32000")
    for i in range(10):
        ended = server(here, *long, interrupt=("parameters", 0.04 * i))
        assert ended.code == 130, ended
        assert ended.said.splitlines()[-1].startswith("saetool: stopped."), ended
        assert "Traceback" not in ended.said, ended
        counts["Ctrl-C while training"] += 1
    assert server(here, *long).require_words().code == 0
    once = Artifact.open(here / "run/autoencoder").id
    other = place("other")
    drop_from(other / "run", "train")
    assert server(other, *long).code == 0
    assert Artifact.open(other / "run/autoencoder").id == once


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("command", STAGES)
def test_what_may_not_be_read_or_written_is_called_so(server, place, drop_from, counts, tmp_path, command):
    here = place()
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    drop_from(here / "run", command)
    ended = server(here, command, "config.yaml", **{"as": NOBODY}).require_words()
    assert ended.code == 1, ended
    assert "cannot be written (Permission denied)" in ended.said, ended
    if command == "cache":
        return
    inputs = here / "run" / ("activations" if command == "train" else "autoencoder")
    for path in (here / "run", *here.joinpath("run").iterdir()):
        path.chmod(0o777)
    for file in inputs.rglob("*"):
        if file.is_file():
            file.rename(file.with_suffix(".away"))
            shutil.copy(file.with_suffix(".away"), file)
            file.with_suffix(".away").unlink()
            file.chmod(0)
    ended = server(here, command, "config.yaml", **{"as": NOBODY}).require_words()
    assert ended.code in (1, 2), ended
    assert "cannot be read (Permission denied)" in ended.said, ended
    counts["unreadable inputs and unwritable folders"] += 1
