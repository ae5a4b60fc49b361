"""Writing that survives a crash: a file is whole under its name, or not there at all. And what the system says else."""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from saetool.errors import RequestError, SaetoolError, WorkError, first_line

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_KEPT = "What was finished is kept"
_RUST_ERRNO = re.compile(r"\(os error (\d+)\)")
"""How safetensors, which is written in Rust, says what the system answered."""
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory")
"""torch's words for it on a CPU and on a GPU."""


def write_atomic(path: Path, pieces: Iterable[bytes | memoryview], temporary: Path) -> None:
    """Write pieces, one after the other, to `path`: another name on the same disk, fsync, rename. The caller fsyncs the
    directory.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextmanager
def built_aside(out: Path) -> Iterator[Path]:
    """Give a new folder of a name of its own, beside `out`: it becomes `out` in one step, or is thrown away."""
    building = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    building.mkdir(parents=True)
    try:
        yield building
        os.replace(building, out)
    finally:
        shutil.rmtree(building, ignore_errors=True)


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


def explain(error: BaseException, path: Path) -> SaetoolError | None:
    """Turn a failure of the machine into words a person can act on; None where it is something else.

    `path` is what was being made: what cannot be opened there cannot be written, elsewhere it cannot be read.
    """
    if _out_of_memory(error):
        return WorkError(
            f"{path}: out of memory ({first_line(error)}). {_KEPT}; free memory, or take smaller pieces "
            "(cache.batch_size, cache.shard_mb, training.batch_size, training.pool_rows), and run the command again."
        )
    number = _errno(error)
    name = getattr(error, "filename", None)
    where = f"{path if name is None else os.fsdecode(name)}"
    if number in FULL_DISK:
        return WorkError(
            f"{where}: no space left on the disk. {_KEPT}; make space and run the same command again: it resumes."
        )
    if number == errno.EFBIG:
        return WorkError(
            f"{where}: larger than a file may be here (see `ulimit -f`). {_KEPT}; "
            "lift the limit and run the same command again: it resumes."
        )
    if number is None:
        return None
    words = os.strerror(number)
    if number == errno.ENOENT:
        return WorkError(f"{where}: is not there, or cannot be made there ({words}).")
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        if _is_beside(Path(where), path):
            return WorkError(f"{where}: cannot be written ({words}). Choose another place (run=…, out=…).")
        return WorkError(f"{where}: cannot be opened ({words}). See to its permissions.")
    if number in (errno.EEXIST, errno.ENOTDIR):
        return RequestError(f"{where}: a file is where a folder should be; choose another (run=…, out=…).")
    if number == errno.ENAMETOOLONG:
        return RequestError(
            f"{where[:80]}…: a name longer than the file system takes; choose a shorter one (run=…, out=…)."
        )
    if name is None:
        return None
    return WorkError(f"{where}: cannot be read or written ({words}). {_KEPT}; the same command resumes.")


def _is_beside(name: Path, path: Path) -> bool:
    """Say whether `name` is what is made at `path`, unfinished or finished, its lock, or a folder above it."""
    beside = [path, *(path.with_name(path.name + end) for end in (".partial", ".lock", ".old"))]
    return name in path.parents or any(name == own or own in name.parents for own in beside)


def _errno(error: BaseException) -> int | None:
    """Return the system's number of a failure, where its library says it at all."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if found := _RUST_ERRNO.search(str(error)):
        return int(found[1])
    return None


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)
