"""Is it intact? Recompute every size and digest of an artifact, and its manifest's own."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from saetool.artifacts.manifest import MANIFEST, SCHEMA, digest_file, id_of, is_safe_name, render, seal_of
from saetool.artifacts.remote import is_remote, place_of
from saetool.errors import RequestError

KINDS = ("activations", "autoencoder", "features", "evaluation", "report", "sweep")
"""A folder of this name with files but no manifest is an artifact that has lost it."""


def find_artifacts(given: str | os.PathLike) -> list[Path]:
    """Return the artifact at a path, or all those below it, those without their manifest too; unfinished ones not.

    Of an address only the artifact itself. Raises RequestError when there is none.
    """
    path = place_of(given)
    if (path / MANIFEST).exists():
        return [path]
    if is_remote(path):
        raise RequestError(f"{path}: no saetool artifact (it has no {MANIFEST}). Name the artifact itself.")
    if not path.exists():
        raise RequestError(f"{path}: no such file or directory.")
    found = []
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.endswith((".partial", ".old")))
        if MANIFEST in files or (files and Path(folder).name in KINDS):
            found.append(Path(folder))
            folders.clear()
    if not found:
        raise RequestError(f"{path}: holds no saetool artifact (no {MANIFEST} in it or below it).")
    return found


def bytes_of(path: Path) -> int:
    """Return how many bytes verifying the artifact at `path` reads; 0 where its manifest cannot tell."""
    manifest, _ = _check_manifest(path)
    return sum(entry["bytes"] for entry in manifest["files"].values()) if manifest else 0


def verify(path: str | os.PathLike, advance: Callable[[int], None] = lambda size: None) -> list[str]:
    """Return what is wrong with the artifact at `path`, in words; an empty list when it is intact.

    Finds any flipped bit, truncation, missing or extra file. `advance(bytes)` is called as files are read.
    """
    path = place_of(path)
    manifest, problems = _check_manifest(path)
    if manifest is None:
        return problems
    for name, entry in sorted(manifest["files"].items()):
        problem = _check_file(path, name, entry)
        if problem:
            problems.append(problem)
        advance(entry["bytes"])
    listed = {MANIFEST, *manifest["files"]}
    for folder, _, files in () if is_remote(path) else os.walk(path):
        for file in files:
            name = (Path(folder) / file).relative_to(path).as_posix()
            if name not in listed:
                problems.append(f"{name}: does not belong to it")
    return problems


def _check_manifest(path: Path) -> tuple[dict | None, list[str]]:
    try:
        data = (path / MANIFEST).read_bytes()
    except OSError as error:
        return None, [f"{MANIFEST}: {error.strerror}"]
    try:
        manifest = json.loads(data)
        if manifest["schema"] != SCHEMA:
            return None, [f"{MANIFEST}: schema {manifest['schema']!r}, not {SCHEMA}"]
        intact = manifest["seal"] == seal_of(manifest) and render(manifest) == data
        if not intact:
            return None, [f"{MANIFEST}: damaged: its seal does not match"]
        if manifest["id"] != id_of(manifest):
            return manifest, [f"{MANIFEST}: its id does not follow from its content"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, [f"{MANIFEST}: damaged: not a saetool manifest"]
    return manifest, []


def _check_file(path: Path, name: str, entry: dict) -> str | None:
    if not is_safe_name(name):
        return f"{name}: a name that leads out of the directory"
    try:
        size = (path / name).stat().st_size
        if size != entry["bytes"]:
            return f"{name}: {size} bytes instead of {entry['bytes']}"
        if digest_file(path / name) != entry["digest"]:
            return f"{name}: its bytes have changed"
    except OSError as error:
        return f"{name}: {error.strerror}"
    return None
