"""The models, one file a family, and what a family of one's own is made of (docs/custom.md)."""

from typing import TYPE_CHECKING

from saetool.lazy import face

if TYPE_CHECKING:
    from saetool.autoencoders.base import (
        Autoencoder as Autoencoder,
        FamilySettings as FamilySettings,
        Loss as Loss,
        Normalizer as Normalizer,
        Phase as Phase,
        Step as Step,
        Stream as Stream,
    )
    from saetool.autoencoders.families import register_family as register_family

__all__, __getattr__, __dir__ = face(
    __name__,
    {
        "base": ("Autoencoder", "FamilySettings", "Loss", "Normalizer", "Phase", "Step", "Stream"),
        "families": ("register_family",),
    },
)
