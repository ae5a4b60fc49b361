"""The one stage loop: recipe, lock, skip, resume, build, seal, force, lineage.

A stage is settings, inputs and `build(partial) -> content`. Until it is sealed its work lives in NAME.partial.
`force` is False (never replace), True (build anew and replace), or "different" (replace only what was made otherwise).
"""

import importlib.metadata
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from saetool import distributed
from saetool.artifacts.files import explain, sync_directory, sync_file, write_atomic
from saetool.artifacts.lock import locked
from saetool.artifacts.manifest import (
    MANIFEST,
    SCHEMA,
    Artifact,
    digest_file,
    id_of,
    read_manifest,
    recipe_of,
    render,
    seal_of,
)
from saetool.artifacts.partial import Partial
from saetool.artifacts.remote import where_from
from saetool.errors import RequestError, SaetoolError, WorkError, printable
from saetool.progress import say

Force = bool | Literal["different"]

_VERSIONS = ("saetool", "torch", "timm", "transformers", "pyarrow", "numba")


@dataclass(frozen=True)
class Stage:
    """One piece of work that ends in one artifact.

    `config` is resolved and made of JSON types; `listing` is the digest of an outside source's file list; `build`
    writes into a `Partial` and returns the artifact's `content`; `estimate` answers a dry run without building.
    """

    kind: str
    config: dict[str, Any]
    build: Callable[[Partial], dict[str, Any]]
    inputs: tuple[Artifact, ...] = ()
    listing: str | None = None
    estimate: Callable[[], dict[str, Any]] | None = None
    listed: str | None = None
    """What `listing` stands for, for people: `60 images`."""
    changed: Callable[[Artifact], str | None] | None = None
    """Says which of the outside source's files is another now than when a sealed artifact was made, if any is."""

    @property
    def recipe(self) -> str:
        """The digest of what determines the result; known before the work."""
        return recipe_of(self.kind, self.config, [artifact.id for artifact in self.inputs], self.listing)

    def request(self) -> dict[str, Any]:
        """Return what is asked for, to be compared with what is found."""
        inputs = {artifact.kind: artifact.id for artifact in self.inputs}
        listing = {"listing": self.listing, "listed": self.listed}
        return {"kind": self.kind, "config": self.config, "inputs": inputs, **listing}


def run_stage(stage: Stage, out: str | os.PathLike, *, force: Force = False) -> Artifact:
    """Make the artifact `out`: skip when it is sealed with the same recipe, resume when begun, refuse when different.

    Raises RequestError when something else stands there (unless `force`) or another process works on it.
    """
    return run_stages([(stage, Path(out))], lambda partials: [stage.build(partials[0])], force=force)[0]


def run_stages(
    members: list[tuple[Stage, Path]],
    build_all: Callable[[list[Partial]], list[dict[str, Any]]],
    *,
    force: Force = False,
) -> list[Artifact]:
    """Make several artifacts by one function; `build_all` gets the partial directories of the unsealed ones only."""
    members = [(stage, place_beside(out)) for stage, out in members]
    outs = [out for _, out in members]
    with ExitStack() as locks:
        todo = _agree(lambda: _prepare(members, locks, force))
        if todo:
            partials = [Partial(_partial_path(outs[i]), outs[i]) for i in todo]
            try:
                contents = _build(build_all, partials)
                distributed.barrier()
                if distributed.is_main():
                    for i, partial, content in zip(todo, partials, contents, strict=True):
                        # Other processes may have recorded files and notes since this one began.
                        _seal(members[i][0], Partial(partial.path, partial.out), content)
            except OSError as error:
                explained = explain(error, outs[todo[0]])
                if explained is None:
                    raise
                raise explained from error
        distributed.barrier()
    return [Artifact.open(out) for out in outs]


def place_beside(out: str | os.PathLike) -> Path:
    """Return where an artifact goes: `~` is the home folder, and a link leads where the artifact itself is."""
    out = Path(out).expanduser()
    if printable(str(out)) != str(out):
        raise RequestError(f"{printable(str(out))}: a name that no manifest can hold; choose another (run=…).")
    return Path(os.path.realpath(out)) if out.is_symlink() else out


def _build(build_all: Callable[[list[Partial]], list[dict[str, Any]]], partials: list[Partial]) -> list[dict[str, Any]]:
    """Build, and note a failure: a forced start after it begins anew instead of meeting it again."""
    try:
        return build_all(partials)
    except SaetoolError:
        if distributed.is_main():
            for partial in partials:
                partial.record("failed", True)
        raise


def _agree(decide: Callable[[], list[int]]) -> list[int]:
    """Let the main process decide; every process gets its answer, or raises its error."""
    answer: dict[str, Any] = {}
    if distributed.is_main():
        try:
            answer = {"todo": decide()}
        except SaetoolError as error:
            answer = {"error": str(error), "exit_code": error.exit_code}
        except OSError as error:
            explained = explain(error, Path(error.filename or "."))
            if explained is None:
                raise
            answer = {"error": str(explained), "exit_code": explained.exit_code}
    answer = distributed.all_gather(answer)[0]
    if "error" in answer:
        raise (RequestError if answer["exit_code"] == 2 else WorkError)(answer["error"])
    return answer["todo"]


def _prepare(members: list[tuple[Stage, Path]], locks: ExitStack, force: Force) -> list[int]:
    """Lock what must be built and return its positions."""
    todo = []
    for i, (stage, out) in enumerate(members):
        left_over = _old_path(out).exists() or _doomed_path(_old_path(out)).exists()
        if not left_over and _can_skip(stage, out, force):
            say(f"{out}: done already")
            continue
        locks.enter_context(locked(out))
        _recover(out)
        if not _can_skip(stage, out, force) and _begin(stage, out, force):
            todo.append(i)
    return todo


def _partial_path(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def _old_path(out: Path) -> Path:
    return out.with_name(out.name + ".old")


def _discard(path: Path) -> None:
    """Delete a directory of ours, under a name that says so: what a kill leaves of it is deleted at the next start."""
    doomed = _doomed_path(path)
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _doomed_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.deleted")


def _recover(out: Path) -> None:
    """Finish or undo a swap that was interrupted: the old artifact comes back unless the new one is in place.

    A NAME.old that no swap of ours made is left alone.
    """
    old, partial = _old_path(out), _partial_path(out)
    shutil.rmtree(_doomed_path(old), ignore_errors=True)
    if not (old / MANIFEST).is_file():
        return
    newer = out if out.exists() else partial
    if not (newer / MANIFEST).is_file() or read_manifest(newer)["notes"].get("replaces") != read_manifest(old)["id"]:
        return
    if newer is out:
        _discard(old)
    else:
        os.rename(old, out)


def _can_skip(stage: Stage, out: Path, force: Force) -> bool:
    """Say whether `out` is sealed with this recipe; raise RequestError when something else stands there."""
    if not out.exists():
        return False
    if not (out / MANIFEST).exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(
            f"{out}: has no {MANIFEST}: damaged, or not the work of saetool. Restore it from a copy, move it away, "
            "or choose another place (run=…)."
        )
    if force is True or not (out / MANIFEST).exists():
        return False
    found = read_manifest(out)
    if found["recipe"] == stage.recipe:
        artifact = Artifact.open(out)
        changed = stage.changed(artifact) if stage.changed else None
        if changed and not force:
            raise RequestError(f"{out}: {changed}. Give --force to build it anew, or choose another place (run=…).")
        return not changed
    if force:
        return False
    raise RequestError(
        f"{out}: already holds something else than what is asked for now:\n{_manifest_differences(found, stage)}\n"
        "Choose another place (run=…), or give --force to build the new one and then replace this one."
    )


def _begin(stage: Stage, out: Path, force: Force) -> bool:
    """Make or find the partial directory; return False when a finished one only had to be moved into place."""
    path = _partial_path(out)
    if out.exists() and _old_path(out).exists():
        raise RequestError(f"{_old_path(out)} stands where {out.name} has to wait while it is replaced: move it away.")
    if path.exists():
        begun = Partial(path, out).record_of("stage")
        if (path / MANIFEST).exists():
            found = read_manifest(path)
            if found["recipe"] == stage.recipe:
                _move_into_place(Partial(path, out))
                return False
            _refuse_partial(path, _manifest_differences(found, stage), force)
        elif begun is None and Partial(path, out).product_names():
            raise RequestError(f"{path}: not the work of saetool. Choose another place (run=…).")
        elif begun is not None and begun["recipe"] != stage.recipe and Partial(path, out).holds_work():
            _refuse_partial(path, _differences(begun["request"], stage.request()), force)
        anew = force is True and not (begun and begun["forced"] and not Partial(path, out).record_of("failed"))
        if begun is None or begun["recipe"] != stage.recipe or anew:
            shutil.rmtree(path)
        else:
            say(f"{out}: going on where it stopped")
    path.mkdir(parents=True, exist_ok=True)
    (path / "journal" / "failed.json").unlink(missing_ok=True)
    request = {"recipe": stage.recipe, "request": stage.request(), "forced": force is True}
    Partial(path, out).record("stage", request)
    return True


def _refuse_partial(path: Path, differences: str, force: Force) -> None:
    if not force:
        raise RequestError(
            f"{path}: unfinished work on something else than what is asked for now:\n{differences}\n"
            "Choose another place (run=…), or give --force to throw it away."
        )


def _manifest_differences(found: dict[str, Any], stage: Stage) -> str:
    theirs = {
        "kind": found["kind"],
        "config": found["config"],
        "inputs": {entry["kind"]: entry["id"] for entry in found["inputs"]},
        "listing": found["notes"].get("listing"),
        "listed": found["notes"].get("listed"),
    }
    return _differences(theirs, stage.request())


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for key, item in value.items() for k, v in _flatten(item, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): value}


def _differences(there: dict, asked: dict) -> str:
    """Return one line for each key that differs."""
    there, asked = dict(there), dict(asked)
    before, now = there.pop("listed", None), asked.pop("listed", None)
    if before and now and there.get("listing") != asked.get("listing"):
        # Two digests say nothing to a person.
        other = " (other names or sizes)" if before == now else ""
        there["listing"], asked["listing"] = before, now + other
    old, new = _flatten(there), _flatten(asked)
    lines = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key, "nothing"), new.get(key, "nothing")
        if a != b:
            name = "the source's list of files" if key == "listing" else key.removeprefix("config.")
            lines.append(f"  {name}: {a} there, {b} asked")
    return "\n".join(lines) or "  (the difference is in a version)"


def _seal(stage: Stage, partial: Partial, content: dict[str, Any]) -> None:
    """Write the manifest and move the directory into place."""
    files = {name: _file_entry(partial, name) for name in partial.product_names()}
    manifest: dict[str, Any] = {
        "kind": stage.kind,
        "schema": SCHEMA,
        "saetool": importlib.metadata.version("saetool"),
        "recipe": stage.recipe,
        "config": stage.config,
        "content": content,
        "inputs": [{"kind": artifact.kind, "id": artifact.id} for artifact in stage.inputs],
        "files": files,
        "notes": {
            **partial.notes,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "host": platform.node(),
            "command": printable(" ".join(os.path.basename(a) if i == 0 else a for i, a in enumerate(sys.argv))),
            "versions": {name: _version(name) for name in _VERSIONS},
            "input_paths": [where_from(artifact.path, partial.out) for artifact in stage.inputs],
            "listing": stage.listing,
            "listed": stage.listed,
            "replaces": read_manifest(partial.out)["id"] if (partial.out / MANIFEST).is_file() else None,
            "logs": sorted(partial.logs),
        },
    }
    manifest["id"] = id_of(manifest)
    manifest["seal"] = seal_of(manifest)
    write_atomic(partial.path / MANIFEST, render(manifest))
    _move_into_place(partial)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _file_entry(partial: Partial, name: str) -> dict[str, Any]:
    """Return size and digest of a file: as recorded when it was written, or read back from the disk."""
    path = partial.path / name
    size = path.stat().st_size
    recorded = partial.record_of(f"files/{name}")
    if recorded:
        if recorded["bytes"] != size:
            raise WorkError(
                f"{path}: has {size} bytes where {recorded['bytes']} were written: something else changed it. "
                f"Delete {partial.path} and run the same command again."
            )
        return recorded
    sync_file(path)
    return {"bytes": size, "digest": digest_file(path)}


def _move_into_place(partial: Partial) -> None:
    """Turn a partial directory with a manifest into the artifact, in steps that can each be the last."""
    partial.remove_scratch()
    for folder, _, _ in os.walk(partial.path):
        sync_directory(Path(folder))
    out, old = partial.out, _old_path(partial.out)
    replaced = out.exists()
    if replaced:
        os.rename(out, old)
    os.rename(partial.path, out)
    sync_directory(out.parent)
    if replaced:
        _discard(old)
