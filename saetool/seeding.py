"""One seed in the config reaches everything: every random decision derives its own seed from it by name.

Noise of a batch is drawn for the global one and sliced, so that it does not depend on the number of processes.
"""

import torch
import xxhash
from torch import Tensor

from saetool import distributed


def derive(seed: int, *names: object) -> int:
    """Return a 63-bit seed that depends on `seed` and on every name, equal on all machines and processes."""
    text = "\x1f".join([str(seed), *map(str, names)])
    return xxhash.xxh3_64_intdigest(text.encode()) >> 1


def generator(seed: int, *names: object, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a torch generator on `device`, seeded with `derive(seed, *names)`."""
    return torch.Generator(device=device).manual_seed(derive(seed, *names))


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
