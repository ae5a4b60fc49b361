"""Memory that a training step frees and the next one needs again: a setting of the whole process, made by programs."""

import ctypes
import platform

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Names of glibc's `mallopt` (malloc.h)."""
LARGEST, FREE = 2**25, 2**30
"""Bytes of one piece of memory, of which older versions of glibc keep no more, and of all that is kept free."""


def keep_heap() -> None:
    """Let this process keep large pieces of memory that are freed, instead of giving each back to the system.

    A training step frees and takes tensors of several megabytes; taking them anew, page by page, was 7 % of its time
    (measured, batch 8,192). With glibc only; elsewhere nothing changes.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(MMAP_THRESHOLD, LARGEST):
            mallopt(TRIM_THRESHOLD, FREE)
