"""One writer a directory, and no replacement under a reader's hands.

A writer holds NAME.lock, beside the directory; a killed job frees it by dying. A reader holds its manifest, shared;
who puts another artifact in its place waits for that. Where the file system has no locks, both work without.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from saetool.artifacts.artifact import Artifact
from saetool.artifacts.manifest import MANIFEST, read_manifest
from saetool.artifacts.remote import is_remote
from saetool.errors import RequestError
from saetool.progress import say

_HELD = (errno.EWOULDBLOCK, errno.EACCES)
"""What flock says of a lock that another has; anything else means that there are no locks here."""

_locks: set[int] = set()
"""Open files that carry a lock of this process. Forked children let go of them: a lock ends with who took it."""


def _let_go() -> None:
    for file in _locks:
        os.close(file)
    _locks.clear()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def _carrying(file: int) -> Iterator[None]:
    """While the block runs, `file` carries a lock; then it is closed."""
    _locks.add(file)
    try:
        yield
    finally:
        if file in _locks:  # not in a forked child
            _locks.remove(file)
            os.close(file)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold NAME.lock while working on NAME; raise RequestError when another process holds it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(out.name + ".lock")
    with _carrying(_acquire(path, out)):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def sweep(out: Path) -> None:
    """Delete the NAME.lock that a kill left behind."""
    if out.with_name(out.name + ".lock").exists():
        with suppress(RequestError, OSError), locked(out):  # it is in use, or not ours to delete
            pass


@contextmanager
def held(artifact: Artifact) -> Iterator[None]:
    """Keep an artifact from being replaced; raise RequestError where that has happened since it was opened."""
    if is_remote(artifact.path):
        yield
        return
    file = os.open(artifact.path / MANIFEST, os.O_RDONLY)
    with _carrying(file):
        with suppress(OSError):  # without locks, what is read is still compared with its digests
            fcntl.flock(file, fcntl.LOCK_SH)
        if not _stands(file, artifact.path / MANIFEST) or read_manifest(artifact.path)["id"] != artifact.id:
            raise RequestError(f"{artifact.path}: was replaced since this command began. Run it again.")
        yield


@contextmanager
def unread(out: Path) -> Iterator[None]:
    """Wait until nobody reads the artifact at `out`, and keep new readers waiting meanwhile."""
    try:
        file = os.open(out / MANIFEST, os.O_RDWR)  # over NFS only who could write may lock for himself alone
    except PermissionError:
        file = os.open(out / MANIFEST, os.O_RDONLY)
    try:
        with suppress(OSError):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _HELD:
                    raise
                say(f"{out}: is being read; the new one, finished, waits to take its place.")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _acquire(path: Path, out: Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD:
                say(f"{out}: no locks here ({error.strerror}): see to it that nothing else works on it.")
                return file
            holder = os.pread(file, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(file)
            raise RequestError(
                f"{out}: another process (pid {holder}) is working on it. Wait for it, or choose another place "
                "(run=…, out=…)."
            ) from None
        # The former holder unlinks the file when it ends: a lock on an unlinked file protects nothing.
        if _stands(file, path):
            with suppress(OSError):  # the number is a courtesy: on a full disk the lock holds without it
                os.truncate(file, 0)
                os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
            return file
        os.close(file)


def _stands(file: int, path: Path) -> bool:
    """Say whether an open file is still the one at `path`."""
    try:
        return os.stat(path).st_ino == os.fstat(file).st_ino
    except FileNotFoundError:
        return False
