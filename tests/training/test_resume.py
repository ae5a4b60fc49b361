"""Killed and resumed equals uninterrupted: the same weights bit for bit, the same lines."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file

from saetool.activations import TensorStream
from saetool.artifacts import Artifact
from saetool.autoencoders.families import AutoencoderSettings, build
from saetool.errors import RequestError, WorkError
from saetool.training import TrainingSettings
from saetool.training.trainer import learn

SMALL = [
    *(
        "l1",
        "clipped",
        "steered",
        "resampled",
        "topk",
        "gains",
        "batch_topk",
        "jump_relu",
        "gated",
        "kl",
        "kl_exp",
        "matryoshka",
    ),
    *("pieces", "linear", "closed", "deep", "denoising", "contractive", "variational"),
]
"""Names of the fixture `small_models`."""


class Crash(Exception):
    """Stands for a kill: nothing after it runs."""


def crash_after(stream, batches: int):
    """Let a stream give some batches and then crash the trainer."""
    original = stream.batches

    def limited():
        for i, batch in enumerate(original()):
            if i == batches:
                raise Crash
            yield batch

    stream.batches = limited
    return stream


@pytest.fixture
def settings():
    return TrainingSettings(
        tokens=32 * 25, batch_size=32, schedule="cosine", warmup_steps=2, log_every=5, evaluate_every=10,
        checkpoint_minutes=0,
    )  # fmt: skip


def state_of(run):
    tensors, rest = run.learner.state()
    return tensors, rest


@pytest.mark.parametrize("crashes", [[3], [5], [9], [10], [11], [24], [7, 1, 12], [0, 5, 5, 5, 5]])
def test_a_crash_anywhere_changes_nothing(toy, make_run, make_stream, run_to_end, settings, lines_of, crashes):
    whole = run_to_end(toy(), settings, name="whole")
    for batches in crashes:
        with pytest.raises(Crash):
            learn([make_run(toy(), settings)], crash_after(make_stream(), batches))
    run = make_run(toy(), settings)
    learn([run], make_stream())
    (tensors, rest), (expected, expected_rest) = state_of(run), state_of(whole)
    assert rest == expected_rest
    assert tensors.keys() == expected.keys()
    for name in tensors:
        assert torch.equal(tensors[name], expected[name]), name
    assert lines_of(run) == lines_of(whole)


def test_a_training_that_began_on_another_kind_of_device_is_not_resumed(toy, make_run, make_stream, settings):
    with pytest.raises(Crash):
        learn([make_run(toy(), settings)], crash_after(make_stream(), 12))
    run = make_run(toy(), settings)
    record = run.partial.record_of("checkpoint")
    record["rest"]["learner"]["device"] = "cuda"
    run.partial.record("checkpoint", record)
    with pytest.raises(RequestError, match="began on cuda and cannot go on on cpu"):
        learn([run], make_stream())


def test_a_crash_in_the_last_evaluation_takes_no_step_again(toy, make_run, make_stream, settings, monkeypatch):
    stream = make_stream()
    run = make_run(toy(), settings)
    original, calls = stream.held_out, []

    def held_out(*rows):
        calls.append(1)
        if len(calls) == 3:
            raise Crash
        return original(*rows)

    stream.held_out = held_out
    with pytest.raises(Crash):
        learn([run], stream)
    again = make_run(toy(), settings)
    learn([again], crash_after(make_stream(), 0))
    assert again.learner.done == 25
    assert int(again.learner.autoencoder.updates) == 25
    assert again.final["rows"] == 70


def test_a_crash_while_a_checkpoint_is_written_leaves_the_one_before(
    toy, make_run, make_stream, run_to_end, settings, monkeypatch, lines_of
):
    whole = run_to_end(toy(), settings, name="whole")
    from saetool.training import checkpoints

    originals = {name: getattr(checkpoints, name) for name in ("save_file", "sync_file", "sync_directory")}
    for broken, original in originals.items():
        calls = []

        def crash_at_third(*args, calls=calls, original=original):
            calls.append(1)
            if len(calls) == 3:
                raise Crash
            return original(*args)

        monkeypatch.setattr(checkpoints, broken, crash_at_third)
        with pytest.raises(Crash):
            learn([make_run(toy(), settings, broken)], make_stream())
        monkeypatch.undo()
        run = make_run(toy(), settings, broken)
        learn([run], make_stream())
        assert torch.equal(run.learner.autoencoder.encoder, whole.learner.autoencoder.encoder)
        assert lines_of(run) == lines_of(whole)


def test_a_damaged_checkpoint_is_named(toy, make_run, make_stream, settings):
    with pytest.raises(Crash):
        learn([make_run(toy(), settings)], crash_after(make_stream(), 12))
    run = make_run(toy(), settings)
    (file,) = (run.partial.path / ".scratch/checkpoint").glob("step-*")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(WorkError, match=r"step-\d+.safetensors: the checkpoint is damaged.*--force"):
        learn([run], make_stream())


@pytest.mark.parametrize("name", SMALL)
def test_every_family_resumes_bit_for_bit(name, small_models, make_run, lines_of):
    job = small_models[name]
    values = {"tokens": 960, "batch_size": 48, "log_every": 4, "checkpoint_minutes": 0} | job.get("training", {})
    settings = TrainingSettings(**values)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(700, 6, generator=draw) @ torch.randn(6, 12, generator=draw)

    def run(place: str):
        torch.manual_seed(0)
        model = build(TypeAdapter(AutoencoderSettings).validate_python(job["autoencoder"]), 12)
        return make_run(model, settings, place), TensorStream(x[:600], x[600:], batch_size=48, seed=1)

    whole, stream = run("whole")
    learn([whole], stream)
    if not whole.fitted:
        killed, stream = run("killed")
        with pytest.raises(Crash):
            learn([killed], crash_after(stream, 14))
    resumed, stream = run("killed")
    learn([resumed], stream)
    expected = whole.learner.autoencoder.state_dict()
    for key, value in resumed.learner.autoencoder.state_dict().items():
        assert torch.equal(value, expected[key]), key
    assert lines_of(resumed) == lines_of(whole)


SCRIPT = """
import os, signal, sys, torch
from saetool.activations import TensorStream
from pydantic import TypeAdapter
from saetool.autoencoders.families import AutoencoderSettings
from saetool.training import TrainingSettings, train

out, kill_after = sys.argv[1], int(sys.argv[2])
draw = torch.Generator().manual_seed(0)
x = torch.randn(3000, 12, generator=draw) @ torch.randn(12, 16, generator=draw)

class Stream(TensorStream):
    def batches(self):
        for i, batch in enumerate(super().batches()):
            if i == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

settings = TypeAdapter(AutoencoderSettings).validate_python(
    {"kind": "sparse", "n_latents": 64, "initial_l0": 8, "penalty": {"kind": "l1", "weight": 0.1}}
)
training = TrainingSettings(tokens=64 * 90, batch_size=64, log_every=4, evaluate_every=9, checkpoint_minutes=0,
                            schedule="cosine", warmup_steps=5)
train(Stream(x[:2800], x[2800:], batch_size=64, seed=1), settings, training, out, seed=2)
"""


def start(out: Path, kill_after: int = -1) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(out), str(kill_after)], stderr=subprocess.DEVNULL)


def assert_same(a: Path, b: Path) -> None:
    left, right = Artifact.open(a), Artifact.open(b)
    weights, expected = (load_file(artifact.file("model.safetensors")) for artifact in (left, right))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert left.id == right.id
    lines = [[json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()] for path in (a, b)]
    for line in [*lines[0], *lines[1]]:
        line.pop("rate", None)
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_a_sparse_model_killed_by_sigkill_ends_with_the_same_artifact(tmp_path):
    whole = start(tmp_path / "whole")
    killed = start(tmp_path / "killed", kill_after=37)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    assert start(tmp_path / "killed").wait() == 0
    assert whole.wait() == 0
    assert_same(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_kills_at_random_times_change_nothing(tmp_path):
    assert start(tmp_path / "whole").wait() == 0
    draw = random.Random(0)
    for _ in range(8):
        process = start(tmp_path / "killed")
        while not (tmp_path / "killed.partial" / ".scratch/checkpoint").exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.4))
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert start(tmp_path / "killed").wait() == 0
    assert_same(tmp_path / "killed", tmp_path / "whole")
