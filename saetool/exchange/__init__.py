"""Autoencoders of other tools: read into sealed artifacts of saetool's own, and written for others to open.

A format is one module with a table of conversions; all meet in `plain.Plain`, and what that cannot hold is refused.
"""

from typing import TYPE_CHECKING

from saetool.lazy import face

if TYPE_CHECKING:
    from saetool.exchange.exporting import export_autoencoder as export_autoencoder
    from saetool.exchange.importing import Wanted as Wanted, import_autoencoder as import_autoencoder, load as load

__all__, __getattr__, __dir__ = face(
    __name__,
    {"exporting": ("export_autoencoder",), "importing": ("Wanted", "import_autoencoder", "load")},
)
