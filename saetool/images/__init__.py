"""Where pictures come from: a folder, an installed package, a data set of any library, what a user registers.

The names load on first use, so that settings can be read without importing imaging libraries.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saetool.images.opening import open_cached, open_source
    from saetool.images.picture import Picture
    from saetool.images.registry import register_source
    from saetool.images.sampling import Sample
    from saetool.images.settings import ImageSettings
    from saetool.images.source import ImageSource, LabelColumn

_HOMES = {
    "ImageSettings": "settings",
    "ImageSource": "source",
    "LabelColumn": "source",
    "Picture": "picture",
    "Sample": "sampling",
    "open_cached": "opening",
    "open_source": "opening",
    "register_source": "registry",
}

__all__ = [
    "ImageSettings",
    "ImageSource",
    "LabelColumn",
    "Picture",
    "Sample",
    "open_cached",
    "open_source",
    "register_source",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'saetool.images' has no attribute {name!r}")
    return getattr(import_module(f"saetool.images.{_HOMES[name]}"), name)
