"""Two and three processes learn what one process learns from the same global batches, in float64."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

WORKER = """
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from pydantic import TypeAdapter
from safetensors.torch import save_file
from saetool import distributed
from saetool.activations import TensorStream
from saetool.artifacts import Partial
from saetool.autoencoders.families import AutoencoderSettings, build
from saetool.training import TrainingSettings
from saetool.training.learner import Learner
from saetool.training.metrics import MetricLog
from saetool.training.trainer import Run, learn

out, jobs = Path(sys.argv[1]), json.loads(sys.argv[2])
distributed.start()
draw = torch.Generator().manual_seed(0)
x = (torch.randn(700, 6, generator=draw) @ torch.randn(6, 12, generator=draw)).double()

class Stream(TensorStream):
    def batches(self):
        for i, batch in enumerate(super().batches()):
            if os.environ.get("KILL") == f"{distributed.rank()}:{i}":
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

for name, job in jobs.items():
    torch.manual_seed(0)
    settings = TypeAdapter(AutoencoderSettings).validate_python(job["autoencoder"])
    values = {"tokens": 960, "batch_size": 48, "log_every": 5, "evaluate_every": 7, "checkpoint_minutes": 0}
    training = TrainingSettings(**(values | job.get("training", {})))
    model = build(settings, 12).double()
    if distributed.rank():  # another device draws and rounds differently: the main process's start counts
        begin = model.initialize

        def elsewhere(*given):
            begin(*given)
            for parameter in model.parameters():
                parameter.add_(0.1)

        model.initialize = elsewhere
    path = out / f"{name}.partial"
    if distributed.is_main():
        path.mkdir(parents=True, exist_ok=True)
    distributed.barrier()
    partial = Partial(path, out / name)
    run = Run(Learner(model, training, 3, torch.device("cpu")), partial, MetricLog(partial, []))
    learn([run], Stream(x[:600], x[600:], batch_size=48, seed=1))
    if distributed.is_main():
        save_file(model.state_dict(), out / f"{name}.safetensors")
        (out / f"{name}.json").write_text(json.dumps(run.final))
    distributed.barrier()
distributed.stop()
"""
"""Any job of several processes, ended as the command line ends one."""

SCRIPT = """
import sys
from saetool import distributed
from saetool.errors import RequestError
from saetool.program import run_script

def main():
    distributed.barrier()
    if sys.argv[1].endswith("wrong"):
        raise RequestError("no such thing")

run_script(main)
"""
"""A script as those in `scripts/`."""

NONE_LEFT = """
if sys.platform == "linux":
    from pathlib import Path
    threads = [comm.read_text().strip() for comm in Path("/proc/self/task").glob("*/comm")]
    assert not any("gloo" in thread or "store" in thread for thread in threads), threads
"""
"""None of the process group's threads may be left."""


def launch(processes: int, out: Path, jobs: dict, kill: str = "", worker: str = WORKER) -> list[subprocess.Popen]:
    """Start the worker as `torchrun` would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        environment = (
            os.environ
            | {key: str(value) for key, value in places.items()}
            | {"MASTER_ADDR": "127.0.0.1", "KILL": kill, "PYTHONFAULTHANDLER": "1"}
        )
        command = [sys.executable, "-c", worker + NONE_LEFT, str(out), json.dumps(jobs)]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    return started


def results(processes: int, out: Path, jobs: dict) -> dict[str, tuple[dict, dict, list]]:
    """Train every job with some processes; return weights, final numbers and metric lines of each."""
    started = launch(processes, out, jobs)
    errors = [process.communicate(timeout=300)[1] for process in started]
    ended = [process.returncode for process in started]
    assert not any(ended), "\n".join(f"rank {i} ended with {ended[i]}: {errors[i][-2000:]}" for i in range(processes))
    return read(out, jobs)


def read(out: Path, jobs: dict) -> dict[str, tuple[dict, dict, list]]:
    """Return weights, final numbers and metric lines of each job that was trained."""
    found = {}
    for name in jobs:
        lines = [json.loads(line) for line in (out / f"{name}.partial" / "metrics.jsonl").read_text().splitlines()]
        final = json.loads((out / f"{name}.json").read_text())
        found[name] = (load_file(out / f"{name}.safetensors"), final, lines)
    return found


SYNCHRONIZED = ["l1", "topk", "gains", "batch_topk", "kl", "denoising"]
"""Each of them shares something else than gradients: l0, silence, the cut, the mean activity, the noise."""


@pytest.fixture(scope="module")
def alone(tmp_path_factory, small_models):
    """Return a function that gives what one process, this one, makes of some models, each trained once."""
    made: dict = {}

    def make(names) -> dict:
        missing = {name: small_models[name] for name in names if name not in made}
        out = tmp_path_factory.mktemp("alone")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["worker", str(out), json.dumps(missing)])
            exec(WORKER, {})
        made.update(read(out, missing))
        return made

    return make


@pytest.mark.parametrize(
    ("processes", "everything"),
    [(2, False), pytest.param(3, False, marks=pytest.mark.slow), pytest.param(2, True, marks=pytest.mark.slow)],
)
def test_any_number_of_processes_learns_the_same(processes, everything, alone, small_models, tmp_path):
    jobs = {name: job for name, job in small_models.items() if everything or name in SYNCHRONIZED}
    shared, single = results(processes, tmp_path, jobs), alone(jobs)
    for name in jobs:
        (weights, final, lines), (expected, expected_final, expected_lines) = shared[name], single[name]
        for key, value in expected.items():
            torch.testing.assert_close(weights[key], value, rtol=1e-9, atol=1e-11, msg=f"{name}: {key}")
        assert final["fvu"] == pytest.approx(expected_final["fvu"], rel=1e-9), name
        assert all(final[key] == expected_final[key] for key in ("rows", "l0", "dead", "dense")), name
        assert final.get("elbo") == (pytest.approx(expected_final["elbo"], rel=1e-9) if name == "variational" else None)
        assert [(line["split"], line["step"]) for line in lines] == [
            (line["split"], line["step"]) for line in expected_lines
        ]
        for line, other in zip(lines, expected_lines, strict=True):
            if line["split"] == "train":
                assert line["loss"] == pytest.approx(other["loss"], rel=1e-9), name
                assert line["parts"] == pytest.approx(other["parts"], rel=1e-9), name
                assert line["fvu"] is not None


@pytest.mark.slow
@pytest.mark.parametrize("resumed_with", [2, 1])
def test_a_killed_process_ends_the_others_with_a_message_and_training_resumes(
    resumed_with, alone, small_models, tmp_path
):
    jobs = {"topk": small_models["topk"]}
    first, second = launch(2, tmp_path, jobs, kill="1:13")
    errors = first.communicate(timeout=300)[1]
    assert second.wait() == -signal.SIGKILL
    assert first.returncode not in (0, -signal.SIGKILL)
    assert "WorkError" in errors
    assert "process" in errors.splitlines()[-1]
    weights, _, lines = results(resumed_with, tmp_path, jobs)["topk"]
    expected, _, expected_lines = alone(["topk"])["topk"]
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, rtol=1e-9, atol=1e-11, msg=key)
    assert [line["step"] for line in lines] == [line["step"] for line in expected_lines]


@pytest.mark.parametrize(("name", "code"), [("right", 0), ("wrong", 2)])
def test_a_script_of_several_processes_leaves_their_group_and_ends_with_its_code(name, code, tmp_path):
    started = launch(2, tmp_path / name, {}, worker=SCRIPT)
    said = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [code, code], said
    assert said == (["error: no such thing\n"] * 2 if code else [""] * 2)
