"""docs/custom.md: the family on the page goes through every command, from Python and in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import saetool
from saetool.artifacts import Artifact
from saetool.autoencoders import families
from saetool.cli import app
from saetool.errors import RequestError

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "custom.md").read_text(encoding="utf-8")
FAMILY, *BLOCKS = re.findall(r"^```python[^\n]*\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
KINDS = ("activations", "autoencoder", "features", "evaluation", "report")


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """The folder in which a reader has run the page's blocks, in their order, and the names they made."""
    folder, names = tmp_path_factory.mktemp("custom"), {}
    (folder / "mixture.py").write_text(FAMILY)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("known", "places"):
            patch.setattr(families.REGISTERED, name, {})
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        torch.manual_seed(0)
        for block in BLOCKS:
            exec(compile(block, "a block of docs/custom.md", "exec"), names)
        yield folder, names
        sys.modules.pop("mixture", None)


def test_the_family_is_of_about_forty_lines():
    assert len(FAMILY.splitlines()) <= 50


def test_the_pages_blocks_go_from_pictures_to_the_page(read):
    folder, names = read
    assert all(Artifact.open(folder / "runs/own" / kind).kind == kind for kind in KINDS)
    z = names["model"].encode(names["rows"])
    assert z.shape == (2000, 64)
    assert int((z > 0).sum(1).max()) == 4
    # What the page says that it computes, from the weights.
    model, x = names["model"], names["model"].normalizer(names["rows"])
    shares = torch.softmax(x @ model.W_enc.T + model.b_enc, -1)
    kept = shares.topk(4).values
    torch.testing.assert_close(z.sort(1, descending=True).values[:, :4], kept)
    assert names["made"].content["final"]["fvu"] < 1
    assert saetool.Features(folder / "runs/own/features").n_latents == 128


@pytest.mark.slow
def test_a_process_of_its_own_finds_the_same_by_the_module_it_is_told(read):
    folder, _ = read
    before = Artifact.open(folder / "runs/own/autoencoder").id
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), "."]), "SAETOOL_FAMILIES": "mixture"}
    line = [sys.executable, "-m", "saetool", "run", "runs/own", "run=runs/elsewhere"]
    again = subprocess.run(line, cwd=folder, env=os.environ | paths, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert all(Artifact.open(folder / "runs/elsewhere" / kind).kind == kind for kind in KINDS)
    assert Artifact.open(folder / "runs/elsewhere/autoencoder").id == before


def test_a_process_that_is_not_told_says_what_it_lacks(read, monkeypatch):
    folder, _ = read
    monkeypatch.chdir(folder)
    monkeypatch.setattr(families.REGISTERED, "known", {})
    lacking = CliRunner().invoke(app, ["index", "runs/own"])
    assert isinstance(lacking.exception, RequestError)
    assert re.search(r"'mixture' is unknown\. One of .* \(SAETOOL_FAMILIES=MODULE\)", str(lacking.exception))
    described = CliRunner().invoke(app, ["info", "runs/own/autoencoder"])  # describes what it does not know
    assert described.exit_code == 0
    assert "mixture" in described.output
