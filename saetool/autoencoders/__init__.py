"""The models, one file a family, and what a family of one's own is made of (docs/custom.md).

The names load on first use, so that settings can be read without importing torch.
"""

from typing import TYPE_CHECKING

from saetool.lazy import lazy_names

if TYPE_CHECKING:
    from saetool.autoencoders.base import Autoencoder, FamilySettings, Loss, Normalizer, Phase, Step, Stream
    from saetool.autoencoders.families import register_family

__all__ = ["Autoencoder", "FamilySettings", "Loss", "Normalizer", "Phase", "Step", "Stream", "register_family"]

__getattr__ = lazy_names(
    __name__,
    {
        "Autoencoder": "base",
        "FamilySettings": "base",
        "Loss": "base",
        "Normalizer": "base",
        "Phase": "base",
        "Step": "base",
        "Stream": "base",
        "register_family": "families",
    },
)
