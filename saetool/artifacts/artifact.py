"""A sealed directory, opened for reading."""

import html
import itertools
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from saetool.artifacts.manifest import MANIFEST, digest_bytes, digest_file, is_safe_name, read_manifest, remedy
from saetool.artifacts.reading import check_file, damaged, missing_file, require_unchanged
from saetool.artifacts.remote import RemotePath, is_remote, place_of
from saetool.errors import RequestError, first_line, type_name
from saetool.progress import size_words

if TYPE_CHECKING:
    import pyarrow

_ATTEMPTS = 3
"""Looks at an artifact that is being replaced."""


@dataclass(frozen=True, repr=False)
class Artifact:
    """A sealed directory, opened: its manifest has been read and every file has the size that it says."""

    path: Path
    manifest: dict

    def __repr__(self) -> str:
        return _in_five_lines(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>"

    @classmethod
    def open(cls, path: str | os.PathLike | RemotePath, kind: str | None = None) -> "Artifact":
        """Open a sealed artifact, of one kind where `kind` is given.

        `path` may be an address that fsspec reads, or a place on the hub (`hf/OWNER/NAME`).

        Raises RequestError for a missing, unfinished or damaged directory, another schema or another kind.
        """
        path = place_of(path, kind)
        for attempt in range(_ATTEMPTS):
            manifest = read_manifest(path, kind)
            problem = missing_file(path, manifest)
            # One that is replaced at this moment is neither the old one nor the new one: look again.
            if problem is None or attempt == _ATTEMPTS - 1 or read_manifest(path) == manifest:
                break
        if kind is not None and manifest["kind"] != kind:
            raise RequestError(f"{path}: holds {manifest['kind']}, but {kind} is needed here.")
        if problem:
            raise RequestError(f"{path}: damaged: {problem}. {remedy(path)}")
        return cls(path, manifest)

    @property
    def kind(self) -> str:
        """What it is: activations, autoencoder, features, evaluation, report or sweep."""
        return self.manifest["kind"]

    @property
    def id(self) -> str:
        """The digest of its content."""
        return self.manifest["id"]

    @property
    def config(self) -> dict:
        """The resolved request that it answers."""
        return self.manifest["config"]

    @property
    def content(self) -> dict:
        """Facts found while building it."""
        return self.manifest["content"]

    @property
    def inputs(self) -> list[dict]:
        """What it was made from: [{"kind", "id"}]."""
        return self.manifest["inputs"]

    @property
    def files(self) -> dict:
        """Its files: {name: {"bytes", "digest"}}."""
        return self.manifest["files"]

    @property
    def notes(self) -> dict:
        """What stands outside its id: time, host, paths, rates."""
        return self.manifest["notes"]

    def file(self, name: str) -> Path:
        """Return the path of one of its files, whose bytes were compared with their digest in this process.

        Raises RequestError when it has no such file, or the bytes are not those that were sealed.
        """
        entry = self._entry(name)
        if isinstance(self.path, RemotePath):  # it compares what it fetches
            return cast(Path, replace(self.path / name, digest=entry["digest"]))
        check_file(self.path, name, entry)
        return self.path / name

    def read_bytes(self, name: str) -> bytes:
        """Return the bytes of one of its files, for small ones; raises as `file` does."""
        entry = self._entry(name)
        if isinstance(self.path, RemotePath):
            return self.file(name).read_bytes()
        data = (self.path / name).read_bytes()
        if digest_bytes(data) != entry["digest"]:
            raise damaged(self.path, name)
        return data

    def read_table(self, name: str, columns: Sequence[str] | None = None, filters: Any = None) -> "pyarrow.Table":
        """Return one of its tables, or some of its columns, or the rows that `filters` (as `pyarrow.parquet.read_table`
        takes them) leave; raises as `file` does."""
        import pyarrow
        import pyarrow.parquet as parquet

        with self.file(name).open("rb") as file:
            try:
                found = parquet.ParquetFile(file)
                missing = [column for column in columns or () if column not in found.schema_arrow.names]
                if missing:
                    raise RequestError(f"{self.path}: {name} has no column {missing[0]!r}.")
                if filters is None:  # `read_table` would load pandas
                    return found.read(columns)
                return parquet.read_table(file, columns=columns, filters=filters)
            except (pyarrow.ArrowException, OSError) as error:
                raise RequestError(f"{self.path}: {name} is not a table ({first_line(error)}).") from None

    def require_unchanged(self) -> None:
        """Raise RequestError unless the same artifact still stands there, and no file that was read has changed."""
        found = Artifact.open(self.path)
        if found.id != self.id:
            raise RequestError(f"{self.path}: was replaced since it was opened: open it again.")
        require_unchanged(self.path, self.files)

    def _entry(self, name: str) -> dict:
        if name not in self.files or not is_safe_name(name):
            raise RequestError(f"{self.path}: has no file {name!r}.")
        return self.files[name]

    def find_input(self, kind: str, hint: str | os.PathLike | None = None) -> "Artifact":
        """Open the artifact of `kind` that this one was made from, at `hint` or where it stood (relative to this one).

        Raises RequestError when it is not there any more, or another one stands in its place.
        """
        wanted = next((entry["id"] for entry in self.inputs if entry["kind"] == kind), None)
        if wanted is None:
            raise RequestError(f"{self.path}: was not made from {kind}.")
        noted = self.notes.get("input_paths", ())
        places = [place_of(hint)] if hint else [place_of(p) if is_remote(p) else self.path / p for p in noted]
        for place in places:
            if (place / MANIFEST).is_file():
                found = Artifact.open(place)
                if found.id == wanted:
                    return found
        looked = ", ".join(str(place) for place in places) or "nowhere"
        raise RequestError(f"{self.path}: the {kind} it was made from are not at {looked} now. Give their place.")


@dataclass(frozen=True, repr=False)
class OpenArtifact(Artifact):
    """A local artifact whose files are all open: it is read to its end, whatever takes its place meanwhile."""

    descriptors: dict[str, int] = field(default_factory=dict)
    compared: set[str] = field(default_factory=set)
    """Names of the files whose bytes were compared with their digests."""

    @classmethod
    def of(cls, artifact: Artifact) -> "OpenArtifact":
        """Open the files of an artifact, of those kinds that have few; they close with the last reference."""
        descriptors: dict[str, int] = {}
        held = cls(artifact.path, artifact.manifest, descriptors)
        weakref.finalize(held, _close, descriptors)
        try:
            for name in artifact.files:
                descriptors[name] = os.open(artifact.path / name, os.O_RDONLY)
        except OSError as error:
            raise RequestError(f"{artifact.path}: {name} cannot be opened ({error.strerror}).") from None
        return held

    def file(self, name: str) -> Path:
        """Return a path that leads to the open file; raises as `Artifact.file` does."""
        entry = self._entry(name)
        path = Path(f"/dev/fd/{self.descriptors[name]}")
        if name not in self.compared:
            if digest_file(path) != entry["digest"]:
                raise damaged(self.path, name)
            self.compared.add(name)
        return path

    def read_bytes(self, name: str) -> bytes:
        return self.file(name).read_bytes()


ROWS = "; rows of your own become a store by saetool.write_store(out, rows)"


def artifact_of(given: Any, kind: str | None, call: str, instead: str = "") -> Artifact:
    """Return the artifact that a call was given: itself, its path, or what was opened from it (a store, an index).

    Raises RequestError for another kind, and for anything else; `instead` says what else would do.
    """
    given = getattr(given, "artifact", given)
    if isinstance(given, Artifact):
        if kind not in (None, given.kind):
            raise RequestError(f"{given.path}: holds {given.kind}, but {kind} is needed here.")
        return given
    if not isinstance(given, str | os.PathLike | RemotePath):
        raise RequestError(
            f"{call} takes no {type_name(given)} as {kind or 'artifact'}: give its path, or the artifact{instead}."
        )
    return Artifact.open(given, kind)


def _close(descriptors: dict[str, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)


def _in_five_lines(artifact: Artifact) -> str:
    """Return what an artifact is, what it comes from, when it was made, its size and its id."""
    size = sum(entry["bytes"] for entry in artifact.files.values())
    noted = itertools.chain(artifact.notes.get("input_paths", ()), itertools.repeat(""))
    places = [f"{entry['kind']} {place}" for entry, place in zip(artifact.inputs, noted, strict=False)]
    rows = {
        "what": _what(artifact.kind, artifact.content),
        "from": ", ".join(places) or _outside(artifact),
        "made": f"{artifact.notes.get('created')}, {len(artifact.files):,} files, {size_words(size)}",
        "id": artifact.id,
    }
    return "\n".join([f"{artifact.kind}: {artifact.path}", *(f"  {key:<4}  {value}" for key, value in rows.items())])


def _what(kind: str, content: dict[str, Any]) -> str:
    """Return what an artifact of a kind holds, as far as its content says."""
    if kind == "activations" and "sites" in content:
        sites = ", ".join(f"{site['label']}: {site['n_tokens']} × {site['d']}" for site in content["sites"])
        return f"{content['images']:,} images, {content.get('dtype')}; tokens × width at {sites}"
    if kind == "autoencoder" and "n_latents" in content:
        final = content.get("final") or {}
        known = {name: final.get(key) for key, name in (("fvu", "FVU"), ("l0", "L0"))}
        found = [f"{name} {value:.3g}" for name, value in known.items() if value is not None]
        of = f"{content['family']}, {content['d_in']:,} → {content['n_latents']:,} latents"
        where = "training rows" if final.get("split") == "train" else "held out"
        return "; ".join([of, *([f"{where}: {', '.join(found)}"] if found else [])])
    if kind == "features" and "n_latents" in content:
        counts = ", ".join(f"{count:,} {name}" for name, count in content["counts"].items())
        return f"{content['n_latents']:,} latents over {content['images']:,} images: {counts}"
    if kind == "evaluation" and content.get("fvu") is not None:
        return f"FVU {content['fvu']:.3f}, L0 {content['l0']:.1f} on {content['images']:,} held-out images"
    return "a site to open in a browser: index.html" if kind == "report" else ", ".join(map(str, content)) or "nothing"


def _outside(artifact: Artifact) -> str:
    """Return where the first of a line of artifacts comes from."""
    backbone = artifact.content.get("backbone") or {}
    source = artifact.content.get("source") or {}
    named = [backbone.get("name") if isinstance(backbone, dict) else backbone, source.get("source")]
    origin = (artifact.content.get("origin") or {}).get("source")
    return " over ".join(str(name) for name in named if name) or str(origin or "rows that were given")
