"""Activations on disk and in batches: the store's format, reader and writer, the caching job, the shuffled loader.

The names load on first use, so that settings can be read without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    "held_out_mask": "split",
    "write_store": "from_tensors",
}

__all__ = [
    "ActivationStore",
    "CacheSettings",
    "ShuffledStream",
    "SiteStore",
    "StoreStream",
    "TensorStream",
    "held_out_mask",
    "write_store",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'saetool.activations' has no attribute {name!r}")
    return getattr(import_module(f"saetool.activations.{_HOMES[name]}"), name)
