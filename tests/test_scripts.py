"""The scripts on the Python calls, from images to a page: run as a user would, on scikit-learn's digits."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from saetool.artifacts import Artifact, verify
from saetool.report import check

SCRIPTS = Path(__file__).parents[1] / "scripts"
CACHE = ["digits", "store", "--backbone", "pixels/gray", "--image-size", 8, "--layers", 1, "--limit", 200]


class Ended(NamedTuple):
    code: int
    out: str
    said: str


@pytest.fixture
def script(monkeypatch, capfd, tmp_path) -> Callable[..., Ended]:
    """Return a function that runs a script with arguments, in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def call(name: str, *arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
        except SystemExit as end:
            code = end.code
        return Ended(code, *capfd.readouterr())

    yield call
    torch.set_num_threads(threads)


def test_from_images_to_a_page(script, tmp_path):
    cached = script("cache_activations", *CACHE)
    assert "200 images" in cached.out
    assert "1 × 64" in cached.out
    trained = script("train_autoencoder", "store", "autoencoder", "--expansion", 2, "--tokens", 20_000)
    final = Artifact.open("autoencoder", "autoencoder").content["final"]
    assert f"FVU {final['fvu']:.3f}" in trained.out
    assert 0 < final["fvu"] < 1
    indexed = script("index_features", "autoencoder", "store", "features", "--top", 5)
    assert "128 latents" in indexed.out
    (tmp_path / "store").rename("elsewhere")
    assert script("build_report", "features", "report").code == 2
    report = script("build_report", "features", "report", "--store", "elsewhere", "--title", "What digits are made of")
    assert report.out.strip() == (tmp_path / "report/index.html").as_uri()
    assert check(Path("report")) == []
    assert "What digits are made of" in Path("report/index.html").read_text()
    for kind in ("elsewhere", "autoencoder", "features", "report"):
        assert verify(Path(kind)) == []
    Path("elsewhere").rename("store")
    most = script("browse_features", "features", "--label", "digit=0", "--count", 3, "--sheet", "sheet.png")
    assert len([line for line in most.out.splitlines() if " digit " in line and line.split()[2] == "0"]) == 3
    with Image.open("sheet.png") as sheet:
        assert f"{sheet.width} × {sheet.height} pixels" in most.out
    assert "latent" in script("browse_features", "features", "--image", 7, "--count", 3, "--sheet", "image.png").out
    assert "similarity" in script("browse_features", "features", "--similar", 5).out


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cache_activations", ["nowhere", "store"], "there is no nowhere"),
        ("cache_activations", ["digits", "store", "--backbone", "vit"], "did you mean timm/vit?"),
        ("cache_activations", ["digits", "store", "--limit", "0"], "limit: Input should be greater than or equal to 1"),
        ("train_autoencoder", ["nowhere", "autoencoder"], "nowhere: no such artifact"),
        ("train_autoencoder", ["nowhere", "autoencoder", "--target-l0", "-1"], "target_l0: Input should be greater"),
        ("index_features", ["nowhere", "nowhere", "features"], "nowhere: no such artifact"),
        ("build_report", ["nowhere", "report"], "nowhere: no such artifact"),
        ("browse_features", ["nowhere", "--latent", "3"], "nowhere: no such artifact"),
    ],
)
def test_a_wrong_argument_ends_in_one_message(script, name, arguments, message):
    ended = script(name, *arguments)
    assert ended.code == 2
    assert ended.said.count("error: ") == 1
    assert message in ended.said


def test_what_exists_is_asked_for_by_name(script):
    script("cache_activations", *CACHE)
    script("train_autoencoder", "store", "autoencoder", "--expansion", 1, "--tokens", 4096)
    script("index_features", "autoencoder", "store", "features")
    for arguments, message in [
        (["--latent", 64], "they go from 0 to 63"),
        (["--image", 200], "rows go from 0 to 199"),
        (["--label", "color"], "Labels: digit"),
    ]:
        ended = script("browse_features", "features", *arguments)
        assert ended.code == 2
        assert message in ended.said
    assert "the activations it was made from are not at" in script("build_report", "features", "report", "--store", "autoencoder").said
