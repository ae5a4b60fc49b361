"""Activations on disk and in batches: the store's format, reader and writer, the caching job, the shuffled loader.

The names load on first use, so that settings can be read without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from saetool.activations.caching import cache, caching_stage
    from saetool.activations.estimate import require_space
    from saetool.activations.from_tensors import write_store
    from saetool.activations.settings import CacheSettings
    from saetool.activations.split import held_out_mask
    from saetool.activations.store import ActivationStore, SiteStore
    from saetool.activations.store_stream import StoreStream
    from saetool.activations.stream import ShuffledStream, TensorStream

_HOMES = {
    "ActivationStore": "store",
    "CacheSettings": "settings",
    "ShuffledStream": "stream",
    "SiteStore": "store",
    "StoreStream": "store_stream",
    "TensorStream": "stream",
    "cache": "caching",
    "caching_stage": "caching",
    "held_out_mask": "split",
    "require_space": "estimate",
    "write_store": "from_tensors",
}

__all__ = [
    "ActivationStore",
    "CacheSettings",
    "ShuffledStream",
    "SiteStore",
    "StoreStream",
    "TensorStream",
    "cache",
    "caching_stage",
    "held_out_mask",
    "require_space",
    "write_store",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'saetool.activations' has no attribute {name!r}")
    return getattr(import_module(f"saetool.activations.{_HOMES[name]}"), name)
