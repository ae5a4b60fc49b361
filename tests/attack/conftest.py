"""A finished run on twelve tiny pictures, and a server that runs `saetool` commands on copies of it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from saetool.artifacts import Artifact

SERVER = Path(__file__).parent / "attack_server.py"
BACKBONE = {"name": "timm/test_vit", "layers": [2], "pretrained": False, "image_size": 32, "precision": "fp32"}
CONFIG = {
    "run": "run",
    "images": {"source": "pictures"},
    "backbone": BACKBONE,
    "cache": {"batch_size": 4, "dtype": "float32", "shard_mb": 0.01},
    "autoencoder": {"kind": "sparse", "expansion": 2, "activation": {"kind": "topk", "k": 4}},
    "training": {"tokens": 192, "batch_size": 16, "held_out": 0.2, "log_every": 4, "checkpoint_minutes": 0},
    "index": {"neighbors": 2},
    "evaluation": {"baselines": True, "clusters": 4, "bootstrap": 10},
}
STAGES = {
    "cache": "activations",
    "train": "autoencoder",
    "index": "features",
    "evaluate": "evaluation",
    "report": "report",
}
"""Commands and what they make, in order."""


class Ended(NamedTuple):
    """How a command ended: its exit code, or minus the signal that killed it, and what it said."""

    code: int
    said: str

    def require_words(self) -> "Ended":
        """Fail unless it worked, or ended in one message of ours."""
        assert self.code in (0, 1, 2), self
        for sign in ("Traceback", "unexpected failure", "This is a bug"):
            assert sign not in self.said, self
        assert sum(line.startswith("saetool: ") for line in self.said.splitlines()) == (self.code != 0), self
        return self


class Server:
    """Runs commands in forked processes of one that has everything imported."""

    def __init__(self):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, str(SERVER)], stdin=pipe, stdout=pipe, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def __call__(self, cwd: Path, *argv: str, interrupt: tuple[str, float] | None = None, **attack) -> Ended:
        """Run one command in a folder; `interrupt` (words, seconds): one Ctrl-C so long after it has said them."""
        said = cwd.parent / f"{cwd.name}.said.{self.process.pid}"
        said.unlink(missing_ok=True)
        job = {"cwd": str(cwd), "argv": list(argv), "said": str(said), **attack}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        if interrupt is not None:
            threading.Thread(target=_interrupt, args=(child, said, *interrupt), daemon=True).start()
        code = os.waitstatus_to_exitcode(int(self.process.stdout.readline()))
        return Ended(code, said.read_text(errors="replace"))

    def points(self, cwd: Path, *argv: str) -> int:
        """Return how many points of durable calls a command passes."""
        ended = self(cwd, *argv, count=True)
        assert ended.code == 0, ended
        return int((cwd.parent / f"{cwd.name}.said.{self.process.pid}.points").read_text())


def _interrupt(child: int, said: Path, words: str, seconds: float) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (said.exists() and words in said.read_text(errors="replace")):
        time.sleep(0.005)
    time.sleep(seconds)
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGINT)


@pytest.fixture(scope="session")
def server():
    served = Server()
    yield served
    served.process.stdin.close()
    served.process.wait()


@pytest.fixture(scope="session")
def another_server():
    served = Server()
    yield served
    served.process.stdin.close()
    served.process.wait()


@pytest.fixture(scope="session")
def finished(server, tmp_path_factory) -> Path:
    """Return a folder with pictures, a config, and the finished run of it, `run`."""
    here = tmp_path_factory.mktemp("attack") / "finished"
    for i in range(12):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        path = here / "pictures" / "ab"[i % 2] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (here / "config.yaml").write_text(json.dumps(CONFIG))  # JSON is YAML
    for command in STAGES:
        ended = server(here, command, "config.yaml")
        assert ended.code == 0, ended
    return here


@pytest.fixture(scope="session")
def ids(finished) -> dict[str, str]:
    """Return the id of each artifact of the finished run."""
    return {kind: Artifact.open(finished / "run" / kind).id for kind in STAGES.values()}


@pytest.fixture
def place(finished, tmp_path):
    """Return a maker of fresh copies of the finished folder; bytes are shared, so change files with `rewrite`."""

    def make(name: str = "copy") -> Path:
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        return Path(shutil.copytree(finished, tmp_path / name, copy_function=os.link))

    return make


@pytest.fixture(scope="session")
def rewrite():
    """Return what changes a file's bytes, in this copy alone."""

    def change(path: Path, data: bytes) -> None:
        path.unlink()
        path.write_bytes(data)

    return change


COUNTS: Counter = Counter()


@pytest.fixture(scope="session")
def counts() -> Counter:
    """Return the counts of attacks by what came of them; they are printed at the end."""
    return COUNTS


def pytest_terminal_summary(terminalreporter) -> None:
    """Print how often was attacked, and what came of it."""
    for name, number in sorted(COUNTS.items()):
        terminalreporter.write_line(f"attack: {name}: {number}")


@pytest.fixture(scope="session")
def drop_from():
    """Return what deletes from a run what a command makes, and all that is made from it."""

    def drop(run: Path, command: str) -> None:
        kinds = list(STAGES.values())
        for kind in kinds[kinds.index(STAGES[command]) :]:
            shutil.rmtree(run / kind, ignore_errors=True)

    return drop
