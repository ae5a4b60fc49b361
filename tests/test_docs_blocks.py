"""Every block of code of every page is run by a test, or what it names exists: commands, options, keys, calls."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer.main

import saetool
from saetool.autoencoders.families import OWN
from saetool.cli import app
from saetool.config import load_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

RUN_BY = {
    "index.md": "test_docs_site.py",
    "python.md": "test_docs_python.py",
    "your_data.md": "test_docs.py",
    "your_model.md": "test_docs.py",
    "custom.md": "test_custom_family.py",
}
"""Pages with fenced blocks, all of which a test runs, in order. Indented blocks are examples to adapt: they need a hub,
a GPU, a cluster, hours or a reader's files, so what they name is looked at."""

NO_CODE = {
    ("README.md", "images ──cache──▶"): "a drawing",
    ("CONTRIBUTING.md", "saetool/"): "a layout",
    ("CONTRIBUTING.md", "scripts/"): "a layout",
    ("concepts.md", "z = f("): "a formula",
    ("evaluation.md", "schema "): "a table of keys",
    ("publishing.md", "git clone https"): "git's own commands",
    ("tables.md", "import duckdb"): "another program's call",
}
OF_OTHERS = (
    "xdg-open",
    "git",
    "#",
    "pip",
    "python3",
    "bash -c",
    "export",
    "head=",
    "srun",
    ".venv/bin/",
    "cp",
)
"""How lines begin that are another program's."""


def indented_blocks(page: Path) -> list[str]:
    """Return the indented blocks of a page, those inside fences and lists left out."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"(?:\A|\n)\n((?:    [^\n]*\n)+)", text)
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in found]


BLOCKS = [(page.name, block) for page in PAGES for block in indented_blocks(page)]


def kind_of(name: str, block: str) -> str:
    if any(name == page and block.startswith(start) for page, start in NO_CODE):
        return "no code"
    if re.search(r"^(import saetool|model = saetool|saetool\.\w+\()", block, re.MULTILINE):
        return "python"
    return "config" if re.match(r"#? ?[\w.]+\.yaml\n|\w+: ", block) else "commands"


def commands_of(block: str) -> list[list[str]]:
    """Return the commands of a block, without comments and what stands for words of one's own."""
    lines = block.replace("\\\n", " ").splitlines()
    parts = [
        part for line in lines for part in re.split(r"\s*;\s+|\s+&&\s+", re.split(r"\s+#|\s{3,}", line)[0].strip())
    ]
    return [shlex.split(part) for part in parts if part and not part.startswith(OF_OTHERS)]


def require_command(words: list[str]) -> None:
    """Raise AssertionError where `saetool …` names a command, an option or a key that does not exist."""
    command = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options, words
    overrides = [word for word in words if re.fullmatch(r"[a-z_.0-9]+=[^…]*", word)]
    if overrides and words[0] not in ("import", "export"):
        load_config("digits", overrides)


def require_names(block: str) -> None:
    """Raise AssertionError where Python calls something of saetool's that does not exist."""
    tree = ast.parse(block)
    known = {name for family in OWN.values() for name in dir(family.build)} | set(dir(saetool.Features))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "saetool":
                assert node.attr in saetool.__all__, node.attr
            elif node.value.id in ("model", "features"):
                assert node.attr in known, node.attr


REST = {
    "run": "runs/a",
    "images": "{source: digits}",
    "backbone": "{name: pixels/gray, layers: [1]}",
    "autoencoder": "auto",
    "training": "{tokens: 1000}",
}
"""What a config needs where a block has only a part of it."""


def require_config(block: str, place: Path) -> None:
    """Raise RequestError where a config has a wrong key or value; lines that repeat a key are configs of their own."""
    lines = [line for line in block.splitlines() if line and not line.startswith("#")]
    keys = [line.split(":")[0] for line in lines]
    for text in ["\n".join(lines)] if len(set(keys)) == len(keys) else lines:
        rest = "\n".join(f"{key}: {value}" for key, value in REST.items() if key not in keys)
        (place / "config.yaml").write_text(f"{text}\n{rest}\n")
        load_config(place / "config.yaml")


def test_every_page_with_fenced_blocks_is_run_by_a_test_that_names_it():
    fenced = {page.name for page in PAGES if "\n```" in page.read_text(encoding="utf-8")}
    assert fenced <= RUN_BY.keys()
    for name in fenced:
        assert name in (ROOT / "tests" / RUN_BY[name]).read_text(), f"{RUN_BY[name]} does not run docs/{name}"


def test_what_is_no_code_is_still_there():
    for page, start in NO_CODE:
        assert any(name == page and block.startswith(start) for name, block in BLOCKS), (page, start)


@pytest.mark.parametrize(("name", "block"), BLOCKS, ids=lambda value: value.splitlines()[0][:40])
def test_what_a_block_names_exists(name, block, tmp_path):
    kind = kind_of(name, block)
    if kind == "python":
        require_names(block)
    elif kind == "config":
        require_config(block, tmp_path)
    elif kind == "commands":
        for words in commands_of(block):
            if "saetool" in words[:6] and words[0] != "cd":
                require_command(words[words.index("saetool") + 1 :])
            else:
                assert words[0] in ("python", "bash", "cd"), words
                assert all((ROOT / word).is_file() for word in words if word.startswith("scripts/")), words
