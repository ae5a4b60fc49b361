"""A folder of image files: class folders as labels, or flat; nested; links followed."""

import os
from pathlib import Path

from saetool.errors import RequestError, WorkError
from saetool.images.picture import Picture, read_picture
from saetool.images.source import Label, LabelColumn, digest_listing

SUFFIXES = frozenset(
    [
        ".avif",
        ".bmp",
        ".gif",
        ".jp2",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tga",
        ".tif",
        ".tiff",
        ".webp",
    ],
)
"""Files that end otherwise are left alone, and so are hidden ones."""


class FolderSource:
    """Every image file below `root`. The label `class` is the first folder in which the paths differ."""

    sequential = False
    attribution: str | None = None

    def __init__(self, root: Path | str, limit: int | None = None):
        self.root: str | None
        self.root, self.name = self._locate(str(root))
        entries = sorted(self._list(), key=lambda entry: os.fsencode(entry[0]))
        for path in (str(self.root), *(path for path, _ in entries)):
            _require_utf8(path)
        if not entries:
            raise RequestError(f"images.source: no image files below {root} (looked for {', '.join(sorted(SUFFIXES))})")
        self._depth = _class_depth([path for path, _ in entries])
        self.label_columns: list[LabelColumn] = []
        if self._depth is not None:
            classes = {self._class(path) for path, _ in entries} - {None}
            self.label_columns = [LabelColumn("class", "category", sorted(map(str, classes)))]
        self._entries = entries[:limit]

    def __len__(self) -> int:
        return len(self._entries)

    def path(self, i: int) -> str:
        """Return the path below the root, with forward slashes."""
        return self._entries[i][0]

    def size_hint(self, i: int) -> int:
        """Return the file's size when the folder was listed."""
        return self._entries[i][1]

    def labels(self, i: int) -> dict[str, Label]:
        """Return the class folder's name; None for a file beside the class folders."""
        return {"class": self._class(self.path(i))} if self._depth is not None else {}

    def read(self, i: int) -> Picture:
        """Decode the file; WorkError names it when it is corrupt or gone."""
        return read_picture(*self._content(i))

    def listing(self) -> str:
        """Return a digest over relative paths and sizes."""
        return digest_listing(self._entries)

    def _locate(self, root: str) -> tuple[str, str]:
        """Return where the images are, and a name for them."""
        self._folder = Path(root).expanduser()
        if not self._folder.is_dir():
            raise RequestError(f"images.source: there is no folder {root}")
        resolved = self._folder.resolve()
        return str(resolved), resolved.name

    def _list(self) -> list[tuple[str, int]]:
        """Return the path below the root and the size of every image file, in any order."""
        return _walk(self._folder)

    def _content(self, i: int) -> tuple[bytes, str]:
        """Return a file's bytes, and what a message calls it."""
        file = self._folder / self.path(i)
        try:
            return file.read_bytes(), str(file)
        except OSError as error:
            raise WorkError(f"{file} cannot be read: {error.strerror}; or set images.on_error=skip") from None

    def _class(self, path: str) -> str | None:
        folders = path.split("/")[:-1]
        return folders[self._depth] if self._depth is not None and self._depth < len(folders) else None


def is_image_name(path: str) -> bool:
    """Say whether a path below the root is an image's: by its ending, and nothing on the way hidden."""
    return os.path.splitext(path)[1].lower() in SUFFIXES and not any(part.startswith(".") for part in path.split("/"))


def _walk(root: Path) -> list[tuple[str, int]]:
    entries: list[tuple[str, int]] = []
    above: dict[str, tuple[str, ...]] = {}
    for folder, subfolders, files in os.walk(root, followlinks=True):
        # A link to a folder above would lead round in a circle.
        real = os.path.realpath(folder)
        ancestors = above.get(os.path.dirname(folder), ())
        if real in ancestors:
            subfolders.clear()
            continue
        above[folder] = (*ancestors, real)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        below = os.path.relpath(folder, root)
        for name in files:
            if is_image_name(name):
                path = name if below == "." else f"{below}/{name}".replace(os.sep, "/")
                entries.append((path, _size(os.path.join(folder, name))))
    return entries


def _require_utf8(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = path.encode("utf-8", "backslashreplace").decode()
        raise RequestError(
            f"images.source: the name {shown} is not UTF-8, so no table can hold it: rename it"
        ) from None


def _size(file: str) -> int:
    try:
        return os.stat(file).st_size
    except OSError:
        # A link to nothing: reading it will say so.
        return 0


def _class_depth(paths: list[str]) -> int | None:
    """Return the first level at which folders differ, so that labels tell images apart; None without one."""
    folders = [path.split("/")[:-1] for path in paths]
    for depth in range(max(map(len, folders))):
        names = {parts[depth] if depth < len(parts) else None for parts in folders}
        if len(names) > 1:
            return depth
    return None
