"""The face of a package: names that load on first use, so that reading settings or `--help` does not import torch."""

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def face(package: str, file: str) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__all__`, `__getattr__` and `__dir__` of a package whose `__init__` is `file`.

    Its names are those that it imports for type checkers, below `if TYPE_CHECKING:`, as `import a as a`: handed on, not
    just used. What is named like a room of the package is that room.
    """
    guarded = [block for block in ast.parse(Path(file).read_bytes()).body if isinstance(block, ast.If)]
    imports = [line for block in guarded for line in block.body if isinstance(line, ast.ImportFrom)]
    homes = {
        alias.name: str(line.module).removeprefix(f"{package}.").partition(".")[0]
        for line in imports
        for alias in line.names
    }

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = import_module(f"{package}.{homes[name]}")
        return home if homes[name] == name else getattr(home, name)

    return sorted(homes), find, lambda: sorted(homes)
