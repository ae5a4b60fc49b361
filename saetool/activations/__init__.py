"""Activations on disk and in batches: the store's format, reader and writer, the caching job, the shuffled loader.

The names load on first use, so that settings can be read without importing torch.
"""

from typing import TYPE_CHECKING

from saetool.lazy import lazy_names

if TYPE_CHECKING:
    from saetool.activations.caching import cache, caching_stage
    from saetool.activations.estimate import require_space
    from saetool.activations.from_tensors import write_store
    from saetool.activations.live import LiveSource, LiveStream
    from saetool.activations.settings import CacheSettings
    from saetool.activations.split import held_out_images, held_out_mask, image_groups
    from saetool.activations.store import ActivationStore, SiteStore
    from saetool.activations.store_stream import StoreStream
    from saetool.activations.stream import ShuffledStream, TensorStream

__all__ = [
    "ActivationStore",
    "CacheSettings",
    "LiveSource",
    "LiveStream",
    "ShuffledStream",
    "SiteStore",
    "StoreStream",
    "TensorStream",
    "cache",
    "caching_stage",
    "held_out_images",
    "held_out_mask",
    "image_groups",
    "require_space",
    "write_store",
]

__getattr__ = lazy_names(
    __name__,
    {
        "ActivationStore": "store",
        "CacheSettings": "settings",
        "LiveSource": "live",
        "LiveStream": "live",
        "ShuffledStream": "stream",
        "SiteStore": "store",
        "StoreStream": "store_stream",
        "TensorStream": "stream",
        "cache": "caching",
        "caching_stage": "caching",
        "held_out_images": "split",
        "held_out_mask": "split",
        "image_groups": "split",
        "require_space": "estimate",
        "write_store": "from_tensors",
    },
)
