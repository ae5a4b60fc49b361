"""Activations on disk and in batches: the store's format, reader and writer, the caching job, the shuffled loader."""

from typing import TYPE_CHECKING

from saetool.lazy import face

if TYPE_CHECKING:
    from saetool.activations.caching import cache as cache, caching_stage as caching_stage
    from saetool.activations.estimate import require_space as require_space
    from saetool.activations.from_tensors import write_store as write_store
    from saetool.activations.live import LiveSource as LiveSource, LiveStream as LiveStream
    from saetool.activations.settings import CacheSettings as CacheSettings
    from saetool.activations.split import (
        held_out_images as held_out_images,
        held_out_mask as held_out_mask,
        image_groups as image_groups,
    )
    from saetool.activations.store import ActivationStore as ActivationStore, SiteStore as SiteStore
    from saetool.activations.store_stream import StoreStream as StoreStream
    from saetool.activations.stream import ShuffledStream as ShuffledStream, TensorStream as TensorStream

__all__, __getattr__, __dir__ = face(
    __name__,
    {
        "caching": ("cache", "caching_stage"),
        "estimate": ("require_space",),
        "from_tensors": ("write_store",),
        "live": ("LiveSource", "LiveStream"),
        "settings": ("CacheSettings",),
        "split": ("held_out_images", "held_out_mask", "image_groups"),
        "store": ("ActivationStore", "SiteStore"),
        "store_stream": ("StoreStream",),
        "stream": ("ShuffledStream", "TensorStream"),
    },
)
