"""The commands: exit codes, one message, light starts."""

import ctypes
import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

from saetool import __version__, cli
from saetool.artifacts import Stage, run_stage
from saetool.cli import app
from saetool.errors import RequestError
from saetool.pipeline import Run


@pytest.fixture
def artifact(tmp_path):
    def build(partial):
        partial.write_tensors("t.safetensors", {"t": torch.arange(64.0)})
        return {"rows": 64}

    return run_stage(Stage("activations", {"a": 1}, build), tmp_path / "store")


@pytest.mark.parametrize("command", [["--help"], ["verify", "{path}"], ["info", "{path}"]])
def test_help_verify_and_info_import_neither_torch_nor_timm(command, artifact):
    arguments = [word.format(path=artifact.path) for word in command]
    code = (
        "import sys\nfrom saetool.cli import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'timm', 'transformers', 'datasets', 'bokeh'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_version_is_said_without_a_command():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"saetool {__version__}\n")


def test_a_dry_run_speaks_in_sizes_and_times(monkeypatch, tmp_path):
    estimate = {"rows at layer-01": 1_200_000, "bytes_on_disk": 3_100_000_000, "memory_bytes": 5e6, "seconds": 4_000.0}
    monkeypatch.setattr(Run, "estimate", lambda run, kind: estimate)
    monkeypatch.setattr(Run, "require_space", lambda run, estimate: None)
    result = CliRunner().invoke(app, ["cache", "digits", "--dry-run", f"run={tmp_path / 'run'}"])
    rows = dict(line.strip().split("  ", 1) for line in result.output.splitlines())
    said = {key: value.strip() for key, value in rows.items()}
    assert said == {"rows at layer-01": "1,200,000", "on disk": "3.1 GB", "memory": "5.0 MB", "time": "67 min"}


def test_evaluate_says_its_numbers_at_its_end(tmp_path):
    """As they stand in evaluation.json."""
    overrides = [f"run={tmp_path / 'run'}", "images.limit=80", "training.tokens=2048", "evaluation.clusters=4"]
    for stage in ("cache", "train"):
        assert CliRunner().invoke(app, [stage, "digits", *overrides]).exit_code == 0
    output = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run")]).output
    found = json.loads((tmp_path / "run/evaluation/evaluation.json").read_text())
    held_out, spliced = found["held_out"], found["effect"]["conditions"]["spliced"]
    assert f"{held_out['images']} held-out images: FVU {held_out['fvu']['value']:.3f} [" in output
    assert f"PCA {found['baselines'][0]['numbers']['fvu']['value']:.3f}" in output
    assert f" / {spliced['accuracy']['value']:.3f} / " in output
    assert "linear probes of digit, balanced accuracy: autoencoder" in output
    assert str(tmp_path / "run/evaluation/evaluation.md") in output


def test_verify_says_intact_and_then_names_the_damaged_file(artifact):
    runner = CliRunner()
    assert runner.invoke(app, ["verify", str(artifact.path)]).exit_code == 0
    file = artifact.path / "t.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    result = runner.invoke(app, ["verify", str(artifact.path)])
    assert result.exit_code == 1
    assert "t.safetensors: its bytes have changed" in result.output


def test_info_tells_kind_id_and_content(artifact):
    output = CliRunner().invoke(app, ["info", str(artifact.path)]).output
    assert artifact.id in output
    assert "activations" in output
    assert "rows" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "nowhere"], "no such file"),
        (["run", "dmo"], "Did you mean 'demo'"),
        (["train", "demo", "run=here", "training.lrr=1"], "Did you mean training.lr?"),
        (
            ["train", "demo", "--l1-coefficient", "3"],
            "Did you mean autoencoder.penalty? Write autoencoder.penalty={kind",
        ),
        (["train", "demo", "--dryrun"], "--dryrun: no option of this command; settings are given as key=value."),
        (["train", "demo", "run=here"], "`saetool cache CONFIG` makes it"),
        (["cache", "folder", "run=here", "images.source=missing-folder"], "missing-folder"),
    ],
)
def test_a_wrong_request_ends_in_one_message_and_exit_code_2(arguments, message, tmp_path, monkeypatch, command_line):
    monkeypatch.chdir(tmp_path)
    ended = command_line(*arguments)
    assert ended.code == 2
    assert message in ended.said
    assert not list(tmp_path.rglob("manifest.json"))


def test_verify_of_a_run_misses_a_manifest_that_is_gone(tmp_path):
    (tmp_path / "autoencoder").mkdir()
    (tmp_path / "autoencoder" / "model.safetensors").write_bytes(b"x")
    result = CliRunner().invoke(app, ["verify", str(tmp_path)])
    assert result.exit_code == 1
    assert "manifest.json: No such file" in result.output


def test_a_sweep_over_the_seed_of_the_split_is_refused_before_any_work(tmp_path):
    with pytest.raises(RequestError, match=r"sweep training\.seed"):
        Run.load("digits", [f"run={tmp_path / 'run'}", "sweep={seed: [0, 1]}"]).make_all()
    assert not (tmp_path / "run").exists()


def test_a_process_of_its_own_ends_with_the_message_and_the_code(tmp_path):
    command = [sys.executable, "-m", "saetool", "verify", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("saetool: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.usefixtures("brief_timing")
def test_a_warning_is_one_sentence(tmp_path, command_line):
    wanted = "autoencoder={kind: contractive, n_latents: 8, weight: 0.1, activation: relu}"
    ended = command_line("cache", "digits", "--dry-run", f"run={tmp_path}/run", wanted)
    assert ended.code == 0
    assert ended.said.startswith("saetool: warning: contractive with activation: relu")
    assert ended.said.count("\n") == 1


def test_an_interrupt_that_a_callback_swallows_comes_again(monkeypatch, capsys):
    """Compiled code may take a Ctrl-C inside a callback, where no exception can leave."""
    callback = ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(signal.SIGINT))

    def command() -> None:
        callback()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            time.sleep(0.01)

    monkeypatch.setattr(cli, "app", command)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "saetool: stopped. What was finished is kept; the same command resumes.\n"


def test_an_interrupt_under_another_name_is_one(monkeypatch, capsys):
    def command() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise SystemError("returned a result with an exception set") from None

    monkeypatch.setattr(cli, "app", command)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 130
    assert "stopped" in capsys.readouterr().err


GOES_ON = """
import signal
from saetool.errors import RequestError
from saetool.program import run_script

def main():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise RequestError("training.lr: must be positive") from None

run_script(main)
"""


def test_a_script_that_goes_on_after_an_interrupt_says_what_went_wrong_later():
    done = subprocess.run([sys.executable, "-c", GOES_ON], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (2, "error: training.lr: must be positive\n")


HALF_MADE = """
import atexit, signal, sys
from saetool import cli, program

class HalfMade:
    def __init__(self):
        signal.raise_signal(signal.SIGINT)
        self.place = 1
    def __del__(self):
        self.place

def work():
    try:
        made = HalfMade()
    except KeyboardInterrupt as error:
        kept.append(error.__traceback__)
        raise

kept = []
atexit.register(kept.clear)

cli.app = work
{"command": cli.main, "script": lambda: program.run_script(work)}[sys.argv[1]]()
"""


@pytest.mark.parametrize("program", ["command", "script"])
def test_the_last_words_after_an_interrupt_are_ours(program):
    """What an interrupt left half made may fail when it is freed, even later: nobody needs to read of it."""
    done = subprocess.run([sys.executable, "-c", HALF_MADE, program], capture_output=True, text=True, timeout=120)
    words = "stopped. What was finished is kept; the same command resumes.\n"
    assert (done.returncode, done.stderr.removeprefix("saetool: ")) == (130, words)
