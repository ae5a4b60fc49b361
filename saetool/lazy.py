"""The face of a package: names that load on first use, so that reading settings or `--help` does not import torch."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def face(
    package: str, names: Mapping[str, Sequence[str]]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__all__`, `__getattr__` and `__dir__` of a package; `names` are those that each submodule gives.

    Type checkers read the same names below `if TYPE_CHECKING:`, as `import a as a`: handed on, not just used.
    """
    homes = {name: home for home, given in names.items() for name in given}

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = import_module(f"{package}.{homes[name]}")
        return home if homes[name] == name else getattr(home, name)

    return sorted(homes), find, lambda: sorted(homes)
