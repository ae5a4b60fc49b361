"""The k largest entries of each row, found among few candidates."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saetool.sparse.support import Support

BLOCKS_PER_K = 8
"""Blocks a wanted entry: with 8 about 1.07 k entries of a row pass the k-th largest block maximum."""


def strided_maxima(order: Int[Tensor, "rows n_latents"], k: int) -> Int[Tensor, "rows"]:
    """Return for each row a number that at least k of its entries reach: the k-th largest of maxima of disjoint blocks.

    A block takes every n-th latent; latents left over at the end are not looked at (the number is a lower bound).
    """
    rows, n_latents = order.shape
    blocks = min(BLOCKS_PER_K * k, n_latents)
    depth = n_latents // blocks
    maxima = order[:, : depth * blocks].reshape(rows, depth, blocks).amax(1) if depth > 1 else order
    return maxima.topk(k, dim=1, sorted=False).values.amin(1)


def keep_largest(values: Float[Tensor, "entries"], support: Support, k: int) -> Bool[Tensor, "entries"]:
    """Mark each row's k largest entries that are positive; among equals the lowest latent goes first."""
    kept = values > 0
    if values.numel() == 0:
        return kept
    counts = support.offsets.diff()
    # On CUDA this waits for the device, once a batch: the rectangle's width decides the memory.
    width = int(counts.max())
    if width <= k:
        return kept
    inside = torch.arange(width, device=values.device) < counts[:, None]
    rectangle = values.new_zeros(support.n_rows, width).masked_scatter_(inside, values.clamp_min(0))
    lowest = rectangle.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    above, equal = rectangle > lowest, (rectangle == lowest) & (rectangle > 0)
    # Of the entries that equal the k-th largest, the first ones of the row fill what is left.
    first = equal.cumsum(1, dtype=torch.int32) <= k - above.sum(1, keepdim=True)
    return (above | (equal & first)).masked_select(inside)
