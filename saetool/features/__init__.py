"""What each latent means: the index, label statistics, neighbors, and the calls that read them."""

from saetool.features.settings import IndexSettings

__all__ = ["IndexSettings"]
