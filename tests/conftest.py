"""Shared by all tests: annotations of shapes are checked at every call, and Triton's kernels run in its interpreter."""

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, Union, get_args, get_origin

from beartype import beartype
from jaxtyping import AbstractArray, install_import_hook

os.environ.setdefault("TRITON_INTERPRET", "1")  # decided when Triton is imported

ROOT = Path(__file__).parents[1]
ROOMS = ("activations", "evaluation", "exchange", "features", "statistics.py", "vision")
"""Where they are checked, in modules that have any: numba and Triton read the others' functions themselves."""
TAKES_ANYTHING = ("stability", "write_store")
"""Calls that say themselves, in a sentence, what is wrong with what they are given."""


def is_shape(hint: Any) -> bool:
    """Say whether an annotation is an array's shape, one of several, or a tuple with one.

    Of a list beartype looks at any one entry: what it finds would depend on chance.
    """
    if get_origin(hint) in (Union, UnionType, tuple):
        return any(map(is_shape, get_args(hint)))
    return inspect.isclass(hint) and issubclass(hint, AbstractArray)


def check_shapes(function: Callable) -> Callable:
    """Return jaxtyping's stand-in of a function with its shapes checked; other annotations are pyright's."""
    hints = {name: hint for name, hint in function.__annotations__.items() if is_shape(hint)}
    function.__annotations__ = hints
    return beartype(function) if hints and function.__name__ not in TAKES_ANYTHING else function


checks = sys.modules["saetool_checks"] = ModuleType("saetool_checks")
checks.__dict__["check_shapes"] = check_shapes
FILES = [file for room in ROOMS for file in (ROOT / "saetool").glob(room if "." in room else f"{room}/*.py")]
SHAPED = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for file in FILES
    if "from jaxtyping import" in (code := file.read_text(encoding="utf-8")) and "@compiled" not in code
]
install_import_hook(SHAPED, "saetool_checks.check_shapes")
