"""Several processes make the very index that one makes; one that dies costs its unfinished part and nothing else."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saetool.artifacts import Artifact, verify

WORKER = Path(__file__).parent / "index_worker.py"
PARTS = [f"{start:08d}-{stop:08d}" for start, stop in ((0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 13))]
"""Names of the parts that the workers make of 13 images."""


@pytest.fixture(scope="module")
def whole(build_index):
    """An index made by one process, with labels and heat maps; six parts in the workers."""
    z = torch.randn(13, 4, 9, generator=torch.Generator().manual_seed(3))
    labels = [{"name": "kind", "kind": "category", "classes": ["a", "b"]}]
    images = [{"kind": "ab"[i % 2]} for i in range(13)]
    return build_index((z * 8).round() / 4 - 1, images=images, labels=labels, grid=(2, 2))


def launch(processes: int, whole: Artifact, out: Path, *death: str) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    inputs = [str(whole.find_input(kind).path) for kind in ("autoencoder", "activations")]
    started = []
    for rank in range(processes):
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        environment = os.environ | {key: str(value) for key, value in places.items()} | {"MASTER_ADDR": "127.0.0.1"}
        command = [sys.executable, str(WORKER), *inputs, str(out), *death]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    return started


def run(processes: int, whole: Artifact, out: Path) -> None:
    for process in launch(processes, whole, out):
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 0, errors[-2000:]


def check(whole: Artifact, out: Path) -> None:
    made = Artifact.open(out)
    assert made.files == whole.files
    assert made.id == whole.id
    assert verify(out) == []


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_make_the_same_index(processes, whole, tmp_path):
    run(processes, whole, tmp_path / "features")
    check(whole, tmp_path / "features")


@pytest.mark.slow
@pytest.mark.parametrize(("begun_with", "resumed_with"), [(2, 1), (2, 3), (3, 2)])
def test_a_killed_process_ends_the_others_and_any_number_resumes(begun_with, resumed_with, whole, tmp_path):
    out = tmp_path / "features"
    last = PARTS[1 + begun_with]  # the second process's second one
    processes = launch(begun_with, whole, out, f"1:{last}")
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert processes[1].returncode == -signal.SIGKILL, errors[1][-2000:]
    for process, words in zip(processes, errors, strict=True):
        if process is not processes[1]:
            assert process.returncode == 1
            assert "Run the same command again: it resumes" in words
    assert not out.exists()
    parts = tmp_path / "features.partial/.scratch/journal/parts"
    done = {path.name: path.stat().st_mtime_ns for path in parts.iterdir()}
    assert PARTS[1] in done
    assert last not in done
    run(resumed_with, whole, out)
    check(whole, out)
