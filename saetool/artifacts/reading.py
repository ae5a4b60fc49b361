"""Bytes are compared with the manifest's digests before anything is made of them.

A file is compared when a process first uses it, and again where the file system says that it has changed since.
"""

import os
from pathlib import Path

from saetool.artifacts.manifest import digest_file, is_safe_name, read_manifest, remedy
from saetool.errors import RequestError

Identity = tuple[int, ...]

_compared: dict[str, tuple[str, Identity]] = {}
"""By path: the digest that a file was found to have, and what the file system said of it then."""


def identity_of(status: os.stat_result) -> Identity:
    """Return what changes whenever a file may have been replaced or written to: a new link to it counts too."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def missing_file(path: Path, manifest: dict) -> str | None:
    """Return which file is missing or has another size than the manifest says; None where all is well."""
    for name, entry in manifest["files"].items():
        try:
            size = (path / name).stat().st_size if is_safe_name(name) else -1
        except (OSError, ValueError):
            size = -1
        if size != entry["bytes"]:
            return f"{name} is missing" if size < 0 else f"{name} has {size} bytes instead of {entry['bytes']}"
    return None


def check_file(artifact: Path, name: str, entry: dict) -> None:
    """Raise RequestError unless the file `name` of an artifact has the digest of its manifest's `entry`."""
    path = artifact / name
    try:
        before = identity_of(path.stat())
        if _compared.get(str(path)) == (entry["digest"], before):
            return
        found = digest_file(path)
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror}).") from None
    if found != entry["digest"]:
        raise damaged(artifact, name)
    _compared[str(path)] = found, before


def damaged(artifact: Path, name: str) -> RequestError:
    """Return the error of a file whose bytes are not those that were sealed."""
    return RequestError(f"{artifact}: damaged: {name}: its bytes have changed since it was sealed. {remedy(artifact)}")


def require_unchanged(artifact: Path, files: dict) -> None:
    """Raise RequestError where a file of an artifact has changed since it was compared; others are not looked at."""
    for name, entry in files.items():
        if str(artifact / name) in _compared:
            check_file(artifact, name, entry)


def compare_all(artifact: Path) -> None:
    """Raise RequestError unless an artifact's manifest is sound and every file is as it says."""
    manifest = read_manifest(artifact)
    if problem := missing_file(artifact, manifest):
        raise RequestError(f"{artifact}: damaged: {problem}. {remedy(artifact)}")
    for name, entry in manifest["files"].items():
        check_file(artifact, name, entry)
