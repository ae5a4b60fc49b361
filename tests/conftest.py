"""Shared by all tests: annotations of shapes are checked at every call, and Triton's kernels run in its interpreter."""

import inspect
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

import jaxtyping
import pytest
import torch
from beartype import beartype
from hypothesis import HealthCheck, settings
from jaxtyping import AbstractArray, install_import_hook, jaxtyped
from threadpoolctl import threadpool_limits

os.environ.setdefault("TRITON_INTERPRET", "1")  # decided when Triton is imported

# A busy machine is slow, and no test fails by that.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

ROOT = Path(__file__).parents[1]
TAKES_ANYTHING = ("stability", "write_store", "encode", "encode_sparse", "complete")
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


ALL_SHAPES = os.environ.get("SAETOOL_CHECK_SHAPES") == "all"
COSTLY = ("autoencoders", "sparse", "training")
"""Rooms whose functions run at every step of a training: `scripts/test.sh --all` checks them too."""


def jaxtyped_where_shaped(typechecker: Any) -> Callable:
    """Return jaxtyping's decorator, which leaves a function alone that has no shape to check: most have none."""

    def decorate(it: Any) -> Any:
        hints = inspect.get_annotations(it).values()
        shaped = inspect.isclass(it) or any(isinstance(hint, str) or is_shape(hint) for hint in hints)
        return jaxtyped(typechecker=typechecker)(it) if shaped else it

    return decorate


jaxtyping.jaxtyped = jaxtyped_where_shaped
checks = sys.modules["saetool_checks"] = ModuleType("saetool_checks")
checks.__dict__["check_shapes"] = check_shapes
SHAPED = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for file in (ROOT / "saetool").rglob("*.py")
    if "from jaxtyping import" in (code := file.read_text(encoding="utf-8"))
    and "@compiled" not in code
    and (ALL_SHAPES or file.relative_to(ROOT / "saetool").parts[0] not in COSTLY)
]
install_import_hook(SHAPED, "saetool_checks.check_shapes")


@pytest.fixture(scope="session", autouse=True)
def brief_interpreter() -> None:
    """Let Triton's interpreter list the builtins of its language once, not at every call: a third of what it costs.

    And ask whether integers overflow, of which these small shapes know nothing, under `--all` only: another fifth.
    """
    if not find_spec("triton"):
        return
    from triton.runtime import interpreter

    def patch_builtin(part: Any, *rest: Any) -> None:
        for name in builtins_of(part):
            if is_builtin(member := getattr(part, name)):  # not within another call, where it is patched already
                interpreter._patch_attr(part, name, member, *rest)

    if hasattr(interpreter, "_patch_builtin") and hasattr(interpreter, "_patch_attr"):
        is_builtin = interpreter.tl.core.is_builtin
        builtins_of = cache(lambda part: [name for name, member in inspect.getmembers(part) if is_builtin(member)])
        interpreter._patch_builtin = patch_builtin
    options = interpreter.interpreter_builder.options
    if not ALL_SHAPES and hasattr(options, "sanitize_overflow"):
        interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)


class Ended(NamedTuple):
    code: int
    said: str
    """On standard error: the message, after what was told of the progress."""


@pytest.fixture
def command_line(monkeypatch, capfd) -> Callable[..., Ended]:
    """Return the `saetool` program: what it does from its arguments to its exit code, in this process."""
    from saetool import cli

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["saetool", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        said = capfd.readouterr().err
        assert "Traceback" not in said
        assert "unexpected failure" not in said
        return Ended(code, said)

    return call


@pytest.fixture
def brief_timing(monkeypatch) -> None:
    """Let a dry run time two slices, not two seconds: how steady its rate is depends on that, what it says does not."""
    monkeypatch.setattr("saetool.activations.estimate._TIMED_SECONDS", 0.0)


@pytest.fixture(scope="session")
def browser():
    """Chromium, where there is one."""
    reason = "needs playwright (pip install 'saetool[test]')"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs Chromium: none is on the path (Debian: apt install chromium)")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def one_thread():
    """Tiny tensors gain nothing from threads, and several test runs on one machine lose much by them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)
