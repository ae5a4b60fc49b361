"""Sources by name: what a config may call `images.source` beside the built-in names, folders and files.

A name means what this process registered, or what an installed package offers as an entry point of the group
`saetool.sources`, or what the modules that SAETOOL_SOURCES lists register when they are imported. An artifact holds the
name alone: nothing that is read from one decides what code runs.
"""

import os
import re
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from saetool.errors import RequestError, SaetoolError, first_line, shown

GROUP = "saetool.sources"
"""Of entry points: a name, and a function or an object that `register_source` would take."""
VARIABLE = "SAETOOL_SOURCES"
"""Modules, separated by commas, that register sources when they are imported."""
_TAKEN = ("elpv", "digits", "mnist", "folder", "paths", "hf")
_NAME = re.compile(r"[A-Za-z][\w.-]*")

_sources: dict[str, Any] = {}
_made: dict[str, Any] = {}
_places: dict[str, str] = {}


def register_source(name: str, source: Any = None) -> Any:
    """Let `images.source: NAME` in a config mean `source`, and let reports and evaluations open it again.

    source: whatever `open_source` takes (a torch or Hugging Face Dataset, a list, an array, a folder's path), or a
    function or class that makes it without arguments, which is called when the images are first needed. Left out, the
    next function is registered: `@saetool.register_source("mine")`. A later registration takes an earlier one's place.

    A later process knows the name once it has imported the module that registers it: list the module in the environment
    variable SAETOOL_SOURCES, or offer it as an entry point of the group `saetool.sources`.

    Raises RequestError for a name that is none, or that means something else already.

    >>> saetool.register_source("noise", lambda: np.random.default_rng(0).random((4, 8, 8)))
    >>> len(saetool.open_source("noise"))
    4
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _TAKEN:
        raise RequestError(
            f"register_source: {shown(name)} cannot name a source: take letters, digits, dots and dashes, and none of "
            f"{', '.join(_TAKEN)}"
        )
    if source is None:
        return lambda function: (register_source(name, function), function)[1]
    _sources[name] = source
    _made.pop(name, None)
    module = getattr(source, "__module__", None) if callable(source) else None
    _places[name] = module or sys._getframe(1).f_globals.get("__name__", "__main__")
    return None


def is_registered(name: str) -> bool:
    """Say whether a name means a source here; modules and entry points are looked into where it is not known yet."""
    if not _NAME.fullmatch(name) or name in _TAKEN:
        return False
    return name in _sources or _found_elsewhere(name)


def registered_source(name: str) -> Any:
    """Return what a name means: the object, or what its function makes, made once."""
    if name not in _made:
        source = _sources[name]
        made = _run(source, f"images.source: {name}") if _makes(source) else source
        if made is None:
            raise RequestError(f"images.source: the function registered as {name!r} returns nothing; return the images")
        _made[name] = made
    return _made[name]


def registered_in(name: str) -> str | None:
    """Return the module that registered a name."""
    return _places.get(name)


def unknown_source(name: str, module: str | None) -> str:
    """Say in one sentence how a source that was registered elsewhere becomes known here."""
    where = f"the module {module}" if module and module != "__main__" else "the script or notebook that made the store"
    listed = module if module and module != "__main__" else "MODULE"
    return (
        f"images.source: {name!r} was registered by {where}, which this process has not imported: import it first, or "
        f"set {VARIABLE}={listed}, or cache with cache.thumbnails=true, which keeps what a report shows"
    )


def _makes(source: Any) -> bool:
    holds = any(hasattr(source, name) for name in ("__getitem__", "__iter__", "listing"))
    return isinstance(source, type) or (callable(source) and not holds)


def _found_elsewhere(name: str) -> bool:
    for module in filter(None, map(str.strip, os.environ.get(VARIABLE, "").split(","))):
        if module not in sys.modules:
            _run(lambda module=module: import_module(module), f"{VARIABLE}: {module}")
        if name in _sources:
            return True
    for point in entry_points(group=GROUP, name=name):
        register_source(name, _run(point.load, f"the entry point {name} of {GROUP}"))
        _places[name] = point.module
        return True
    return False


def _run(function: Callable[[], Any], what: str) -> Any:
    try:
        return function()
    except (SaetoolError, MemoryError):
        raise
    except Exception as error:  # another's code: it has its own errors
        raise RequestError(f"{what} failed: {type(error).__name__}: {first_line(error)}") from error
