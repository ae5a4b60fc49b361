"""Noise of a batch: drawn for the global batch and sliced, so that it does not depend on the number of processes."""

import torch
from torch import Tensor

from saetool import distributed


def uniform_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return U(0, 1) noise of the shape, dtype and device of `x`, whose first axis is this process's share."""
    shape = (x.shape[0] * distributed.world_size(), *x.shape[1:])
    return _own_rows(torch.rand(shape, generator=generator, device=x.device, dtype=x.dtype), x.shape[0])


def normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return N(0, 1) noise of the shape, dtype and device of `x`, whose first axis is this process's share."""
    shape = (x.shape[0] * distributed.world_size(), *x.shape[1:])
    return _own_rows(torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype), x.shape[0])


def _own_rows(noise: Tensor, rows: int) -> Tensor:
    start = distributed.rank() * rows
    return noise[start : start + rows]
