"""The scripts that decide on a GPU work where there is none: on tiny shapes, and by refusing what they cannot say."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[1] / "scripts"


def run(name, *arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, SCRIPTS / name, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_benchmark_steps_every_kind_and_prints_no_ratio_without_a_gpu(tmp_path):
    done = run("bench_gpu.py", "--tiny", "--json", tmp_path / "rates.json")
    assert done.returncode == 0, done.stderr
    assert "no ratios: nothing of this ran on a GPU" in done.stdout
    assert "(gate" not in done.stdout
    found = json.loads((tmp_path / "rates.json").read_text())
    for kind in ("l1", "topk"):
        assert {"saetool bf16", "saetool exact", "dense compiled"} <= found[kind]["256"].keys()
    for kind in ("BatchTopK", "JumpReLU", "gated", "Matryoshka", "KL", "TopK + AuxK"):
        assert found[kind][kind]["rate"] > 0


@pytest.mark.slow
def test_the_whole_command_is_timed_on_a_store_and_no_share_is_printed_without_a_gpu(tmp_path):
    done = run("bench_gpu_command.py", "--tiny", "--kinds", "topk", "--json", tmp_path / "rates.json")
    assert done.returncode == 0, done.stderr
    assert "(gate" not in done.stdout
    found = json.loads((tmp_path / "rates.json").read_text())
    for reading in ("pools", "whole"):
        assert found["topk"][reading]["l0"] == pytest.approx(32, abs=0.5)
    assert found["topk"]["pools"]["fvu"] == found["topk"]["whole"]["fvu"]


@pytest.mark.slow
def test_the_checks_pass_in_the_interpreter():
    pytest.importorskip("triton")
    done = run("check_gpu.py", "--interpreted", "--only", "functions", "KL: three", "pools", "sigmoid")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("0 failed")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("script", ["bench_gpu.py", "bench_gpu_command.py", "check_gpu.py"])
def test_without_a_gpu_they_say_so(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script])
    monkeypatch.syspath_prepend(SCRIPTS)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    assert end.value.code == 2
    assert "there is no GPU here" in capsys.readouterr().err
