"""The one stage loop: recipe, lock, skip, resume, build, seal, force, lineage.

A stage is settings, inputs and `build(partial) -> content`. Until it is sealed its work lives in NAME.partial.
`force` is False (never replace), True (build anew and replace), or "different" (replace only what was made otherwise).
"""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from saetool import distributed
from saetool.artifacts.artifact import Artifact
from saetool.artifacts.differences import differences, request_of
from saetool.artifacts.files import explain
from saetool.artifacts.lock import held, locked, sweep
from saetool.artifacts.manifest import (
    MANIFEST,
    ManifestProblem,
    is_sealed,
    manifest_bytes,
    parse_manifest,
    read_manifest,
    recipe_of,
)
from saetool.artifacts.partial import DamagedRecord, Partial
from saetool.artifacts.remote import is_remote
from saetool.artifacts.sealing import discard, is_left_over, move_into_place, old_path, partial_path, recover, seal
from saetool.artifacts.verification import check_files
from saetool.errors import RequestError, SaetoolError, WorkError, printable, shown
from saetool.progress import say

Force = bool | Literal["different"]


@dataclass(frozen=True)
class Stage:
    """One piece of work that ends in one artifact.

    `config` is resolved and made of JSON types; `listing` is the digest of an outside source's file list; `build`
    writes into a `Partial` and returns the artifact's `content`; `estimate` answers a dry run without building, of the
    folder where it would be built.
    """

    kind: str
    config: dict[str, Any]
    build: Callable[[Partial], dict[str, Any]]
    inputs: tuple[Artifact, ...] = ()
    listing: str | None = None
    estimate: Callable[[Path], dict[str, Any]] | None = None
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
        places = {artifact.kind: str(artifact.path) for artifact in self.inputs}
        listing = {"listing": self.listing, "listed": self.listed}
        return {"kind": self.kind, "config": self.config, "inputs": inputs, "places": places, **listing}


def run_stage(stage: Stage, out: str | os.PathLike, *, force: Force = False) -> Artifact:
    """Make the artifact `out`: skip when it is sealed with the same recipe, resume when begun, refuse when different.

    Raises RequestError when something else stands there (unless `force`) or another process works on it.
    """
    return run_stages([(stage, out)], lambda partials: [stage.build(partials[0])], force=force)[0]


def run_stages(
    members: Sequence[tuple[Stage, str | os.PathLike]],
    build_all: Callable[[list[Partial]], list[dict[str, Any]]],
    *,
    force: Force = False,
) -> list[Artifact]:
    """Make several artifacts by one function; `build_all` gets the partial directories of the unsealed ones only."""
    placed = [(stage, place_beside(out)) for stage, out in members]
    outs = [out for _, out in placed]
    with ExitStack() as locks:
        todo = _agree(lambda: _prepare(placed, locks, force))
        if todo:
            partials = [Partial(partial_path(outs[i]), outs[i]) for i in todo]
            try:
                contents = _build(build_all, partials)
                distributed.barrier()
                if distributed.is_main():
                    for i, partial, content in zip(todo, partials, contents, strict=True):
                        # Other processes may have recorded files and notes since this one began.
                        seal(placed[i][0], Partial(partial.path, partial.out), content)
            except Exception as error:
                explained = None if isinstance(error, SaetoolError) else explain(error, outs[todo[0]])
                if explained is None:
                    raise
                raise explained from error
        distributed.barrier()
    return [Artifact.open(out) for out in outs]


def place_beside(out: str | os.PathLike) -> Path:
    """Return where an artifact goes: `~` is the home folder, and a link leads where the artifact itself is."""
    if not isinstance(out, str | os.PathLike) or not str(out):
        raise RequestError(
            f"out: say where the artifact goes, a path such as 'runs/mine/autoencoder', not {shown(out)}."
        )
    if is_remote(out):
        raise RequestError(f"{out}: an artifact is made on a disk of this machine; push or copy it from there.")
    out = Path(out).expanduser()
    if printable(str(out)) != str(out):
        raise RequestError(f"{printable(str(out))}: a name that no manifest can hold; choose another (run=…, out=…).")
    out = Path(os.path.realpath(out)) if os.path.islink(out) else out
    within = next((parent for parent in out.absolute().parents if is_sealed(parent)), None)
    if within is not None:
        raise RequestError(f"{out}: lies within {within}, which is finished: choose another place (run=…, out=…).")
    return out


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
            explained = explain(error, Path(os.fsdecode(error.filename or ".")))
            if explained is None:
                raise
            answer = {"error": str(explained), "exit_code": explained.exit_code}
    answer = distributed.all_gather(answer)[0]
    if "error" in answer:
        raise (RequestError if answer["exit_code"] == 2 else WorkError)(answer["error"])
    return answer["todo"]


def _prepare(members: list[tuple[Stage, Path]], locks: ExitStack, force: Force) -> list[int]:
    """Lock what must be built, hold what it is made from, and return its positions."""
    todo = []
    for i, (stage, out) in enumerate(members):
        if not is_left_over(out) and _can_skip(stage, out, force):
            sweep(out)
            say(f"{out}: done already")
            continue
        locks.enter_context(locked(out))
        recover(out)
        if not _can_skip(stage, out, force) and _begin(stage, out, force):
            for artifact in stage.inputs:
                locks.enter_context(held(artifact))
            todo.append(i)
    return todo


def _can_skip(stage: Stage, out: Path, force: Force) -> bool:
    """Say whether `out` is sealed with this recipe; raise RequestError when something else stands there."""
    if not out.exists():
        return False
    if not (out / MANIFEST).exists():
        if out.is_dir() and not any(out.iterdir()):
            return False
        raise RequestError(
            f"{out}: has no {MANIFEST}: damaged, or not the work of saetool. Restore it from a copy, move it away, "
            "or choose another place (run=…, out=…)."
        )
    if force:
        _refuse_strangers(out)
    if force is True:
        return False
    try:
        found = read_manifest(out)
        if found["recipe"] == stage.recipe:
            artifact = Artifact.open(out)
            changed = stage.changed(artifact) if stage.changed else None
            if not changed:
                return True
            raise RequestError(
                f"{out}: {changed}. Give --force (force=True) to build it anew, or choose another place (run=…, out=…)."
            )
    except RequestError:
        if not force:
            raise
    if force:
        return False
    told = differences(request_of(found), stage.request())
    raise RequestError(
        f"{out}: already holds something else than what is asked for now:\n{told}\n"
        "Choose another place (run=…, out=…), or give --force (force=True) to build the new one and then replace this."
    )


def _refuse_strangers(out: Path) -> None:
    """Raise RequestError where a manifest cannot be read and nothing in it says that it was one of ours."""
    try:
        parse_manifest(manifest_bytes(out))
    except ManifestProblem as problem:
        if not is_sealed(out):
            raise RequestError(
                f"{out / MANIFEST}: {problem}, and may not be the work of saetool, so it is not replaced. Move {out} "
                "away, or choose another place (run=…, out=…)."
            ) from None


def _begin(stage: Stage, out: Path, force: Force) -> bool:
    """Make or find the partial directory; return False when a finished one only had to be moved into place."""
    path = partial_path(out)
    if out.exists() and old_path(out).exists():
        raise RequestError(f"{old_path(out)} stands where {out.name} has to wait while it is replaced: move it away.")
    if path.exists():
        if (path / MANIFEST).exists():
            if _finish(stage, out, force):
                return False
            anew = True
        else:
            anew = not _can_resume(stage, Partial(path, out), force)
        if anew:
            discard(path)
        else:
            say(f"{out}: going on where it stopped")
    path.mkdir(parents=True, exist_ok=True)
    partial = Partial(path, out)
    partial.forget("failed")
    partial.record("stage", {"recipe": stage.recipe, "request": stage.request(), "forced": force is True})
    return True


def _finish(stage: Stage, out: Path, force: Force) -> bool:
    """Move a partial directory that has its manifest into place; return False where it is to be thrown away."""
    path = partial_path(out)
    try:
        found = parse_manifest(manifest_bytes(path))
    except ManifestProblem as problem:
        if not force:
            raise RequestError(
                f"{path / MANIFEST}: {problem}. Give --force (force=True) to begin {out.name} anew."
            ) from None
        return False
    if found["recipe"] == stage.recipe:
        if damaged := check_files(path, found):
            if not force:
                raise RequestError(f"{path}: {damaged[0]}. Give --force (force=True) to begin {out.name} anew.")
            return False
        move_into_place(Partial(path, out))
        return True
    _refuse_partial(path, differences(request_of(found), stage.request()), force)
    return False


def _can_resume(stage: Stage, partial: Partial, force: Force) -> bool:
    """Say whether the work in a partial directory goes on; RequestError where it is not ours to throw away."""
    try:
        begun = partial.record_of("stage")
    except DamagedRecord as damage:
        if not force:
            raise RequestError(str(damage)) from None
        return False
    if begun is None:
        if partial.product_names():
            raise RequestError(
                f"{partial.path}: not the work of saetool. Move it away, or choose another place (run=…, out=…)."
            )
        return False
    if begun["recipe"] != stage.recipe:
        if partial.holds_work():
            _refuse_partial(partial.path, differences(begun["request"], stage.request()), force)
        return False
    # A forced start that was killed goes on; one that failed would meet the same failure again.
    return force is not True or (begun["forced"] and not partial.unit_of("failed"))


def _refuse_partial(path: Path, differences: str, force: Force) -> None:
    if not force:
        raise RequestError(
            f"{path}: unfinished work on something else than what is asked for now:\n{differences}\n"
            "Choose another place (run=…, out=…), or give --force (force=True) to throw it away."
        )
