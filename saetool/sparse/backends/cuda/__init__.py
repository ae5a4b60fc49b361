"""float32 models on an NVIDIA GPU: one bfloat16 product of the whole batch, all around it in Triton's kernels."""

import os
from functools import cache

LEAST_CAPABILITY = (8, 0)
"""Compute capability from which bfloat16 products are in hardware."""


def interpreted() -> bool:
    """Say whether Triton runs kernels in its interpreter, on a CPU: slow, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def missing(index: int | None) -> str | None:
    """Return what this backend lacks here, in words; None where it can run."""
    try:
        import triton  # noqa: F401
    except ImportError:
        return "Triton is not installed: pip install triton, which there is for Linux, makes training many times faster"
    if interpreted():
        return None
    import torch

    capability = torch.cuda.get_device_capability(index)
    if capability < LEAST_CAPABILITY:
        return "this GPU's compute capability {}.{} is below {}.{}".format(*capability, *LEAST_CAPABILITY)
    return None
