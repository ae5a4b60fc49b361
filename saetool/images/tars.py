"""Tar files of samples, as webdataset writes them: files that share a name up to the first dot are one sample.

The picture is the sample's first file with an image's ending and nothing more (`0001.jpg`, not `0001.seg.png`); `cls`
and the plain values of `json` are its labels.
"""

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saetool.errors import RequestError, WorkError, first_line
from saetool.images.folder import MAX_FILE_BYTES, Entry, FolderSource, LabelTable, is_hidden, is_image_name
from saetool.images.labels import Labels, label_columns
from saetool.images.picture import MAX_PIXELS
from saetool.images.sampling import ALL, Sample

SUFFIX = ".tar"
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass
class _Sample:
    """Where in which file a sample's members lie."""

    tar: Path
    written: str
    picture: tarfile.TarInfo | None = None
    notes: dict[str, tarfile.TarInfo] = field(default_factory=dict)
    """Members that may hold labels, by their ending."""


class TarSource(FolderSource):
    """The samples of tar files that have a picture, by their names, read where they lie: nothing is unpacked."""

    def __init__(
        self,
        files: Sequence[Path],
        sample: Sample = ALL,
        max_pixels: int | None = MAX_PIXELS,
        table: LabelTable | None = None,
        columns: list[str] | None = None,
    ):
        self._tars = sorted(files)
        folders = {file.absolute().parent for file in files}
        if len(folders) > 1:
            shown = ", ".join(sorted(map(str, folders))[:3])
            raise RequestError(
                f"images: tar files of several folders ({shown}): put them into one, where names tell them apart"
            )
        self._wanted = None if table else columns  # of the table, where there is one
        super().__init__(files[0] if len(files) == 1 else files[0].parent, sample, max_pixels, table)

    def _locate(self, root: str) -> tuple[str, str]:
        place = Path(root).resolve()
        return str(place), place.name

    def _list(self) -> list[Entry]:
        self._samples: dict[str, _Sample] = {}
        for tar in self._tars:
            for sample in _samples_in(tar):
                member = sample.picture
                if member is not None and not is_hidden(member.name.removeprefix("./")):
                    path = member.name.removeprefix("./")
                    # The same name in two files: it takes the file's to tell them apart.
                    path = path if path not in self._samples else f"{tar.stem}:{path}"
                    if path in self._samples:
                        raise RequestError(f"images.source: {tar} has two samples called {path!r}: rename one")
                    self._samples[path] = sample
        return [
            Entry(path, sample.picture.size if sample.picture else 0, sample.written)
            for path, sample in self._samples.items()
        ]

    def _own_labels(self, entries: Sequence[Entry]) -> Labels | None:
        samples = [self._samples[entry.path] for entry in entries]
        if not any(sample.notes for sample in samples):
            return None
        said = [_labels_of(sample) for sample in samples]
        names = dict.fromkeys(name for labels in said for name in labels)
        found = {name: [labels.get(name) for labels in said] for name in names}
        if self._wanted is not None:
            lacking = next((name for name in self._wanted if name not in found), None)
            if lacking is not None:
                raise RequestError(f"images.label_columns: {self.root} has no label {lacking!r}: {', '.join(found)}")
            found = {name: found[name] for name in self._wanted}
        return label_columns(found, self._wanted, str(self.root))

    def content(self, i: int) -> tuple[bytes, str]:
        sample = self._samples[self.path(i)]
        name = f"{sample.tar}: {self.path(i)}"
        if sample.picture is None or sample.picture.size > MAX_FILE_BYTES:
            raise WorkError(f"{name} has too many bytes for a picture; or set images.on_error=skip")
        try:
            return _read(sample.tar, sample.picture), name
        except OSError as error:
            raise WorkError(f"{name} cannot be read: {error.strerror}; or set images.on_error=skip") from None


def tar_files(source: str) -> list[Path]:
    """Return the tar files that a path names: one, those of a folder that holds no other files, or of a pattern.

    A pattern has `*`, `?` or `{000..012}` in its last part. An empty list is no answer of tar files.
    """
    path = Path(source).expanduser()
    if path.suffix == SUFFIX and path.is_file():
        return [path]
    if path.is_dir():
        inside = [file for file in path.iterdir() if not file.name.startswith(".")]
        return inside if inside and all(file.suffix == SUFFIX for file in inside) else []
    if path.suffix != SUFFIX:
        return []
    named = [Path(name) for name in _expanded(str(path))]
    if len(named) > 1:
        gone = next((file for file in named if not file.is_file()), None)
        if gone is not None:
            raise RequestError(f"images.source: there is no file {gone}")
        return named
    return sorted(path.parent.glob(path.name)) if path.parent.is_dir() else []


def _expanded(name: str) -> list[str]:
    found = _BRACES.search(name)
    if not found:
        return [name]
    first, last = found.groups()
    numbers = range(int(first), int(last) + 1)
    tails = _expanded(name[found.end() :])
    return [f"{name[: found.start()]}{number:0{len(first)}d}{tail}" for number in numbers for tail in tails]


def _samples_in(tar: Path) -> Iterator[_Sample]:
    """Yield the samples of a tar file: consecutive files whose names agree up to the first dot."""
    written = str(tar.stat().st_mtime_ns)
    key, sample = None, _Sample(tar, written)
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, ending = base.partition(".")
                if (folder, stem) != key:
                    yield sample
                    key, sample = (folder, stem), _Sample(tar, written)
                if sample.picture is None and "." not in ending and is_image_name(f"x.{ending}"):
                    sample.picture = member
                elif ending in ("cls", "json"):
                    sample.notes[ending] = member
        yield sample
    except (tarfile.TarError, EOFError) as error:
        raise RequestError(
            f"images.source: {tar} cannot be read as a tar file ({first_line(error)}): a compressed one has to be "
            "unpacked first, a torn one fetched again"
        ) from None


def _labels_of(sample: _Sample) -> dict[str, Any]:
    labels: dict[str, Any] = {}
    for ending, member in sample.notes.items():
        text = _read(sample.tar, member).decode("utf-8", "replace").strip()
        if ending == "cls":
            labels["cls"] = int(text) if text.lstrip("-").isdecimal() else text or None
            continue
        try:
            values = json.loads(text)
        except ValueError:
            raise RequestError(f"images.source: {sample.tar}: {member.name} is no JSON") from None
        if isinstance(values, dict):
            labels |= {key: v for key, v in values.items() if v is None or isinstance(v, str | bool | int | float)}
    return labels


def _read(tar: Path, member: tarfile.TarInfo) -> bytes:
    with tar.open("rb") as file:
        file.seek(member.offset_data)
        return file.read(member.size)
