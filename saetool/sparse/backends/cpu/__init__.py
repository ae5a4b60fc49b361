"""float32 on a CPU: candidates from a bfloat16 product (`screen`), everything else in loops compiled by numba."""

from functools import cache
from types import ModuleType


@cache
def kernels() -> ModuleType:
    """Return the compiled loops. Raises ImportError without numba, RuntimeError where its cache cannot be written."""
    from saetool.sparse.backends.cpu import compiled

    return compiled


@cache
def missing() -> str | None:
    """Return what this backend lacks here, in words; None where it can run."""
    try:
        kernels()
    except ImportError:
        return "pip install 'saetool[cpu]' compiles the loops and is faster"
    except RuntimeError as error:
        return f"numba finds no place for its cache, set NUMBA_CACHE_DIR ({error})"
    return None
