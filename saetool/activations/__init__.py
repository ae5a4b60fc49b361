"""Activations on disk and in batches: the store's format, reader and writer, the caching job, the shuffled loader."""

from saetool.activations.split import held_out_mask
from saetool.activations.stream import ShuffledStream, TensorStream

__all__ = ["ShuffledStream", "TensorStream", "held_out_mask"]
