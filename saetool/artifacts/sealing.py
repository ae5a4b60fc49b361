"""From finished work to an artifact in its place: the manifest, the swap with an older one, and undoing half a swap."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saetool.artifacts.files import sync_directory, sync_file
from saetool.artifacts.lock import unread
from saetool.artifacts.manifest import (
    MANIFEST,
    ManifestProblem,
    digest_file,
    id_of,
    manifest_bytes,
    parse_manifest,
    render,
    schema_of,
    seal_of,
)
from saetool.artifacts.partial import SCRATCH, Partial
from saetool.artifacts.remote import where_from
from saetool.errors import RequestError, WorkError
from saetool.version import version_of

if TYPE_CHECKING:
    from saetool.artifacts.stage import Stage

_VERSIONS = ("saetool", "torch", "timm", "transformers", "pyarrow", "numba")


def partial_path(out: Path) -> Path:
    """Return where the work on `out` lives until it is sealed."""
    return out.with_name(out.name + ".partial")


def old_path(out: Path) -> Path:
    """Return where an artifact waits while another takes its place."""
    return out.with_name(out.name + ".old")


def discard(path: Path) -> None:
    """Delete a directory of ours, under a name that says so: what a kill leaves of it is deleted at the next start."""
    doomed = _doomed_path(path)
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _doomed_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.deleted")


def is_left_over(out: Path) -> bool:
    """Say whether a replacement that was interrupted left something beside `out`."""
    old = old_path(out)
    return old.exists() or any(_doomed_path(path).exists() for path in (old, partial_path(out)))


def recover(out: Path) -> None:
    """Finish or undo a swap that was interrupted: the old artifact comes back unless the new one is in place.

    A NAME.old that no swap of ours made is left alone.
    """
    old, partial = old_path(out), partial_path(out)
    for path in (old, partial):
        shutil.rmtree(_doomed_path(path), ignore_errors=True)
    if not (old / MANIFEST).is_file():
        return
    newer = out if out.exists() else partial
    if not (newer / MANIFEST).is_file() or _replaces(newer) != digest_file(old / MANIFEST):
        return
    if newer is out:
        discard(old)
    else:
        os.rename(old, out)


def _replaces(path: Path) -> str | None:
    """Return the digest of the manifest that the artifact at `path` was made to replace, None where nobody knows."""
    try:
        return parse_manifest(manifest_bytes(path))["notes"].get("replaces")
    except ManifestProblem:
        return None


def seal(stage: Stage, partial: Partial, content: dict[str, Any]) -> None:
    """Write the manifest and move the directory into place; raise WorkError where an input is not what it was."""
    for artifact in stage.inputs:
        try:
            artifact.require_unchanged()
        except RequestError as error:
            raise WorkError(
                f"{partial.out}: cannot be sealed, as what it was made from is not there any more: {error} "
                "Run the same command again; it makes it from what is there now (with --force)."
            ) from None
    files = {name: _file_entry(partial, name) for name in partial.product_names()}
    manifest: dict[str, Any] = {
        "kind": stage.kind,
        "schema": schema_of(stage.kind),
        "saetool": version_of("saetool"),
        "recipe": stage.recipe,
        "config": stage.config,
        "content": content,
        "inputs": [{"kind": artifact.kind, "id": artifact.id} for artifact in stage.inputs],
        "files": files,
        "notes": {
            **partial.notes,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "host": platform.node(),
            "command": _unicode(" ".join(os.path.basename(a) if i == 0 else a for i, a in enumerate(sys.argv))),
            "versions": {name: version_of(name) for name in _VERSIONS},
            "input_paths": [_unicode(where_from(artifact.path, partial.out)) for artifact in stage.inputs],
            "listing": stage.listing,
            "listed": stage.listed,
            "replaces": digest_file(partial.out / MANIFEST) if (partial.out / MANIFEST).is_file() else None,
            "logs": sorted(partial.logs),
        },
    }
    manifest["id"] = id_of(manifest)
    manifest["seal"] = seal_of(manifest)
    partial.write_manifest(render(manifest))
    move_into_place(partial)


def _unicode(text: str) -> str:
    """Return a text that may hold bytes that are no UTF-8, as file names do, with these spelled out."""
    return text.encode("utf-8", "backslashreplace").decode()


def _file_entry(partial: Partial, name: str) -> dict[str, Any]:
    """Return size and digest of a file: as recorded when it was written, or read back from the disk."""
    path = partial.path / name
    size = path.stat().st_size
    recorded = partial.unit_of(f"files/{name}")
    if recorded:
        if recorded["bytes"] != size:
            raise WorkError(
                f"{path}: has {size} bytes where {recorded['bytes']} were written: something else changed it. "
                f"Delete {partial.path} and run the same command again."
            )
        return recorded
    sync_file(path)
    return {"bytes": size, "digest": digest_file(path)}


def move_into_place(partial: Partial) -> None:
    """Turn a partial directory with a manifest into the artifact, in steps that can each be the last."""
    shutil.rmtree(partial.path / SCRATCH, ignore_errors=True)
    for folder, _, _ in os.walk(partial.path):
        sync_directory(Path(folder))
    out, old = partial.out, old_path(partial.out)
    replaced = out.exists()
    with unread(out) if (out / MANIFEST).is_file() else nullcontext():
        if replaced:
            os.rename(out, old)
        os.rename(partial.path, out)
    sync_directory(out.parent)
    if replaced:
        discard(old)
