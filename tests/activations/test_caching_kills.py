"""Killed at any moment, the job resumes and ends with the bytes and the id of one that was never interrupted."""

import contextlib
import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from saetool.activations import ActivationStore, CacheSettings, cache
from saetool.artifacts import Artifact, verify
from saetool.errors import RequestError, WorkError
from saetool.images import ImageSettings, open_source

SERVER = Path(__file__).parent / "caching_server.py"
SETTINGS = {"batch_size": 2, "shard_mb": 1e-6}
"""Twelve shards of one slice each."""


class Server:
    """Starts caching jobs in forked processes, and kills them."""

    def __init__(self):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, str(SERVER)], stdin=pipe, stdout=pipe, text=True)
        assert self.process.stdout.readline() == "ready\n", f"it ended with {self.process.wait()}"

    def run(self, pictures: Path, out: Path, kill_after: float | None = None, **job) -> int:
        """Run a job to its end, or kill it after some seconds; return its wait status."""
        job = {"pictures": str(pictures), "out": str(out), "settings": SETTINGS, **job}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        if kill_after is not None:
            timer = threading.Timer(kill_after, lambda: _kill(child))
            timer.start()
        status = int(self.process.stdout.readline())
        if kill_after is not None:
            timer.cancel()
        return status


def _kill(child: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.process.stdin.close()
    server.process.wait()


@pytest.fixture
def whole(server, pictures, tmp_path):
    """Return the artifact of an uninterrupted job, and how long it took."""
    start = time.monotonic()
    assert server.run(pictures, tmp_path / "whole") == 0
    return Artifact.open(tmp_path / "whole"), time.monotonic() - start


def snapshot(path: Path) -> dict[str, bytes]:
    return {
        p.relative_to(path).as_posix(): p.read_bytes()
        for p in path.rglob("*")
        if p.is_file() and p.name != "manifest.json"
    }


def kill_until_done(server, pictures, out, seconds: float, draw: random.Random, **job) -> int:
    """Start the job again and again, each time killed at a random moment, until one survives; return the kills."""
    kills = 0
    while status := server.run(pictures, out, kill_after=draw.uniform(0, seconds), **job):
        assert status == signal.SIGKILL
        kills += 1
        seconds *= 1.05  # so that it ends, on a machine that becomes slower too
    return kills


def check_kills(server, pictures, tmp_path, whole, at_least: int) -> None:
    expected, seconds = whole
    draw, kills, attempt = random.Random(0), 0, 0
    while kills < at_least:
        out = tmp_path / f"killed-{attempt}"
        kills += kill_until_done(server, pictures, out, seconds, draw)
        attempt += 1
        assert Artifact.open(out).id == expected.id
        assert snapshot(out) == snapshot(expected.path)
        assert verify(out) == []
        assert not out.with_name(out.name + ".partial").exists()


@pytest.mark.slow
def test_killed_a_few_times(server, pictures, tmp_path, whole):
    check_kills(server, pictures, tmp_path, whole, at_least=4)


@pytest.mark.slow
def test_killed_many_times(server, pictures, tmp_path, whole):
    check_kills(server, pictures, tmp_path, whole, at_least=40)


def check_swaps(server, pictures, tmp_path, whole, swaps: int) -> None:
    expected, seconds = whole
    draw = random.Random(1)
    out = tmp_path / "forced"
    old = SETTINGS | {"batch_size": 3}
    for _ in range(swaps):
        assert server.run(pictures, out, settings=old, force=True) == 0
        before = Artifact.open(out).id
        while server.run(pictures, out, kill_after=draw.uniform(0.3, 1.2) * seconds, force=True):
            if out.exists():  # between two renames it is not, and the next start puts it back
                assert Artifact.open(out).id in (before, expected.id)
        assert Artifact.open(out).id == expected.id
        assert verify(out) == []


@pytest.mark.slow
def test_killed_while_replacing(server, pictures, tmp_path, whole):
    check_swaps(server, pictures, tmp_path, whole, swaps=2)


@pytest.mark.slow
def test_killed_while_replacing_many_times(server, pictures, tmp_path, whole):
    check_swaps(server, pictures, tmp_path, whole, swaps=20)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to know which file is written")
@pytest.mark.parametrize("force", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        ("fsync", "*/new/layer-01/00004.safetensors"),
        ("fsync", "*/new/layer-03/00004.safetensors"),
        ("fsync", "*/journal/shards/00004"),
        ("fsync", "*/images.parquet"),
        ("fsync", "*/new/manifest.json"),
        ("rename", "*/store.partial"),
        ("rename", "*/store"),
        ("rename", "*/store.old"),
    ],
    ids=["shard", "other site", "record", "table", "manifest", "move", "swap", "after the swap"],
)
def test_killed_inside_a_write_inside_sealing_and_inside_a_swap(server, pictures, tmp_path, whole, call, name, force):
    """SIGKILL in the middle of it: what is written is torn, nothing is caught, no thread ends in order."""
    expected, out, before = whole[0], tmp_path / "here" / "store", None
    if force:
        assert server.run(pictures, out, settings=SETTINGS | {"batch_size": 3}) == 0
        before = Artifact.open(out).id
    swaps = name in ("*/store", "*/store.old")
    assert server.run(pictures, out, force=force, die=[call, name]) == (0 if swaps and not force else signal.SIGKILL)
    if out.exists():
        assert Artifact.open(out).id in (before, expected.id)
        assert verify(out) == []
    assert server.run(pictures, out, force=force) == 0
    assert Artifact.open(out).id == expected.id
    assert snapshot(out) == snapshot(expected.path)
    assert verify(out) == []
    assert os.listdir(out.parent) == ["store"]


class Crash(BaseException):
    """Stands for a kill at one call: nothing catches it."""


def store_of(tiny, pictures, out, images: int = 5) -> Artifact:
    source = open_source(ImageSettings(source=str(pictures), limit=images))
    return cache(tiny(), source, None, out, CacheSettings(**SETTINGS))


def fail_at(monkeypatch, call: int, error: BaseException) -> list[int]:
    """Let the `call`-th fsync or rename raise, from whatever thread; the count is returned as it grows."""
    count, lock = [0], threading.Lock()

    def wrap(function):
        def failing(*args, **kwargs):
            with lock:
                count[0] += 1
                if count[0] == call:
                    raise error
            return function(*args, **kwargs)

        return failing

    for name in ("fsync", "replace", "rename"):
        monkeypatch.setattr(os, name, wrap(getattr(os, name)))
    return count


def test_a_crash_at_each_write_changes_nothing(tiny, pictures, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        calls = fail_at(patch, -1, Crash())
        expected = store_of(tiny, pictures, tmp_path / "whole", images=3)
    assert calls[0] > 20
    for call in range(1, calls[0] + 1):
        out = tmp_path / str(call)
        with monkeypatch.context() as patch:
            fail_at(patch, call, Crash())
            with pytest.raises(Crash):
                store_of(tiny, pictures, out, images=3)
        resumed = store_of(tiny, pictures, out, images=3)
        assert resumed.id == expected.id, call
        assert snapshot(out) == snapshot(expected.path), call


def test_a_finished_shard_is_not_computed_again(tiny, pictures, tmp_path, monkeypatch):
    good = pictures / open_source(ImageSettings(source=str(pictures), limit=5)).path(4)
    content = good.read_bytes()
    good.write_bytes(bytes(len(content)))
    with pytest.raises(WorkError):
        store_of(tiny, pictures, tmp_path / "a")
    good.write_bytes(content)
    done = sorted((tmp_path / "a.partial/layer-03").glob("*.safetensors"))
    times = [path.stat().st_mtime_ns for path in done]
    assert done
    store_of(tiny, pictures, tmp_path / "a")
    assert [(tmp_path / "a/layer-03" / path.name).stat().st_mtime_ns for path in done] == times


def test_a_full_disk_is_said_and_survived(tiny, pictures, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fail_at(patch, 12, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(WorkError, match="no space left"):
            store_of(tiny, pictures, tmp_path / "a")
    assert (tmp_path / "a.partial").is_dir()
    expected = store_of(tiny, pictures, tmp_path / "b")
    assert store_of(tiny, pictures, tmp_path / "a").id == expected.id


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 4 MiB, where that is allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(tiny, pictures, tmp_path, small_disk):
    sealed = store_of(tiny, pictures, small_disk / "sealed")
    ballast = small_disk / "ballast"
    subprocess.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=4k"], capture_output=True, check=False)  # until full
    source = open_source(ImageSettings(source=str(pictures)))
    with pytest.raises(WorkError, match="no space left"):
        cache(tiny(), source, None, small_disk / "a", CacheSettings(**SETTINGS))
    assert verify(sealed.path) == []
    assert ActivationStore.open(sealed.path).site(1).rows(0, 5).shape == (5, 16, 12)
    ballast.unlink()
    expected = cache(tiny(), source, None, tmp_path / "elsewhere", CacheSettings(**SETTINGS))
    assert cache(tiny(), source, None, small_disk / "a", CacheSettings(**SETTINGS)).id == expected.id


def test_a_second_job_at_the_same_place_is_refused(tiny, pictures, tmp_path):
    source = open_source(ImageSettings(source=str(pictures)))
    backbone = tiny()
    forward, refused = backbone.forward_to, []

    def meddled(batch, sites):
        if not refused:
            with pytest.raises(RequestError, match="another") as error:
                cache(tiny(), source, None, tmp_path / "a", CacheSettings(**SETTINGS))
            refused.append(str(error.value))
        return forward(batch, sites)

    backbone.forward_to = meddled
    made = cache(backbone, source, None, tmp_path / "a", CacheSettings(**SETTINGS))
    assert refused
    assert str(tmp_path / "a") in refused[0]
    assert verify(made.path) == []


def launch(processes: int, pictures: Path, out: Path) -> list[subprocess.Popen]:
    """Start a job of several processes as `torchrun` would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = json.dumps({"pictures": str(pictures), "out": str(out), "settings": SETTINGS})
    started = []
    for rank in range(processes):
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        environment = os.environ | {key: str(value) for key, value in places.items()} | {"MASTER_ADDR": "127.0.0.1"}
        command = [sys.executable, str(SERVER), job]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    return started


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_processes_make_the_same_store(whole, pictures, tmp_path, processes):
    for process in launch(processes, pictures, tmp_path / "shared"):
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 0, errors[-2000:]
    assert Artifact.open(tmp_path / "shared").id == whole[0].id
    assert snapshot(tmp_path / "shared") == snapshot(whole[0].path)


@pytest.mark.slow
@pytest.mark.parametrize(("begun_with", "resumed_with"), [(2, 1), (2, 3), (3, 2)])
def test_one_of_several_processes_is_killed(whole, server, pictures, tmp_path, begun_with, resumed_with):
    out, begun = tmp_path / "shared", tmp_path / "shared.partial/layer-01"
    processes = launch(begun_with, pictures, out)
    deadline = time.monotonic() + 300
    while not list(begun.glob("*.safetensors")):  # before it, some process may not have joined yet
        assert time.monotonic() < deadline
        time.sleep(0.001)
    processes[1].kill()
    processes[1].wait()
    for process in (processes[0], *processes[2:]):
        errors = process.communicate(timeout=120)[1]
        if process.returncode:
            assert "Run the same command again: it resumes" in errors
            assert not out.exists()
    if resumed_with == 1:
        assert server.run(pictures, out) == 0
    else:
        for process in launch(resumed_with, pictures, out):
            errors = process.communicate(timeout=120)[1]
            assert process.returncode == 0, errors[-2000:]
    assert Artifact.open(out).id == whole[0].id
    assert snapshot(out) == snapshot(whole[0].path)
