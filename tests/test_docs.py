"""Every block of code in the pages on one's own data and model runs, in order, as a reader would run it."""

import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from saetool.cli import app
from saetool.config import load_config
from saetool.images import registry
from saetool.pipeline import Run

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def beside_photos(tmp_path, monkeypatch):
    """A folder as the pages describe it: pictures of two classes, a table of labels, one tar of samples."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_made", {})
    for name in ("known", "places"):
        monkeypatch.setattr(registry.SOURCES, name, {})
    rows = ["file,age,sex"]
    with tarfile.open(tmp_path / "set-000.tar", "w") as tar:
        for i in range(24):
            kind = ("cat", "dog")[i % 2]
            file = tmp_path / "photos" / kind / f"{i // 2:02d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng(i).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(file)
            rows.append(f"{kind}/{file.name},{i * 1.5 if i % 5 else ''},{'mf'[i % 2]}")
            for ending, content in (("png", file.read_bytes()), ("json", json.dumps({"kind": kind}).encode())):
                info = tarfile.TarInfo(f"{i:04d}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "shards").mkdir()
    (tmp_path / "set-000.tar").rename(tmp_path / "shards/set-000.tar")
    return tmp_path


def run_block(kind, code, namespace, folder):
    if kind == "python":
        exec(compile(code, "a block of the page", "exec"), namespace)
    elif kind == "yaml":
        (folder / "config.yaml").write_text(code)
        Run(load_config(str(folder / "config.yaml")), "saetool run").make_all()
    elif kind == "shell":
        for line in code.strip().splitlines():
            answer = CliRunner().invoke(app, line.split()[1:], catch_exceptions=False)
            assert answer.exit_code == 0, answer.output
    else:
        raise AssertionError(f"a block of kind {kind!r} is not run")


@pytest.mark.slow
@pytest.mark.parametrize("page", ["your_data.md", "your_model.md"])
def test_every_block_of_the_page_runs(page, beside_photos, capsys):
    torch.manual_seed(0)
    namespace: dict = {"__name__": "a_readers_notebook"}
    blocks = BLOCK.findall((DOCS / page).read_text())
    assert len(blocks) >= 5
    for kind, code in blocks:
        run_block(kind, code, namespace, beside_photos)
    said = capsys.readouterr().out
    if page == "your_data.md":
        assert "24 ['class', 'age', 'sex']" in said
        assert "['cat', 'cat', 'cat', 'dog', 'dog', 'dog']" in said
        assert len(list((beside_photos / "runs/named/report/thumbs").rglob("*.webp"))) == 16
        assert len(list((beside_photos / "runs/set/report/thumbs").rglob("*.webp"))) == 24
        assert (beside_photos / "runs/set/patches.parquet").is_file()
    else:
        assert "layer 3 (layer3) (10, 10) 192" in said
        assert "blocks.1.attn.heads.1 [2, 100, 32]" in said
        assert "torch.Size([5, 16, 64]) torch.Size([5, 16, 48])" in said
