"""Sources by name: what a config may call `images.source` beside the built-in names, folders and files."""

import sys
from typing import Any

from saetool.errors import RequestError
from saetool.registry import Registry, run

SOURCES = Registry(
    call="register_source",
    noun="a source",
    group="saetool.sources",
    variable="SAETOOL_SOURCES",
    taken=("elpv", "digits", "mnist", "folder", "paths", "hf"),
    enter=lambda name, source: register_source(name, source),
)
_made: dict[str, Any] = {}


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
    SOURCES.require_name(name)
    if source is None:
        return lambda function: (register_source(name, function), function)[1]
    SOURCES.known[name] = source
    _made.pop(name, None)
    module = getattr(source, "__module__", None) if callable(source) else None
    SOURCES.places[name] = module or sys._getframe(1).f_globals.get("__name__", "__main__")
    return None


def registered_source(name: str) -> Any:
    """Return what a name means: the object, or what its function makes, made once."""
    if name not in _made:
        source = SOURCES.known[name]
        made = run(source, f"images.source: {name}") if _makes(source) else source
        if made is None:
            raise RequestError(f"images.source: the function registered as {name!r} returns nothing; return the images")
        _made[name] = made
    return _made[name]


def registered_in(name: str) -> str | None:
    return SOURCES.places.get(name)


def unknown_source(name: str, module: str | None) -> str:
    """Say in one sentence how a source that was registered elsewhere becomes known here."""
    lacking = SOURCES.lacking("images.source", name, module, "store")
    return f"{lacking}, or cache with cache.thumbnails=true, which keeps what a report shows"


def _makes(source: Any) -> bool:
    holds = any(hasattr(source, name) for name in ("__getitem__", "__iter__", "listing"))
    return isinstance(source, type) or (callable(source) and not holds)
