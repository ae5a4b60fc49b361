"""Autoencoders of other tools: read into sealed artifacts of saetool's own, and written for others to open.

A format is one module with a table of conversions; all meet in `plain.Plain`, and what that cannot hold is refused.
"""

from typing import TYPE_CHECKING

from saetool.lazy import lazy_names

if TYPE_CHECKING:
    from saetool.exchange.exporting import export_autoencoder
    from saetool.exchange.importing import Wanted, import_autoencoder, load

__all__ = ["Wanted", "export_autoencoder", "import_autoencoder", "load"]

__getattr__ = lazy_names(
    "saetool.exchange",
    {
        "Wanted": "importing",
        "export_autoencoder": "exporting",
        "import_autoencoder": "importing",
        "load": "importing",
    },
)
