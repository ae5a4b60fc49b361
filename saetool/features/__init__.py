"""What each latent means: the index, label statistics, neighbors, and the calls that read them."""

from typing import TYPE_CHECKING

from saetool.features.settings import IndexSettings
from saetool.lazy import lazy_names

if TYPE_CHECKING:
    from saetool.features.labels import auroc
    from saetool.features.matrix import table
    from saetool.features.reading import Features
    from saetool.features.stage import index, index_stage

__all__ = ["Features", "IndexSettings", "auroc", "index", "index_stage", "table"]

__getattr__ = lazy_names(
    __name__,
    {"Features": "reading", "auroc": "labels", "index": "stage", "index_stage": "stage", "table": "matrix"},
)
