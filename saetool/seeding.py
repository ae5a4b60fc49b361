"""One seed in the config reaches everything: every random decision derives its own seed from it by name."""

import torch
import xxhash


def derive(seed: int, *names: object) -> int:
    """Return a 63-bit seed that depends on `seed` and on every name, equal on all machines and processes."""
    text = "\x1f".join([str(seed), *map(str, names)])
    return xxhash.xxh3_64_intdigest(text.encode()) >> 1


def generator(seed: int, *names: object, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a torch generator on `device`, seeded with `derive(seed, *names)`."""
    return torch.Generator(device=device).manual_seed(derive(seed, *names))
