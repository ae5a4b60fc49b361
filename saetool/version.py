"""Which saetool this is."""

import importlib.metadata
from functools import cache


@cache
def version_of(package: str) -> str | None:
    """Return the version of an installed package, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


__version__ = version_of("saetool") or "unknown"
