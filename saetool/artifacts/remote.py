"""Artifacts behind an fsspec address (`s3://bucket/runs/a/activations`, `memory://…`): read in place, never written.

Only what a sealed artifact's readers ask of a path is here. Nothing is kept on the disk: a part of a file is one ranged
request, and who reads the same part twice keeps it.
"""

import errno
import io
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from saetool.artifacts.hub import fetch, is_hub
from saetool.artifacts.manifest import digest_bytes
from saetool.errors import RequestError, first_line, shown


@dataclass(frozen=True)
class RemotePath:
    """A path below an address. Whatever a driver raises comes out as OSError, as it does from a local path."""

    files: Any
    """The fsspec file system."""
    inside: str
    """The path within it."""
    digest: str | None = None
    """Of a file: what its bytes are compared with when it is fetched whole."""

    def __str__(self) -> str:
        return self.files.unstrip_protocol(self.inside)

    def __truediv__(self, name: object) -> "RemotePath":
        return RemotePath(self.files, f"{self.inside.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        return self.inside.rstrip("/").rsplit("/", 1)[-1]

    def with_name(self, name: str) -> "RemotePath":
        return RemotePath(self.files, self.inside.rstrip("/").rpartition("/")[0] + f"/{name}")

    def exists(self) -> bool:
        return self._ask(self.files.exists)

    def is_file(self) -> bool:
        return self._ask(self.files.isfile)

    def is_dir(self) -> bool:
        return self._ask(self.files.isdir)

    def stat(self) -> SimpleNamespace:
        """Return `st_size`, the bytes of the file."""
        return SimpleNamespace(st_size=self._ask(self.files.size))

    def read_bytes(self) -> bytes:
        """Return the whole file; raises RequestError where it has another digest than it should."""
        data = self._ask(self.files.cat_file)
        if self.digest is not None and digest_bytes(data) != self.digest:
            raise RequestError(
                f"{self}: damaged: its bytes have changed since it was sealed, or its server sends other bytes. "
                "Try again, or copy the artifact anew."
            )
        return data

    def read_range(self, start: int, stop: int) -> bytes:
        """Return some bytes of the file, in one request."""
        data = self._ask(self.files.cat_file, start=start, end=stop)
        if len(data) > stop - start:
            reason = "its server answers a request for a part with the whole file; copy it to a disk first"
            raise OSError(errno.EIO, reason, str(self))
        return data

    def open(self, mode: str = "rb") -> io.BytesIO:
        """Return the whole file, in memory: for tables and headers; shards are read by `read_range`."""
        return io.BytesIO(self.read_bytes())

    def _ask(self, method: Callable[..., Any], **options: Any) -> Any:
        try:
            return method(self.inside, **options)
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self)) from error
        except Exception as error:  # each driver has its own: no credentials, no such bucket, no network
            raise OSError(errno.EIO, first_line(error), str(self)) from error


def is_remote(path: object) -> bool:
    """Say whether a path is an address, and not on this machine's file systems."""
    return isinstance(path, RemotePath) or "://" in str(path)


def place_of(path: str | os.PathLike | RemotePath, kind: str | None = None) -> Path:
    """Return a local path, or for an address a `RemotePath`, which answers a Path's reading methods.

    A place on the hub (`hf/OWNER/NAME`) is fetched first; of a whole repository the artifact of a `kind`, where one is
    named. Raises RequestError when no driver for the address is installed.
    """
    if not isinstance(path, str | os.PathLike | RemotePath) or not str(path):
        raise RequestError(f"a place is a path or an address, not {shown(path)}.")
    if is_hub(path):
        return fetch(str(path), kind)
    if isinstance(path, RemotePath) or not is_remote(path):
        return cast(Path, path) if isinstance(path, RemotePath) else Path(path).expanduser()
    import fsspec

    try:
        files, inside = fsspec.url_to_fs(str(path))
    except (ImportError, ValueError) as error:
        raise RequestError(f"{path}: cannot be opened: {first_line(error)}") from None
    with suppress(Exception):  # most drivers keep a listing: sizes then need no request each
        files.find(inside)
    return cast(Path, RemotePath(files, inside))


def where_from(path: Path, start: Path) -> str:
    """Return how `start` refers to `path`: an address as it is, a local path relative to it."""
    return str(path) if is_remote(path) else os.path.relpath(path, start)
