"""The notebooks of examples/: every code cell runs, in order, and what a cell ends with shows itself."""

import ast
import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))
SMALL = {"IMAGES": "130", "TOKENS": "20_000", "SHOWN": "6"}
"""What the test writes in place of a notebook's sizes."""
SLOW = dict.fromkeys(("demo", "intervene"), pytest.mark.slow)
"""Those with the demo's vision transformer."""


def code_of(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def made_small(code: str) -> str:
    """Return a cell with `IMAGES, TOKENS = 2_624, 1_300_000` in small numbers."""
    found = re.search(r"^((?:[A-Z]+, )*[A-Z]+) = ([\d_, ]+)", code, re.MULTILINE)
    if found is None:
        return code
    values = ", ".join(SMALL[name] for name in found[1].split(", "))
    return code.replace(found[0], f"{found[1]} = {values}")


def run_cells(notebook: Path) -> tuple[dict, list[str]]:
    """Run the code cells in one namespace, as a notebook does; return it and what the cells' last lines show."""
    names: dict = {"__name__": "__main__"}
    shown = []
    for number, code in enumerate(code_of(notebook), 1):
        tree = ast.parse(made_small(code), f"{notebook.name}, code cell {number}")
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"{notebook.name}, code cell {number}", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), f"{notebook.name}, code cell {number}", "eval"), names)
            shown.append(value._repr_html_() if hasattr(value, "_repr_html_") else repr(value))
    return names, shown


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_clean_and_its_sizes_can_be_made_small(notebook):
    document = json.loads(notebook.read_text(encoding="utf-8"))
    assert (document["nbformat"], document["metadata"]["kernelspec"]["language"]) == (4, "python")
    for cell in document["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
    codes = code_of(notebook)
    assert [made_small(code) for code in codes] != codes


def test_the_demo_is_ten_cells():
    demo = next(path for path in NOTEBOOKS if path.stem == "demo")
    assert len(json.loads(demo.read_text(encoding="utf-8"))["cells"]) == 10
    assert len(NOTEBOOKS) == 3


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One folder for all: the third notebook finds what the first has made."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.parametrize("notebook", [pytest.param(p, marks=SLOW.get(p.stem, ()), id=p.stem) for p in NOTEBOOKS])
def test_every_cell_of_a_notebook_runs_and_shows_what_it_ends_with(notebook, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    names, shown = run_cells(notebook)
    assert not any("object at 0x" in text for text in shown), "what a cell ends with says nothing"
    printed = capsys.readouterr().out
    if notebook.stem == "demo":
        assert shown[1].startswith("<pre>autoencoder: runs/notebook/autoencoder")
        assert sum("data:image/jpeg" in text for text in shown) == 1
        assert "On held-out images" in printed
    if notebook.stem == "your_own":
        assert names["features"].content["images"] == 120
        assert names["disks"][0]["auroc"] > 0.6
        assert (place / "runs/own/report/index.html").is_file()
    if notebook.stem == "intervene":
        assert printed.count("which fires as often: off") == 5
        changes = [float(number) for number in re.findall(r"off ([+-][\d.]+)", printed)]
        assert any(change != 0 for change in changes)
