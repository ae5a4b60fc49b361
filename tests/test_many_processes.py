"""`torchrun -m saetool run` makes what one process makes; a process that is killed costs a restart, nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saetool.artifacts import Artifact, verify

pytestmark = pytest.mark.slow

DYING = """
import os, signal, sys
from saetool.activations.writer import StoreWriter
from saetool.cli import main

write = StoreWriter.write_shard

def dying(self, shard, *rest):
    write(self, shard, *rest)
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)

StoreWriter.write_shard = dying
main()
"""
"""The command line, whose second process dies after its first shard."""


DYING_LIVE = """
import os, signal
from saetool.activations.live import LiveStream
from saetool.cli import main

batches = LiveStream.batches

def dying(self):
    for i, batch in enumerate(batches(self)):
        if i == 37 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch

LiveStream.batches = dying
main()
"""
"""The command line, whose second process dies in the middle of live training."""
SMALL_PARTS = """
from saetool.cli import main
from saetool.evaluation import model_sections, subject

subject.ROWS_AT_ONCE, model_sections.IMAGES_AT_ONCE = 16, 1
main()
"""
"""The command line, whose evaluation takes an image at a time."""
LIVE = [
    "train",
    "digits",
    "activations=live",
    "images.limit=600",
    "autoencoder={kind: linear, n_latents: 16, solver: gradient}",
    "training={tokens: 19_200, batch_size: 64, pool_rows: 128, lr: 3e-3, held_out: 0.1}",
    "training.log_every=10",
    "training.checkpoint_minutes=0",
]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A run over 24 pictures in two classes: a tiny ViT with random weights, shards of one slice of four images."""
    folder = tmp_path_factory.mktemp("many")
    for i in range(24):
        pixels = np.random.default_rng(i).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        path = folder / "pictures" / ("cats" if i % 3 else "dogs") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((40, 32), Image.Resampling.NEAREST).save(path)
    values = {
        "run": "unset",
        "images": {"source": str(folder / "pictures")},
        "backbone": {"name": "timm/test_vit", "layers": [3], "pretrained": False, "image_size": 64},
        "cache": {"batch_size": 4, "shard_mb": 1e-6},
        "autoencoder": {"kind": "sparse", "expansion": 4, "activation": {"kind": "topk", "k": 4}},
        "training": {"tokens": 960, "batch_size": 48, "held_out": 0.2},
    }
    (folder / "config.yaml").write_text(json.dumps(values))  # JSON is YAML
    return folder / "config.yaml"


def saetool(processes: int, *arguments: object, script: Path | None = None) -> subprocess.CompletedProcess:
    """Run the command line in one process, or in several by torchrun, each with one thread."""
    program = [str(script)] if script else ["-m", "saetool"]
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(many if processes > 1 else []), *program, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def made(processes: int, *arguments: object) -> str:
    done = saetool(processes, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def alone(config) -> Path:
    """The run of one process."""
    made(1, "run", config, f"run={config.parent / 'alone'}")
    return config.parent / "alone"


def test_torchrun_makes_the_run_of_one_process(alone, config, tmp_path):
    output = made(2, "run", config, f"run={tmp_path / 'run'}")
    assert output.count("\n  FVU") == 1  # said once, not by every process
    kinds = ["activations", "autoencoder", "features", "evaluation", "report"]
    run = {kind: Artifact.open(tmp_path / "run" / kind, kind) for kind in kinds}
    for kind in kinds[:3]:
        assert run[kind].notes["where"].endswith("2 processes on cpu (1 thread each)")
    assert run["activations"].id == Artifact.open(alone / "activations").id
    for artifact in run.values():
        assert verify(artifact.path) == []
    # Gradients are summed in another order, so weights agree to rounding only.
    final, expected = run["autoencoder"].content["final"], Artifact.open(alone / "autoencoder").content["final"]
    assert final["rows"] == expected["rows"]
    assert final["fvu"] == pytest.approx(expected["fvu"], rel=1e-3)
    assert sorted(run["report"].files) == sorted(Artifact.open(alone / "report").files)
    assert not list((tmp_path / "run").glob("*.partial"))
    assert "sealed" not in made(2, "run", config, f"run={tmp_path / 'run'}")


def test_processes_share_an_evaluation_and_make_that_of_one(alone, config, tmp_path):
    (tmp_path / "small.py").write_text(SMALL_PARTS)
    ids = []
    for processes in (1, 3):
        run = tmp_path / f"{processes}"
        shutil.copytree(alone, run)
        done = saetool(processes, "evaluate", config, f"run={run}", script=tmp_path / "small.py")
        assert done.returncode == 0, done.stderr[-3000:]
        found = Artifact.open(run / "evaluation")
        assert found.config["settings"]["probing"]
        assert found.config["settings"]["effect"]
        ids.append(found.id)
    assert ids[0] == ids[1]


@pytest.mark.parametrize("resumed_with", [1, 3])
def test_a_killed_process_ends_the_job_and_another_number_of_processes_resumes(alone, config, tmp_path, resumed_with):
    (tmp_path / "dying.py").write_text(DYING)
    out = tmp_path / "run" / "activations"
    ended = saetool(2, "cache", config, f"run={tmp_path / 'run'}", script=tmp_path / "dying.py")
    assert ended.returncode != 0
    assert "SIGKILL" in ended.stderr or "lost another one of the job" in ended.stderr
    assert not out.exists()
    partial = out.parent / "activations.partial"
    finished = [f"layer-03/{record.name}.safetensors" for record in (partial / ".scratch/journal/shards").iterdir()]
    times = [(partial / name).stat().st_mtime_ns for name in finished]
    # The second process writes shards 1, 3 and 5, several at a time: which is first recorded is open.
    assert {f"layer-03/{shard:05d}.safetensors" for shard in (1, 3, 5)} & set(finished)
    made(resumed_with, "cache", config, f"run={tmp_path / 'run'}")
    artifact = Artifact.open(out)
    assert artifact.id == Artifact.open(alone / "activations").id
    assert verify(out) == []
    assert [(out / name).stat().st_mtime_ns for name in finished] == times  # what was done is kept


def test_a_wrong_request_ends_every_process_with_one_exit(config, tmp_path):
    ended = saetool(2, "train", config, f"run={tmp_path / 'run'}", "training.batch_size=49")
    assert ended.returncode != 0
    assert "not made yet" in ended.stderr


def test_a_run_on_a_store_at_an_address_is_the_run_on_the_store(alone, config, tmp_path):
    store = f"file://{alone / 'activations'}"
    made(1, "run", config, f"run={tmp_path / 'run'}", f"activations={store}")
    for kind in ("autoencoder", "features", "evaluation"):
        artifact = Artifact.open(tmp_path / "run" / kind)
        assert artifact.id == Artifact.open(alone / kind).id
        assert str(artifact.find_input("activations").path) == store
    assert not (tmp_path / "run" / "activations").exists()


def test_live_training_by_two_processes_is_as_good_as_by_one_and_resumes_with_as_many(tmp_path):
    for processes in (1, 2):
        made(processes, *LIVE, f"run={tmp_path / str(processes)}")
    one, two = (Artifact.open(tmp_path / str(processes) / "autoencoder") for processes in (1, 2))
    assert two.content["final"]["rows"] == one.content["final"]["rows"]
    assert two.content["final"]["fvu"] == pytest.approx(one.content["final"]["fvu"], rel=0.02)
    assert two.content["final"]["fvu"] < 0.3
    (tmp_path / "dying.py").write_text(DYING_LIVE)
    killed = saetool(2, *LIVE, f"run={tmp_path / 'killed'}", script=tmp_path / "dying.py")
    assert killed.returncode != 0
    assert "SIGKILL" in killed.stderr or "lost another one of the job" in killed.stderr
    assert not (tmp_path / "killed/autoencoder").exists()
    refused = saetool(1, *LIVE, f"run={tmp_path / 'killed'}")
    assert refused.returncode == 2
    assert "begun by 2 processes and can only go on with as many; there are 1 now" in refused.stderr
    made(2, *LIVE, f"run={tmp_path / 'killed'}")
    assert Artifact.open(tmp_path / "killed/autoencoder").id == two.id
