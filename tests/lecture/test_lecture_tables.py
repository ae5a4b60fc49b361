"""The table "lecture → command → figure → test" of docs/lecture.md holds, cell by cell."""

import ast
import importlib
import math
import re
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

import saetool
from saetool.activations import TensorStream
from saetool.autoencoders import information
from saetool.config import load_config
from saetool.training import TrainingSettings, train

ROOT = Path(__file__).parents[2]


def table(file: str, under: str) -> list[list[str]]:
    """Return the cells of the first table below the line that starts with `under`, without its head."""
    lines = (ROOT / file).read_text().partition(f"\n{under}")[2].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return rows
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


ROWS = table("docs/lecture.md", "instead, and in any other config")
COMMANDS = sorted({text for row in ROWS for text in re.findall(r"`(\{kind: .*?\})`", row[1])})


def test_the_table_was_read():
    assert len(ROWS) > 18
    assert all(len(row) == 4 for row in ROWS)
    assert len(COMMANDS) > 12


@pytest.fixture(scope="module")
def stream():
    rows = torch.tensor(load_digits().data / 16, dtype=torch.float32)
    return lambda: TensorStream(rows[:1600], rows[1600:], batch_size=256)


@pytest.mark.parametrize("text", COMMANDS)
def test_a_command_of_the_tables_trains_on_digits(text, stream, tmp_path):
    config = load_config("digits", [f"autoencoder={text}"])
    training = TrainingSettings(tokens=40 * 256, batch_size=256, lr=config.training.lr, log_every=10)
    artifact = train(stream(), config.autoencoder, training, tmp_path / "autoencoder")
    assert math.isfinite(artifact.content["final"]["fvu"])
    model = saetool.load(artifact.path)
    assert model(torch.rand(3, 64)).shape == (3, 64)


def test_every_other_command_is_a_config_or_an_import():
    others = {text for row in ROWS for text in re.findall(r"`([^`{][^`]*)`", row[1])}
    runs = {text for text in others if text.startswith("saetool run ")}
    for text in runs:
        assert load_config(text.removeprefix("saetool run "))
    assert runs
    functions = "entropy, cross_entropy, kl_divergence"
    assert f"from saetool.autoencoders.information import {functions}" in others
    assert all(callable(getattr(information, name)) for name in functions.split(", "))


def test_every_figure_of_the_tables_is_drawn(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    known = {*importlib.import_module("figures").FIGURES, "features"}
    named = {name for row in ROWS for name in re.findall(r"`(\w+)`", row[2])}
    assert named == known


def functions_in(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_test_of_the_tables_exists():
    named = 0
    for row in ROWS:
        file = None
        for text in re.findall(r"`([^`]+)`", row[3]):
            if text.startswith("tests/"):
                assert list((ROOT / text).glob("test_*.py")), text
                continue
            name, _, function = text.partition("::")
            if name:
                files = list((ROOT / "tests" / "autoencoders").glob(name))
                assert files, text
                file = files[0]
            if function:
                assert function in functions_in(file), f"{file.name} has no {function}"
                named += 1
    assert named > 20
