"""The house: imports only go down, files fit on a few screens, and nothing heavy loads before it is used."""

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "saetool"
LONGEST_FILE = 450

HEAVY = {
    "torch", "torchvision", "timm", "transformers", "datasets", "huggingface_hub", "safetensors", "sklearn", "scipy",
    "numpy", "umap", "pandas", "pyarrow", "matplotlib", "PIL", "numba", "triton", "fsspec", "jinja2",
}  # fmt: skip
"""What takes longer to load than the command line has to start (pydantic is typer's)."""


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def running_code(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what stands below a node, in functions too, but not what only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            children: Iterable[ast.AST] = child.orelse
        else:
            children = [child]
        for each in children:
            yield each
            yield from running_code(each)


def face_of(package: str) -> dict[str, tuple[str, ...]]:
    """Return the names that each submodule gives to the face of a package."""
    for node in running_code(ast.parse(FILES[package].read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "face":
            return ast.literal_eval(node.args[1])
    return {}


FACES = {name: face for name, file in FILES.items() if file.name == "__init__.py" and (face := face_of(name))}


def home_of(module: str, name: str) -> str:
    """Return the module that `from module import name` runs, through faces."""
    if f"{module}.{name}" in FILES:
        return f"{module}.{name}"
    for home, names in FACES.get(module, {}).items():
        if name in names:
            return f"{module}.{home}" if home == name else home_of(f"{module}.{home}", name)
    return module


def imports_of(code: str) -> set[str]:
    """Return the package's modules that a file imports, at whatever moment; a lazy name counts as the module it is in.

    That importing a module first runs its package's `__init__` is not counted: those import nothing of their own.
    """
    found = set()
    for node in running_code(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "an import says where from"
            found |= {home_of(node.module or "", alias.name) for alias in node.names}
    return found & FILES.keys()


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """Return what each module imports: read when a test asks, not by every process that lists the tests."""
    return {module: imports_of(file.read_text()) for module, file in FILES.items()}


def cycle_of(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules of one circle, the first once more at the end; nothing where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_the_walk_sees_imports_in_functions_and_lazy_names_and_not_what_is_for_type_checkers(graph):
    inside = "def f():\n    from saetool import load\n"
    for_checkers = "if TYPE_CHECKING:\n    import saetool.cli\nelse:\n    import saetool.config"
    assert imports_of(inside + for_checkers) == {"saetool.exchange.importing", "saetool.config"}
    assert cycle_of({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})[0] in "abc"
    assert sum(map(len, graph.values())) > 500


def test_no_module_imports_one_that_imports_it(graph):
    assert cycle_of(graph) == []


def test_no_room_imports_one_that_imports_it(graph):
    rooms: dict[str, set[str]] = {}
    for module, imported in graph.items():
        room = module.split(".")[1:2]
        for other in imported:
            if room and other.split(".")[1:2] != room:
                rooms.setdefault(room[0], set()).update(other.split(".")[1:2])
    assert cycle_of(rooms) == []
    assert "sparse" in rooms["autoencoders"]


@pytest.mark.parametrize("package", FACES)
def test_a_face_shows_to_type_checkers_what_it_gives_when_it_runs(package):
    checked: dict[str, list[str]] = {}
    for block in ast.parse(FILES[package].read_text()).body:
        if isinstance(block, ast.If) and block.test.id == "TYPE_CHECKING":
            for node in block.body:
                home = node.module.removeprefix(f"{package}.").partition(".")[0]
                assert all(alias.asname == alias.name for alias in node.names), "handed on: `import a as a`"
                checked.setdefault(home, []).extend(alias.name for alias in node.names)
    assert {home: set(names) for home, names in checked.items()} == {
        home: set(names) for home, names in FACES[package].items()
    }
    module = importlib.import_module(package)
    assert dir(module) == module.__all__ == sorted(name for names in checked.values() for name in names)
    assert all(getattr(module, name) is not None for name in module.__all__)


def test_no_file_is_longer_than_a_reader_can_hold():
    long = {file.name: lines for file in PACKAGE.rglob("*.*") if (lines := _lines(file)) > LONGEST_FILE}
    assert long == {}


def _lines(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.suffix in (".py", ".js", ".css", ".html") else 0


STARTS = {
    "import saetool": "import saetool; dir(saetool)",
    "--version": "from saetool.cli import app; app(['--version'])",
    "--help": "from saetool.cli import app; app(['--help'])",
    "a command's --help": "from saetool.cli import app; app(['train', '--help'])",
    "a wrong option": "from saetool.cli import app; app(['verify', '--wrong'])",
    "a wrong command": "from saetool.cli import app; app(['trian'])",
}


@pytest.mark.parametrize("start", STARTS)
def test_a_start_loads_nothing_heavy(start):
    code = (
        f"import json, sys\ntry:\n    {STARTS[start]}\nexcept SystemExit:\n    pass\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stderr.splitlines()[-1]))
    assert HEAVY & loaded == set()
    assert "saetool" in loaded


SPARSE_TRAINING = """
import sys
import torch
import saetool
rows = torch.randn(64, 1, 8)
saetool.train(rows, {"kind": "sparse", "n_latents": 16}, {"tokens": 128, "batch_size": 32}, out=sys.argv[1])
assert "torch._dynamo" not in sys.modules
"""


def test_a_sparse_training_does_not_load_torchs_compiler(tmp_path):
    subprocess.run([sys.executable, "-c", SPARSE_TRAINING, tmp_path / "model"], check=True)
