"""What looks at the pictures: backbones, token layout, preprocessing geometry, hooks that read or replace an output."""

from typing import TYPE_CHECKING

from saetool.lazy import face

if TYPE_CHECKING:
    from saetool.vision.backbone import Backbone as Backbone, Site as Site
    from saetool.vision.geometry import Geometry as Geometry
    from saetool.vision.hooks import reading as reading, replacing as replacing
    from saetool.vision.layout import TokenLayout as TokenLayout
    from saetool.vision.loading import load_backbone as load_backbone, wrap as wrap
    from saetool.vision.settings import BackboneSettings as BackboneSettings
    from saetool.vision.transform import Transform as Transform

__all__, __getattr__, __dir__ = face(
    __name__,
    {
        "backbone": ("Backbone", "Site"),
        "geometry": ("Geometry",),
        "hooks": ("reading", "replacing"),
        "layout": ("TokenLayout",),
        "loading": ("load_backbone", "wrap"),
        "settings": ("BackboneSettings",),
        "transform": ("Transform",),
    },
)
