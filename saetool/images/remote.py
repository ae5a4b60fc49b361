"""A folder of images behind an fsspec address: `s3://bucket/images`, `memory://…`, what else has a driver installed.

Files are read whole, one request each, where the decoding threads run; nothing is kept on the disk.
"""

from saetool.errors import RequestError, WorkError, first_line
from saetool.images.folder import FolderSource, is_image_name


class RemoteFolderSource(FolderSource):
    """Every image file below an address, in the order and with the labels that a local folder of them would have."""

    def __init__(self, address: str, limit: int | None = None):
        import fsspec

        try:
            self._files, self._base = fsspec.url_to_fs(address)
        except (ImportError, ValueError) as error:  # a driver that is not installed, a protocol that nobody knows
            raise RequestError(f"images.source: {address} cannot be opened: {first_line(error)}") from None
        super().__init__(address, limit)

    def _locate(self, root: str) -> tuple[str, str]:
        place = self._files.unstrip_protocol(self._base).rstrip("/")
        return place, place.rsplit("/", 1)[-1]

    def _list(self) -> list[tuple[str, int]]:
        try:
            found = self._files.find(self._base, detail=True)
        except Exception as error:  # each driver has its own errors: missing bucket, no credentials, no network
            raise RequestError(f"images.source: {self.root} cannot be listed: {first_line(error)}") from None
        prefix = self._base.rstrip("/") + "/"
        paths = {file.removeprefix(prefix): info.get("size") or 0 for file, info in found.items()}
        return [(path, size) for path, size in paths.items() if is_image_name(path)]

    def _content(self, i: int) -> tuple[bytes, str]:
        name = f"{self.root}/{self.path(i)}"
        try:
            return self._files.cat_file(f"{self._base.rstrip('/')}/{self.path(i)}"), name
        except Exception as error:
            raise WorkError(f"{name} cannot be read: {first_line(error)}; or set images.on_error=skip") from None
