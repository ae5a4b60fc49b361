"""One writer a directory: an advisory lock beside it that a killed job frees by dying."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from saetool.errors import RequestError


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold NAME.lock while working on NAME; raise RequestError when another process holds it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(out.name + ".lock")
    file = _acquire(path, out)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def _acquire(path: Path, out: Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(file, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(file)
            raise RequestError(
                f"{out}: another process (pid {holder}) is working on it. Wait for it, or choose another place (run=…)."
            ) from None
        # The former holder unlinks the file when it ends: a lock on an unlinked file protects nothing.
        try:
            current = os.stat(path).st_ino == os.fstat(file).st_ino
        except FileNotFoundError:
            current = False
        if current:
            with suppress(OSError):  # the number is a courtesy: on a full disk the lock holds without it
                os.truncate(file, 0)
                os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
            return file
        os.close(file)
