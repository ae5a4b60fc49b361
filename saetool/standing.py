"""What stands where a stage of a run would put its artifact, and whether it answers what is asked for."""

from pathlib import Path
from typing import Any

from saetool.artifacts import Artifact, Partial, Stage
from saetool.artifacts.manifest import COMMANDS, MANIFEST, read_manifest
from saetool.artifacts.sealing import partial_path
from saetool.config import RunConfig
from saetool.errors import RequestError
from saetool.images.settings import is_named
from saetool.progress import say

FULL = ("probing", "effect", "refit", "references")
"""Settings of an evaluation that `saetool evaluate` switches on, and `saetool run` does not."""


def made_at(path: Path, kind: str) -> Artifact:
    """Open what an earlier stage made; raise RequestError naming the command that makes it."""
    begun = path.with_name(path.name + ".partial").exists()
    if not path.exists():
        state, does = ("begun and not finished", "finishes") if begun else ("not made yet", "makes")
        raise RequestError(
            f"{path}: {state}. `saetool {COMMANDS[kind]} CONFIG` {does} it, `saetool run CONFIG` makes all."
        )
    return Artifact.open(path, kind)


def standing_at(path: Path) -> Artifact | None:
    """Return the artifact at `path`; None where there is none or a damaged one, of which the stage loop speaks."""
    try:
        return Artifact.open(path)
    except RequestError:
        return None


def is_whole(evaluation: dict[str, Any]) -> bool:
    """Say whether an evaluation of this config has the model's own effects."""
    settings = evaluation.get("settings") or {}
    return bool(settings.get("probing") and settings.get("effect"))


def whole_stands(place: Path) -> bool:
    """Say whether a full evaluation stands at `place`, a damaged one too: it is made again in full."""
    try:
        return is_whole(read_manifest(place)["config"])
    except RequestError:
        return False


def whole_was_begun(place: Path) -> bool:
    """Say whether a full evaluation was begun at `place`; it goes on then."""
    path = partial_path(place)
    begun = Partial(path, place).unit_of("stage") if path.is_dir() else None
    whole = begun is not None and begun["request"]["kind"] == "evaluation" and is_whole(begun["request"]["config"])
    if whole:
        say(f"{place}: a full evaluation was begun here; it goes on.")
    return whole


def shows_another(page: Path, artifact: Artifact) -> bool:
    """Say whether the page at `page` was made with another artifact of this kind, or without one."""
    found = standing_at(page)
    return found is not None and {"kind": artifact.kind, "id": artifact.id} not in found.inputs


def answers_cheap(found: Artifact, cheap: Stage) -> bool:
    """Say whether a full evaluation, whatever its own settings, has all that the cheap one would have."""
    if not is_whole(found.config):
        return False
    asked = [{"kind": artifact.kind, "id": artifact.id} for artifact in cheap.inputs]
    settings = {key: value for key, value in cheap.config["settings"].items() if key not in FULL}
    same = all(found.config["settings"].get(key) == value for key, value in settings.items())
    return same and found.inputs == asked and found.config["seed"] == cheap.config["seed"]


def differs_only_in(stage: Stage, path: Path, *kinds: str) -> bool:
    """Say whether the artifact at `path` is the asked one but for some inputs, which came, went or were made again."""
    found = standing_at(path)
    if found is None:
        return False

    def others(entries: list[dict]) -> list[dict]:
        return [entry for entry in entries if entry["kind"] not in kinds]

    asked = [{"kind": artifact.kind, "id": artifact.id} for artifact in stage.inputs]
    same = found.config == stage.config and others(found.inputs) == others(asked)
    return same and found.manifest["recipe"] != stage.recipe


def store_answers(store: Path, config: RunConfig) -> bool:
    """Say whether the store at `store` answers a config, as far as that can be said without its images."""
    if not (store / MANIFEST).is_file():
        return False
    found = Artifact.open(store, "activations").config
    if found["cache"] != config.cache.content():
        return False
    # What a table of labels says counts, not where it lies.
    images = config.images.model_dump(mode="json", exclude={"group"}) | config.images.content()
    asked = {"backbone": config.backbone.model_dump(mode="json"), "images": images}
    for section, values in asked.items():
        for key, value in values.items():
            # A resolved precision answers `auto`; a folder's place is no part of what was made.
            free = (section, key, value) == ("backbone", "precision", "auto")
            value = "folder" if (section, key) == ("images", "source") and not is_named(value) else value
            known = found[section].get("decode", "pillow") if key == "decode" else found[section].get(key, value)
            if not free and known != value:
                return False
    return True
