"""scripts/figures.py draws a figure with the numbers behind it, and says what it lacks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "scripts" / "figures.py"


def draw(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_figure_of_pca_holds_its_claim(tmp_path):
    done = draw("--out", tmp_path, "--only", "linear")
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "linear.png").size[0] > 800
    numbers = json.loads((tmp_path / "linear.json").read_text())
    least = numbers["trailing_eigenvalue_sum"]
    assert numbers["closed_form_error"] == pytest.approx(least, rel=1e-4)
    assert all(trained >= 0.9999 * best for trained, best in zip(numbers["trained_error"], least, strict=True))
    assert numbers["trained_error"] == pytest.approx(least, rel=1e-2)


@pytest.mark.slow
def test_latents_need_a_run(tmp_path):
    done = draw("--out", tmp_path, "--only", "features")
    assert done.returncode == 2
    assert "give --run DIR" in done.stderr
    missing = draw("--out", tmp_path, "--only", "features", "--run", tmp_path / "nowhere")
    assert missing.returncode == 2
    assert "nowhere" in missing.stderr
