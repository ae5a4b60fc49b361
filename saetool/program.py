"""What a program does around its work: settings of the whole process, and how it ends in a message and an exit code."""

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from typing import NoReturn

from saetool.errors import RequestError, SaetoolError, printable

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


def leave(code: int) -> NoReturn:
    """End the process now: the other processes of a torchrun job may wait in a collective that never completes."""
    sys.stdout.flush()
    sys.stderr.flush()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        os._exit(code)
    raise SystemExit(code)


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`, under `torchrun` too; a user's error ends in its message and exit code."""
    from pydantic import ValidationError

    try:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return main()
        from saetool import distributed

        distributed.start()
        main()
        distributed.stop()
    except KeyboardInterrupt:
        print("stopped. What was finished is kept; the same command resumes.", file=sys.stderr)
        leave(130)
    except SaetoolError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        leave(error.exit_code)
    except ValidationError as error:  # settings made from arguments
        for wrong in error.errors():
            key = ".".join(map(str, wrong["loc"]))
            print(f"error: {key}: {wrong['msg']} (given: {wrong['input']!r})", file=sys.stderr)
        leave(RequestError.exit_code)
