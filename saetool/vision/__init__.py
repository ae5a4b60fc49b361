"""What looks at the pictures: backbones, token layout, preprocessing geometry, hooks that read or replace an output.

The names load on first use, so that settings can be read without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saetool.vision.backbone import Backbone, Site
    from saetool.vision.geometry import Geometry
    from saetool.vision.hooks import reading, replacing
    from saetool.vision.layout import TokenLayout
    from saetool.vision.loading import load_backbone, wrap
    from saetool.vision.settings import BackboneSettings
    from saetool.vision.transform import Transform

_HOMES = {
    "Backbone": "backbone",
    "BackboneSettings": "settings",
    "Geometry": "geometry",
    "Site": "backbone",
    "TokenLayout": "layout",
    "Transform": "transform",
    "load_backbone": "loading",
    "reading": "hooks",
    "replacing": "hooks",
    "wrap": "loading",
}

__all__ = [
    "Backbone",
    "BackboneSettings",
    "Geometry",
    "Site",
    "TokenLayout",
    "Transform",
    "load_backbone",
    "reading",
    "replacing",
    "wrap",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'saetool.vision' has no attribute {name!r}")
    return getattr(import_module(f"saetool.vision.{_HOMES[name]}"), name)
