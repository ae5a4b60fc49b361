"""The manifest: what a sealed directory says about itself, and how its id, recipe and seal are computed.

    {"kind", "schema", "saetool", "id", "recipe", "config", "content", "inputs", "files", "notes", "seal"}

- `config` is the resolved request, `content` the facts found while building; both are part of the id.
- `recipe` is known before work starts (kind, schema, config, input ids, source listing): equal recipe, same work.
- `id` covers kind, schema, config, content, input ids and the digests of all files but logs.
- `notes` (time, host, paths, rates, logs) stand outside the id; `seal` covers everything else in the file.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from saetool.artifacts.remote import is_remote, place_of
from saetool.errors import RequestError

SCHEMA = 1
MANIFEST = "manifest.json"
_CHUNK = 8 << 20


def canonical(value: Any) -> bytes:
    """Return `value` as canonical JSON: sorted keys, UTF-8, no spaces, no NaN."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode()


def digest_bytes(data: bytes | memoryview) -> str:
    """Return the tagged xxh3-128 digest of some bytes."""
    return "xxh3-128:" + xxhash.xxh3_128_hexdigest(data)


def digest_json(value: Any) -> str:
    """Return the digest of a JSON value's canonical form."""
    return digest_bytes(canonical(value))


def digest_file(path: Path) -> str:
    """Return the digest of a file's bytes, read a piece at a time."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            state.update(piece)
    return "xxh3-128:" + state.hexdigest()


def recipe_of(kind: str, config: dict, input_ids: list[str], listing: str | None) -> str:
    """Return the digest of everything that determines a stage's result and is known before it starts."""
    return digest_json({"kind": kind, "schema": SCHEMA, "config": config, "inputs": input_ids, "listing": listing})


def id_of(manifest: dict) -> str:
    """Return the id that a manifest's content has."""
    logs = set(manifest["notes"].get("logs", ()))
    return digest_json(
        {
            "kind": manifest["kind"],
            "schema": manifest["schema"],
            "config": manifest["config"],
            "content": manifest["content"],
            "inputs": [entry["id"] for entry in manifest["inputs"]],
            "files": {name: entry["digest"] for name, entry in manifest["files"].items() if name not in logs},
        }
    )


def seal_of(manifest: dict) -> str:
    """Return the digest of a manifest without its seal."""
    return digest_json({key: value for key, value in manifest.items() if key != "seal"})


def render(manifest: dict) -> bytes:
    """Return the only byte form in which a manifest is written."""
    return (json.dumps(manifest, sort_keys=True, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()


def is_safe_name(name: str) -> bool:
    """Say whether a file name of a manifest stays inside its directory."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and "\\" not in name and "\0" not in name


def read_manifest(path: Path) -> dict:
    """Return the manifest of the artifact at `path`; raise RequestError where there is none this version can read."""
    file = path / MANIFEST
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise RequestError(_no_artifact(path)) from None
    except OSError as error:
        raise RequestError(f"{file}: cannot be read ({error.strerror}).") from None
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError):
        raise RequestError(f"{file}: damaged (not JSON). Restore it from a copy, or build {path.name} again.") from None
    if not isinstance(manifest, dict) or "schema" not in manifest:
        raise RequestError(f"{file}: not a saetool manifest.")
    if manifest["schema"] != SCHEMA:
        raise RequestError(
            f"{path}: written in schema {manifest['schema']!r}; this saetool reads schema {SCHEMA}. "
            "Read it with the version that wrote it, or build it again."
        )
    if manifest.get("seal") != seal_of(manifest) or render(manifest) != data:
        raise RequestError(f"{file}: damaged (its seal does not match). `saetool verify {path}` tells more.")
    return manifest


def _no_artifact(path: Path) -> str:
    partial = path.with_name(path.name + ".partial")
    if path.name.endswith(".partial"):
        return f"{path}: unfinished work, not an artifact. Run the command that began it again: it resumes."
    if partial.is_dir():
        return f"{path}: not finished; its work so far is in {partial.name}. Run the same command again: it resumes."
    if path.exists():
        return f"{path}: not a saetool artifact (it has no {MANIFEST})."
    return f"{path}: no such artifact."


@dataclass(frozen=True)
class Artifact:
    """A sealed directory, opened: its manifest has been read and every file has the size that it says."""

    path: Path
    manifest: dict

    @classmethod
    def open(cls, path: str | os.PathLike, kind: str | None = None) -> "Artifact":
        """Open a sealed artifact, of one kind where `kind` is given; `path` may be an address that fsspec reads.

        Raises RequestError for a missing, unfinished or damaged directory, another schema or another kind.
        """
        path = place_of(path)
        manifest = read_manifest(path)
        if kind is not None and manifest["kind"] != kind:
            raise RequestError(f"{path}: holds {manifest['kind']}, but {kind} is needed here.")
        for name, entry in manifest["files"].items():
            try:
                size = (path / name).stat().st_size if is_safe_name(name) else -1
            except OSError:
                size = -1
            if size != entry["bytes"]:
                problem = "is missing" if size < 0 else f"has {size} bytes instead of {entry['bytes']}"
                raise RequestError(
                    f"{path}: damaged: {name} {problem}. Restore it from a copy, or rebuild with --force."
                )
        return cls(path, manifest)

    @property
    def kind(self) -> str:
        """What it is: activations, autoencoder, features, evaluation or report."""
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
        """Return the path of one of its files; raise RequestError when it has no such file."""
        if name not in self.files or not is_safe_name(name):
            raise RequestError(f"{self.path}: has no file {name!r}.")
        return self.path / name

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
        raise RequestError(f"{self.path}: made from {kind} {wanted}, which is not at {looked}. Give its place.")
