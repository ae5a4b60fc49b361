"""What each latent means: the index, label statistics, neighbors, and the calls that read them."""

from typing import TYPE_CHECKING

from saetool.lazy import face

if TYPE_CHECKING:
    from saetool.features.labels import auroc as auroc
    from saetool.features.matrix import table as table
    from saetool.features.reading import Features as Features
    from saetool.features.settings import IndexSettings as IndexSettings
    from saetool.features.stage import index as index, index_stage as index_stage

__all__, __getattr__, __dir__ = face(
    __name__,
    {
        "labels": ("auroc",),
        "matrix": ("table",),
        "reading": ("Features",),
        "settings": ("IndexSettings",),
        "stage": ("index", "index_stage"),
    },
)
