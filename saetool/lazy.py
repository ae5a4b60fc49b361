"""The face of a package: names that load on first use, so that reading settings or `--help` does not import torch."""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def face(package: str) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__all__`, `__getattr__` and `__dir__` of a package.

    Its names are those that its `__init__` hands on below `if TYPE_CHECKING:`, as `from home import a as a`: what type
    checkers read is what there is.
    """
    loader: Any = sys.modules[package].__loader__
    imports = [node for node in ast.walk(ast.parse(loader.get_source(package))) if isinstance(node, ast.ImportFrom)]
    homes = {alias.name: node.module or "" for node in imports for alias in node.names if alias.name == alias.asname}

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        own = f"{package}.{name}"
        if homes[name].startswith(f"{own}."):  # a room that is a call too: it is its own name
            return import_module(own)
        return getattr(import_module(homes[name]), name)

    return sorted(homes), find, lambda: sorted(homes)
