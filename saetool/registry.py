"""Names that users give: what a config may call a source of images or a family of autoencoders beside our own names.

A name means what this process registered, or what the modules that an environment variable lists register when they are
imported, or what an installed package offers as an entry point. An artifact holds the name alone: nothing that is read
from one decides what code runs.
"""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from saetool.errors import RequestError, SaetoolError, first_line, shown

_NAME = re.compile(r"[A-Za-z][\w.-]*")


@dataclass
class Registry:
    """What each name means here. `call` registers one; names in `taken` mean something else already."""

    call: str
    noun: str
    group: str
    """Of entry points: a name, and an object that `enter` makes known by it."""
    variable: str
    """Of the environment: modules, separated by commas, that register when they are imported."""
    taken: tuple[str, ...]
    enter: Callable[[str, Any], Any]
    known: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    """The module that registered each name."""

    def require_name(self, name: Any) -> None:
        """Raise RequestError for what cannot be a name, or means something else already."""
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in self.taken:
            raise RequestError(
                f"{self.call}: {shown(name)} cannot name {self.noun}: take letters, digits, dots and dashes, and none "
                f"of {', '.join(self.taken)}"
            )

    def find(self, name: str) -> bool:
        """Say whether a name means something here; modules and entry points are looked into where it does not yet."""
        if not _NAME.fullmatch(name) or name in self.taken:
            return False
        return name in self.known or self._found_elsewhere(name)

    def lacking(self, key: str, name: str, module: str | None, maker: str) -> str:
        """Say how a name of elsewhere becomes known here: `key` is where it stands, `maker` what its maker made."""
        named = module if module and module != "__main__" else None
        where = f"the module {named}" if named else f"the script or notebook that made the {maker}"
        return (
            f"{key}: {name!r} was registered by {where}, which this process has not imported: import it first, or set "
            f"{self.variable}={named or 'MODULE'}"
        )

    def _found_elsewhere(self, name: str) -> bool:
        for module in filter(None, map(str.strip, os.environ.get(self.variable, "").split(","))):
            if module not in sys.modules:
                run(lambda module=module: import_module(module), f"{self.variable}: {module}")
            if name in self.known:
                return True
        for point in entry_points(group=self.group, name=name):
            self.enter(name, run(point.load, f"the entry point {name} of {self.group}"))
            self.places[name] = point.module
            return True
        return False


def run(function: Callable[[], Any], what: str) -> Any:
    """Call what a user wrote; RequestError says `what` failed and how."""
    try:
        return function()
    except (SaetoolError, MemoryError):
        raise
    except Exception as error:  # another's code: it has its own errors
        raise RequestError(f"{what} failed: {type(error).__name__}: {first_line(error)}") from error
