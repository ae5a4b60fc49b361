"""What is it, and where did it come from? A few lines about an artifact, read from its manifest alone."""

import json
from pathlib import Path
from typing import Any

from saetool.artifacts.artifact import Artifact
from saetool.artifacts.manifest import MANIFEST
from saetool.errors import RequestError
from saetool.progress import size_words

_LONGEST = 100


def describe(path: Path) -> str:
    """Return a readable description of the artifact at `path`: kind, size, facts, request, lineage."""
    artifact = Artifact.open(path)
    size = sum(entry["bytes"] for entry in artifact.files.values())
    lines = [
        f"{path}",
        f"  kind      {artifact.kind} (schema {artifact.manifest['schema']}, saetool {artifact.manifest['saetool']})",
        f"  id        {artifact.id}",
        f"  made      {artifact.notes.get('created')} on {artifact.notes.get('host')}: {artifact.notes.get('command')}",
        *([f"  where     {artifact.notes['where']}"] if "where" in artifact.notes else []),
        f"  files     {len(artifact.files):,}, {size_words(size)}",
        "  content",
        *_lines({key: value for key, value in artifact.content.items() if key != "origin"}),
        *_origin(artifact.content.get("origin")),
        "  config",
        *_lines(artifact.config),
    ]
    if artifact.inputs:
        lines += ["  made from", *_lineage(artifact, "    ")]
    return "\n".join(lines)


def _origin(origin: dict[str, Any] | None) -> list[str]:
    """Say of what was imported where it is from, and what was done to its numbers."""
    if not origin:
        return []
    facts = {key: value for key, value in origin.items() if key not in ("converted", "facts", "before")}
    return ["  imported", *_lines(facts), "  converted", *_lines(origin["converted"])]


def _lineage(artifact: Artifact, indent: str) -> list[str]:
    lines = []
    places = artifact.notes.get("input_paths", [])
    for entry, place in zip(artifact.inputs, places, strict=False):
        where = artifact.path / place
        found, lost = None, "no longer"
        if (where / MANIFEST).exists():
            try:
                found = Artifact.open(where)
            except RequestError:
                lost = "not readable"
        if found is None or found.id != entry["id"]:
            lines.append(f"{indent}{entry['kind']} {entry['id']}  ({lost} at {place})")
            continue
        lines.append(f"{indent}{entry['kind']} {entry['id']}  {place}")
        lines += _lineage(found, indent + "  ")
    return lines


def _lines(facts: dict[str, Any]) -> list[str]:
    return [f"    {key:<14} {_short(value)}" for key, value in sorted(facts.items())]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
