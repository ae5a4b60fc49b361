"""Bytes are compared with the manifest's digests before anything is made of them.

A file is compared when a process first uses it, and again where it has changed since: another size, time or inode.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from saetool.artifacts.manifest import digest_file, remedy
from saetool.errors import RequestError

Identity = tuple[int, int, int, int, int]

_compared: dict[str, tuple[str, Identity]] = {}
"""By path: the digest that a file was found to have, and what the file system said of it then."""


def identity_of(status: os.stat_result) -> Identity:
    """Return what changes when a file is replaced or written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def check_file(artifact: Path, name: str, entry: dict) -> None:
    """Raise RequestError unless the file `name` of an artifact has the digest of its manifest's `entry`."""
    path = artifact / name
    try:
        before = identity_of(path.stat())
        if _compared.get(str(path)) == (entry["digest"], before):
            return
        found = digest_file(path)
        after = identity_of(path.stat())
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror}).") from None
    if found != entry["digest"] or after != before:
        raise damaged(artifact, name)
    _compared[str(path)] = found, after


def damaged(artifact: Path, name: str) -> RequestError:
    """Return the error of a file whose bytes are not those that were sealed."""
    return RequestError(f"{artifact}: damaged: {name}: its bytes have changed since it was sealed. {remedy(artifact)}")


def changed_file(artifact: Path, names: Iterable[str]) -> str | None:
    """Return the name of a file that has changed since it was compared; those never used are not looked at."""
    for name in names:
        known = _compared.get(str(artifact / name))
        if known and identity_of((artifact / name).stat()) != known[1]:
            return name
    return None
