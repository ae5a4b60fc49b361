"""A folder of image files: class folders as labels, or flat; nested; links followed."""

import os
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from saetool.artifacts import digest_bytes
from saetool.errors import RequestError, WorkError
from saetool.images.labels import Labels, read_labels
from saetool.images.picture import MAX_PIXELS, Picture, read_picture
from saetool.images.sampling import ALL, Sample
from saetool.images.source import ImageSource, Label, LabelColumn, digest_labels, digest_listing, split_named
from saetool.progress import say

SUFFIXES = frozenset({
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga",
    ".tif", ".tiff", ".webp",
})  # fmt: skip
"""Files that end otherwise are left out and counted; hidden ones are left alone."""
MAX_FILE_BYTES = 4 << 30
"""Of an image file: twice what 179 megapixels take without compression in the largest type. Beyond it is no picture."""


PATHS = "paths"
"""What a list of paths is called in a store, which holds the list itself."""


@dataclass(frozen=True)
class Entry:
    """A file as it was listed."""

    path: str
    """Below the root, with forward slashes."""
    size: int
    written: str
    """When: nanoseconds, or what a file system behind an address says instead."""


@dataclass(frozen=True)
class LabelTable:
    """A file of labels, and which of its columns are wanted (None: those that can be labels)."""

    file: Path
    columns: list[str] | None = None


class FolderSource(ImageSource):
    """Every image file below `root`. The label `class` is the first folder in which the paths differ.

    Folders that name splits (train, val, test) are no classes. `table` is a file of labels that names the images.
    """

    forkable = True
    companions: frozenset[str] = frozenset()
    """Files that belong to the set and are no images: not worth a word."""

    def __init__(
        self,
        root: Path | str,
        sample: Sample = ALL,
        max_pixels: int | None = MAX_PIXELS,
        table: LabelTable | None = None,
    ):
        self.root, self.name = self._locate(str(root))
        self.max_pixels = max_pixels
        entries = sorted(self._list(), key=lambda entry: os.fsencode(entry.path))
        left_out = [entry for entry in entries if not is_image_name(entry.path)]
        entries = [entry for entry in entries if is_image_name(entry.path)]
        for path in (str(self.root), *(entry.path for entry in entries)):
            _require_utf8(path)
        left_out = [entry for entry in left_out if entry.path not in self.companions]
        if left_out:
            counted = _count(entry.path for entry in left_out)
            say(f"{self.root}: {len(left_out):,} files are not of a kind that is read and are left out ({counted})")
        if not entries:
            raise RequestError(f"images.source: no image files below {root} (looked for {', '.join(sorted(SUFFIXES))})")
        self._take(entries, sample, table)

    def _take(self, entries: list[Entry], sample: Sample, table: LabelTable | None) -> None:
        """Keep a sample of the files, and their labels: the class folders, then what the table says."""
        paths = [entry.path for entry in entries]
        self._depth = _class_depth(paths)
        classes = [self._class(path) for path in paths]
        columns = {}
        if self._depth is not None:
            names = sorted({name for name in classes if name is not None})
            columns["class"] = (LabelColumn("class", "category", names), classes)
        more = self._own_labels(entries)
        found = [more] if more else []
        found += [read_labels(table.file, paths, table.columns)] if table else []
        columns |= {c.name: (c, labels.values[c.name]) for labels in found for c in labels.columns}
        places = sample.take(classes)
        self._entries = [entries[place] for place in places]
        self.label_columns: list[LabelColumn] = [column for column, _ in columns.values()]
        self._labels = Labels(self.label_columns, {name: values for name, (_, values) in columns.items()}).take(places)

    def _own_labels(self, entries: Sequence[Entry]) -> Labels | None:
        """Return labels that stand beside the pictures, where the kind of source has some."""
        return None

    def __len__(self) -> int:
        return len(self._entries)

    def path(self, i: int) -> str:
        return self._entries[i].path

    def size_hint(self, i: int) -> int:
        return self._entries[i].size

    def labels(self, i: int) -> dict[str, Label]:
        """Return the class folder's name, None for a file beside the class folders, and the table's labels."""
        return self._labels.of(i)

    def read(self, i: int) -> Picture:
        return read_picture(*self.content(i), max_pixels=self.max_pixels)

    def digest(self, i: int) -> str:
        return digest_bytes(self.content(i)[0])

    def listing(self) -> str:
        """Return a digest over relative paths and sizes."""
        return digest_listing((entry.path, entry.size) for entry in self._entries)

    def times(self) -> str | None:
        return digest_listing((entry.path, entry.written) for entry in self._entries)

    def labels_digest(self) -> str | None:
        return digest_labels(self._labels.values)

    def _locate(self, root: str) -> tuple[str, str]:
        """Return where the images are, and a name for them."""
        self._folder = Path(root).expanduser()
        if not self._folder.is_dir():
            raise RequestError(f"images.source: there is no folder {root}")
        resolved = self._folder.resolve()
        return str(resolved), resolved.name

    def _list(self) -> list[Entry]:
        """Return every file below the root that is not hidden, in any order."""
        return walk(self._folder)

    def content(self, i: int) -> tuple[bytes, str]:
        """Return a file's bytes, and what a message calls it."""
        file = self._folder / self.path(i)
        try:
            return read_regular(file), str(file)
        except OSError as error:
            raise WorkError(f"{file} cannot be read: {error.strerror}; or set images.on_error=skip") from None

    def _class(self, path: str) -> str | None:
        folders = path.split("/")[:-1]
        return folders[self._depth] if self._depth is not None and self._depth < len(folders) else None


class PathsSource(FolderSource):
    """Image files that are named one by one, in the order given; their root is the folder that holds all of them."""

    def __init__(
        self,
        paths: Sequence[Path | str],
        sample: Sample = ALL,
        max_pixels: int | None = MAX_PIXELS,
        table: LabelTable | None = None,
        root: Path | str | None = None,
    ):
        if not paths:
            raise RequestError("images: the list of paths is empty")
        files = [Path(root or ".", path).expanduser().absolute() for path in paths]
        self._folder = Path(root).absolute() if root else Path(os.path.commonpath([file.parent for file in files]))
        self.root = str(self._folder)
        self.name, self.max_pixels = PATHS, max_pixels
        below = [os.path.relpath(file, self._folder).replace(os.sep, "/") for file in files]
        entries = [Entry(path, *_facts(str(file))) for path, file in zip(below, files, strict=True)]
        twice = next((path for path, count in Counter(below).items() if count > 1), None)
        if twice is not None:
            raise RequestError(f"images: the list of paths names {twice!r} twice; an image is known by its path")
        gone = next((file for file in files if not file.is_file()), None)
        if gone is not None:
            raise RequestError(f"images: there is no file {gone}")
        for path in below:
            _require_utf8(path)
        self._take(entries, sample, table)


def is_image_name(path: str) -> bool:
    """Say whether a path below the root is an image's, by its ending."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def is_hidden(path: str) -> bool:
    """Say whether something on the way to a path is hidden."""
    return any(part.startswith(".") for part in path.split("/"))


def read_regular(file: Path) -> bytes:
    """Return the bytes of a regular file; WorkError for a pipe or a device, which may never end, and beyond a limit."""
    # Without blocking: opening a pipe that nobody writes to would wait for ever.
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as content:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise WorkError(f"{file} is no regular file, so it is not read; remove it, or set images.on_error=skip")
        if found.st_size > MAX_FILE_BYTES:
            raise WorkError(f"{file} has {found.st_size:,} bytes: too many for a picture; or set images.on_error=skip")
        return content.read(MAX_FILE_BYTES)


def walk(root: Path) -> list[Entry]:
    """Return every file below a folder that is not hidden, links followed; RequestError where one cannot be listed."""
    entries: list[Entry] = []
    above: dict[str, tuple[str, ...]] = {}
    for folder, subfolders, files in os.walk(root, onerror=refuse_folder, followlinks=True):
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
            if not name.startswith("."):
                path = name if below == "." else f"{below}/{name}".replace(os.sep, "/")
                entries.append(Entry(path, *_facts(os.path.join(folder, name))))
    return entries


def refuse_folder(error: OSError) -> None:
    """Raise RequestError for a folder that cannot be listed: what walks folders passes over it without a word."""
    raise RequestError(
        f"images.source: {error.filename} cannot be listed ({error.strerror}), so its images would be missed; make it "
        "readable, or move it away"
    )


def _facts(file: str) -> tuple[int, str]:
    try:
        found = os.stat(file)
    except OSError:
        # A link to nothing: reading it will say so.
        return 0, ""
    return found.st_size, str(found.st_mtime_ns)


def _count(paths: Iterable[str]) -> str:
    """Return how many files end how, the most frequent first: `.heic 12, .txt 3`."""
    endings = Counter(os.path.splitext(path)[1].lower() or "no ending" for path in paths)
    shown = [f"{ending.encode('utf-8', 'backslashreplace').decode()} {n:,}" for ending, n in endings.most_common(8)]
    return ", ".join(shown) + (", …" if len(endings) > 8 else "")


def _require_utf8(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = path.encode("utf-8", "backslashreplace").decode()
        raise RequestError(
            f"images.source: the name {shown} is not UTF-8, so no table can hold it: rename it"
        ) from None


def _class_depth(paths: list[str]) -> int | None:
    """Return the first level whose folders tell images apart; None without one.

    A lone folder beside stray files tells nothing; folders named like splits hold the classes, and are none.
    """
    folders = [path.split("/")[:-1] for path in paths]
    for depth in range(max(map(len, folders))):
        names = {parts[depth] for parts in folders if depth < len(parts)}
        if len(names) > 1 and not all(split_named(name) for name in names):
            return depth
    return None
