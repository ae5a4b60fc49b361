"""Upload sealed artifacts to the hub: each in a folder of its kind, with a model card; a report also as a Space.

    OWNER/NAME              autoencoder/, features/, evaluation/, README.md, examples.png
    spaces/OWNER/NAME       report/, README.md: a static page

Repositories are private unless `public` says otherwise, and one that is public already is not filled silently.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Sequence
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING

from saetool.artifacts import Artifact, hub, verify
from saetool.artifacts.manifest import MANIFEST, read_manifest
from saetool.errors import RequestError
from saetool.exchange.card import PICTURES, Card, example_pictures

if TYPE_CHECKING:
    from huggingface_hub import HfApi

KINDS = ("autoencoder", "features", "evaluation", "report")
"""What can be pushed."""


def push(
    directory: str | os.PathLike,
    to: str,
    *,
    include: Sequence[str] | None = None,
    public: bool = False,
    license: str | None = None,
    confirm: Callable[[str], bool] = lambda question: False,
) -> list[str]:
    """Upload an artifact, or some of a run's, to `hf/OWNER/NAME`; return the addresses of what was filled.

    include: kinds; None where there is one only. `confirm` answers a question before anything becomes public. An
    upload that was interrupted goes on when called again. Raises RequestError where it is not clear what to push, or
    an artifact is damaged, WorkError where the hub cannot be reached.
    """
    place = hub.HubPlace.of(to)
    if place.folder or place.revision or place.space:
        raise RequestError(f"{to}: artifacts go to a repository as a whole: hf/OWNER/NAME.")
    found = find_artifacts(directory)
    artifacts = {kind: found[kind] for kind in _chosen(found, include, directory)}
    for artifact in artifacts.values():
        if problems := verify(artifact.path):
            raise RequestError(f"{artifact.path}: damaged: {problems[0]}. Nothing was uploaded.")
    page = {kind: artifacts.pop(kind) for kind in ("report",) if kind in artifacts}
    filled = []
    with hub.writing(to) as api:
        for contents, kind in ((artifacts, "model"), (page, "space")):
            if contents:
                card = Card(license, "static", found) if kind == "space" else Card(license)
                _require_private(api, place.repo, kind, public, confirm)
                filled.append(_fill(api, place.repo, kind, contents, card, public))
    return filled


def find_artifacts(directory: str | os.PathLike) -> dict[str, Artifact]:
    """Return what of a directory can be pushed, by kind: the artifact that it is, or those of a run."""
    path = Path(directory).expanduser()
    places = [path] if (path / MANIFEST).is_file() else [path / kind for kind in KINDS if (path / kind).is_dir()]
    found = {artifact.kind: artifact for artifact in map(Artifact.open, places)}
    if not found or not set(found) <= set(KINDS):
        raise RequestError(f"{path}: holds nothing to push: {', '.join(KINDS)}.")
    return found


def _chosen(found: dict[str, Artifact], include: Sequence[str] | None, directory: str | os.PathLike) -> list[str]:
    if include is None and len(found) > 1:
        raise RequestError(f"{directory}: holds {', '.join(found)}: say which with --include, separated by commas.")
    wanted = list(found) if include is None else list(include)
    missing = [kind for kind in wanted if kind not in found]
    if missing or not wanted:
        raise RequestError(f"--include {missing[0] if missing else ''}: {directory} holds {', '.join(found)}.")
    return [kind for kind in KINDS if kind in wanted]


def _require_private(api: HfApi, repo: str, kind: str, public: bool, confirm: Callable[[str], bool]) -> None:
    """Ask before anything becomes public: a new public repository, or one that is public already."""
    there = api.repo_info(repo, repo_type=kind) if api.repo_exists(repo, repo_type=kind) else None
    if there is not None and there.private:
        if public:
            raise RequestError(f"hf/{repo}: is private there; make it public on its page, where that is meant.")
        return
    if there is None and not public:
        return
    state = "is public there" if there is not None else "will be public"
    if not confirm(f"hf/{repo} ({kind}) {state}: everyone can read what is pushed. Go on?"):
        raise RequestError(f"hf/{repo}: {state}, and nobody said yes to that: answer the question, or give --yes.")


def _fill(api: HfApi, repo: str, kind: str, artifacts: dict[str, Artifact], card: Card, public: bool) -> str:
    """Commit artifacts, a card and its pictures, and remove what an earlier push of the same kinds left."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    api.create_repo(repo, repo_type=kind, private=not public, exist_ok=True, space_sdk=card.sdk)
    there = api.list_repo_files(repo, repo_type=kind)
    described = {**card.artifacts, **_others(api, repo, kind, there, artifacts), **artifacts}
    pictures = example_pictures(artifacts["features"]) if "features" in artifacts else None
    pictured = pictures is not None or (PICTURES in there and "features" not in artifacts)
    contents: dict[str, bytes | str] = {"README.md": card.text(repo, described, pictured).encode()}
    if pictures is not None:
        image = io.BytesIO()
        pictures.save(image, "PNG")
        contents[PICTURES] = image.getvalue()
    for name, artifact in artifacts.items():
        contents |= {f"{name}/{file}": str(artifact.path / file) for file in (MANIFEST, *artifact.files)}
    stale = [file for file in there if file.split("/")[0] in artifacts and file not in contents]
    operations = [*starmap(CommitOperationAdd, contents.items()), *map(CommitOperationDelete, stale)]
    message = f"saetool: {', '.join(f'{name} {artifact.id}' for name, artifact in artifacts.items())}"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")  # tables of an index
        api.create_commit(repo, operations, commit_message=message[:200], repo_type=kind)
    return f"{api.endpoint}/{'spaces/' if kind == 'space' else ''}{repo}"


def _others(api: HfApi, repo: str, kind: str, there: list[str], artifacts: dict[str, Artifact]) -> dict[str, Artifact]:
    """Return what else the repository holds, by its manifest alone: the card speaks of it too."""
    names = [name for name in KINDS if f"{name}/{MANIFEST}" in there and name not in artifacts]
    places = {name: Path(api.hf_hub_download(repo, f"{name}/{MANIFEST}", repo_type=kind)).parent for name in names}
    return {name: Artifact(place, read_manifest(place)) for name, place in places.items()}
