"""A folder of images behind an fsspec address: `s3://bucket/images`, `memory://…`, what else has a driver installed.

Files are read whole, one request each, where the decoding threads run; nothing is kept on the disk.
"""

from pathlib import Path

from saetool.errors import RequestError, WorkError, first_line
from saetool.images.folder import MAX_FILE_BYTES, Entry, FolderSource, LabelTable, is_hidden, read_regular, walk
from saetool.images.picture import MAX_PIXELS
from saetool.images.sampling import ALL, Sample


class RemoteFolderSource(FolderSource):
    """Every image file below an address, in the order and with the labels that a local folder of them would have."""

    forkable = False
    """A driver's own thread does not outlive a fork."""

    def __init__(
        self, address: str, sample: Sample = ALL, max_pixels: int | None = MAX_PIXELS, table: LabelTable | None = None
    ):
        import fsspec

        try:
            self._files, self._base = fsspec.url_to_fs(address)
        except (ImportError, ValueError) as error:  # a driver that is not installed, a protocol that nobody knows
            raise RequestError(f"images.source: {address} cannot be opened: {first_line(error)}") from None
        super().__init__(address, sample, max_pixels, table)

    def _locate(self, root: str) -> tuple[str, str]:
        place = self._files.unstrip_protocol(self._base).rstrip("/")
        return place, place.rsplit("/", 1)[-1]

    def _list(self) -> list[Entry]:
        if "file" in self._files.protocol and Path(self._base).is_dir():
            return walk(Path(self._base))
        try:
            found = self._found()
        except Exception as error:  # each driver has its own errors: missing bucket, no credentials, no network
            raise RequestError(f"images.source: {self.root} cannot be listed: {first_line(error)}") from None
        prefix = self._base.rstrip("/") + "/"
        entries = [
            Entry(file.removeprefix(prefix), info.get("size") or 0, _written(info)) for file, info in found.items()
        ]
        return [entry for entry in entries if not is_hidden(entry.path)]

    def _found(self) -> dict[str, dict]:
        """Return every file below the address, {path: facts}; raise whatever the driver raises for any folder."""
        from fsspec import AbstractFileSystem

        if getattr(self._files.find, "__func__", None) is not AbstractFileSystem.find:
            return self._files.find(self._base, detail=True)
        # What fsspec offers drivers without a listing of their own passes over folders that it cannot list.
        found, folders = {}, [self._base]
        while folders:
            for facts in self._files.ls(folders.pop(), detail=True):
                if facts["type"] == "directory":
                    folders.append(facts["name"])
                else:
                    found[facts["name"]] = facts
        return found

    def content(self, i: int) -> tuple[bytes, str]:
        name = f"{self.root}/{self.path(i)}"
        if self.size_hint(i) > MAX_FILE_BYTES:
            raise WorkError(f"{name} has {self.size_hint(i):,} bytes: too many for a picture")
        file = f"{self._base.rstrip('/')}/{self.path(i)}"
        try:
            return read_regular(Path(file)) if "file" in self._files.protocol else self._files.cat_file(file), name
        except WorkError:
            raise
        except Exception as error:
            raise WorkError(f"{name} cannot be read: {first_line(error)}; or set images.on_error=skip") from None


def _written(info: dict) -> str:
    """Return what a driver says of a file's version: its tag where it has one, else a time."""
    return str(next((info[key] for key in ("ETag", "etag", "LastModified", "mtime", "created") if info.get(key)), ""))
