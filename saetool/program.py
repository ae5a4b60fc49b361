"""What a program does around its work: settings of the whole process, and how it ends in a message and an exit code."""

import _thread
import ctypes
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from saetool.errors import RequestError, SaetoolError, printable

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Names of glibc's `mallopt` (malloc.h)."""
LARGEST, FREE = 2**25, 2**30
"""Bytes of one piece of memory, of which older versions of glibc keep no more, and of all that is kept free."""

INTERRUPTED = 130
"""Exit code of a program that Ctrl-C stopped."""
STOPPED = "stopped. What was finished is kept; the same command resumes."
_AGAIN = 0.02
"""Seconds until an interrupt that nobody heard comes again."""


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


class Interrupt:
    """What Ctrl-C does: as always, and it is remembered. Compiled code may turn it into an error of another name."""

    came = False
    heard = False
    """Whether the program has ended by it: what comes now from `unraised` comes too late."""

    def __call__(self, *signal_and_frame: object) -> None:
        self.came = True
        if not self.heard:
            raise KeyboardInterrupt

    def unraised(self, lost: "sys.UnraisableHookArgs") -> None:
        """Interrupt again where the first time nobody heard it: inside a callback from compiled code.

        Other errors that nobody hears are told, but not after an interrupt: then they come from what it left half made.
        """
        if issubclass(lost.exc_type, KeyboardInterrupt):
            again = threading.Timer(_AGAIN, _thread.interrupt_main)
            again.daemon = True
            again.start()
        elif not self.came:
            sys.__unraisablehook__(lost)


@contextmanager
def noticing_interrupts() -> Iterator[Interrupt]:
    """Yield what notices Ctrl-C while the block runs, in the main thread of a program that left its signal alone."""
    interrupt = Interrupt()
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    hook = sys.unraisablehook
    if ours and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupt)
        sys.unraisablehook = interrupt.unraised
    try:
        yield interrupt
    finally:
        if not interrupt.came:  # else what is half made may still come to its end
            sys.unraisablehook = hook
        if signal.getsignal(signal.SIGINT) is interrupt:
            # Once is enough to stop; again, while threads come to their end, ends the process at once.
            signal.signal(signal.SIGINT, signal.SIG_DFL if interrupt.came else signal.default_int_handler)


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`, under `torchrun` too; a user's error ends in its message and exit code."""
    with noticing_interrupts() as interrupt:
        code = _run_script(main, interrupt)
    if code:
        leave(code)


def _run_script(main: Callable[[], None], interrupt: Interrupt) -> int:
    """Run a script's `main` and say how it failed, if it did; return the exit code."""
    from pydantic import ValidationError

    try:
        try:
            _run_alone_or_with_others(main)
            return 0
        except (SaetoolError, ValidationError):  # of a script that goes on after Ctrl-C
            raise
        except Exception:
            if interrupt.came:
                raise KeyboardInterrupt from None
            raise
    except KeyboardInterrupt:
        interrupt.heard = True
        print(STOPPED, file=sys.stderr)
        return INTERRUPTED
    except SaetoolError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return error.exit_code
    except ValidationError as error:  # settings made from arguments
        for wrong in error.errors():
            key = ".".join(map(str, wrong["loc"]))
            print(f"error: {key}: {wrong['msg']} (given: {wrong['input']!r})", file=sys.stderr)
        return RequestError.exit_code


def _run_alone_or_with_others(main: Callable[[], None]) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        main()
        return
    from saetool import distributed

    distributed.start()
    main()
    distributed.stop()
