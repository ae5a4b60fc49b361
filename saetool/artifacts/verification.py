"""Is it intact? Recompute every size and digest of an artifact, and its manifest's own."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from saetool.artifacts.manifest import (
    MANIFEST,
    ManifestProblem,
    OtherSchema,
    digest_file,
    is_safe_name,
    manifest_bytes,
    no_artifact,
    parse_manifest,
)
from saetool.artifacts.remote import is_remote, place_of
from saetool.errors import RequestError

KINDS = ("activations", "autoencoder", "features", "evaluation", "report", "sweep")
"""A folder of this name without a manifest is an artifact that has lost it."""


def find_artifacts(given: str | os.PathLike) -> list[Path]:
    """Return the artifact at a path, or all those below it: behind links too, those that have lost their manifest,
    those that an interrupted replacement left as NAME.old, and folders that cannot be read; unfinished ones not.

    Of an address only the artifact itself. Raises RequestError when there is none.
    """
    path = place_of(given)
    if is_remote(path):
        if not (path / MANIFEST).exists():
            raise RequestError(f"{path}: no saetool artifact (it has no {MANIFEST}). Name the artifact itself.")
        return [path]
    if not os.path.lexists(path):
        interrupted = path.with_name(f"{path.name}.old").is_dir()
        raise RequestError(no_artifact(path) if interrupted else f"{path}: no such file or directory.")
    folders = list(_walk(path))
    certain = [folder for folder in folders if _ends_here(folder)]
    found = [folder for folder in folders if folder in certain or _has_lost_it(folder, certain)]
    if not found:
        raise RequestError(f"{path}: holds no saetool artifact (no {MANIFEST} in it or below it).")
    return found


def _walk(path: Path) -> Iterator[Path]:
    """Yield every folder from `path` down, links followed, each once, none inside an artifact."""
    waiting, seen = [path], set()
    while waiting:
        folder = waiting.pop()
        place = os.path.realpath(folder)
        if place in seen:
            continue
        seen.add(place)
        yield folder
        if not _ends_here(folder) and folder.is_dir():
            below = [folder / name for name in os.listdir(folder) if not name.endswith(".partial")]
            waiting += sorted(filter(_is_folder, below), reverse=True)


def _is_folder(path: Path) -> bool:
    """Say whether a path is a folder, or a link of an artifact's name that leads nowhere."""
    return os.path.isdir(path) or (path.is_symlink() and path.name in KINDS)


def _ends_here(folder: Path) -> bool:
    """Say whether a folder has a manifest, or cannot be looked into."""
    return not os.access(folder, os.R_OK | os.X_OK) or (folder / MANIFEST).exists()


def _has_lost_it(folder: Path, artifacts: list[Path]) -> bool:
    """Say whether a folder has an artifact's name, but neither a manifest nor an artifact below it."""
    named = folder.name.removesuffix(".old") in KINDS and os.path.isdir(folder)
    return named and not any(folder in artifact.parents for artifact in artifacts)


def bytes_of(path: Path) -> int:
    """Return how many bytes verifying the artifact at `path` reads; 0 where its manifest cannot tell."""
    manifest, _ = _check_manifest(path)
    return sum(entry["bytes"] for entry in manifest["files"].values()) if manifest else 0


def is_of_another_schema(path: str | os.PathLike) -> bool:
    """Say whether the artifact at `path` is of another version of saetool, and so neither intact nor damaged here."""
    return isinstance(_check_manifest(place_of(path))[1], OtherSchema)


def verify(path: str | os.PathLike, advance: Callable[[int], None] = lambda size: None) -> list[str]:
    """Return what is wrong with the artifact at `path`, in words; an empty list when it is intact.

    Finds any flipped bit, truncation, missing or extra file or folder, and what cannot be read. `advance(bytes)` is
    called as files are read.
    """
    path = place_of(path)
    manifest, problem = _check_manifest(path)
    if manifest is None:
        return [f"{MANIFEST}: {problem.strerror if isinstance(problem, OSError) else problem}"]
    problems = check_files(path, manifest, advance)
    if not is_remote(path):
        problems += _strangers(path, {MANIFEST, *manifest["files"]})
        if path.name.endswith(".old") and not path.with_name(path.name.removesuffix(".old")).exists():
            problems.append("a replacement was interrupted: the command that began it puts this one back")
    return problems


def check_files(path: Path, manifest: dict, advance: Callable[[int], None] = lambda size: None) -> list[str]:
    """Return what is wrong with the files of a manifest, in words."""
    problems = []
    for name, entry in sorted(manifest["files"].items()):
        if problem := _check_file(path, name, entry):
            problems.append(problem)
        advance(entry["bytes"])
    return problems


def _strangers(path: Path, files: set[str]) -> Iterator[str]:
    """Yield what is in the directory and no file of the artifact, nor a folder that holds one."""
    folders = {parent.as_posix() for name in files for parent in Path(name).parents}
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            yield f"{folder.relative_to(path).as_posix()}: {error.strerror}"
            continue
        for entry in entries:
            name = (folder / entry.name).relative_to(path).as_posix()
            if name in folders and entry.is_dir():
                waiting.append(folder / entry.name)
            elif name not in files:
                yield f"{name}: does not belong to it"


def _check_manifest(path: Path) -> tuple[dict | None, OSError | ManifestProblem | None]:
    """Return the manifest of the artifact at `path`, or what is wrong with it."""
    try:
        return parse_manifest(manifest_bytes(path)), None
    except (OSError, ManifestProblem) as problem:
        return None, problem


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
