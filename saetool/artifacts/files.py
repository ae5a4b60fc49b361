"""Writing that survives a crash: a file is whole under its name, or not there at all."""

import errno
import os
from pathlib import Path

from saetool.errors import RequestError, SaetoolError, WorkError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path`: temporary name, fsync, rename. The caller fsyncs the directory when it seals."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def sync_file(path: Path) -> None:
    """Make a file's bytes durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make a directory's entries durable, where the system can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems cannot fsync a directory
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def explain(error: OSError, path: Path) -> SaetoolError | None:
    """Turn an operating system's error into words a person can act on; None when there is nothing to add."""
    if error.errno in FULL_DISK:
        return WorkError(
            f"{error.filename or path}: no space left on the disk. What was finished is kept; "
            "make space and run the same command again: it resumes."
        )
    if error.errno == errno.EFBIG:
        return WorkError(
            f"{error.filename or path}: larger than a file may be here (see `ulimit -f`). What was finished is kept; "
            "lift the limit and run the same command again: it resumes."
        )
    if error.errno == errno.ENOENT:
        return WorkError(f"{error.filename or path}: is not there, or cannot be made there ({error.strerror}).")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return WorkError(
            f"{error.filename or path}: cannot be written ({error.strerror}). Choose another place (run=…)."
        )
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return RequestError(f"{error.filename or path}: a file is where a folder should be; choose another (run=…).")
    return None
