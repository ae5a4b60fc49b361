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


def in_five_lines(artifact: Artifact) -> str:
    """Return what an artifact is, what it comes from, when it was made, its size and its id."""
    size = sum(entry["bytes"] for entry in artifact.files.values())
    places = [f"{entry['kind']} {place}" for entry, place in zip(artifact.inputs, _places(artifact), strict=True)]
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
        found = [
            f"{name} {final[key]:.3g}" for key, name in (("fvu", "FVU"), ("l0", "L0")) if final.get(key) is not None
        ]
        of = f"{content['family']}, {content['d_in']:,} → {content['n_latents']:,} latents"
        return "; ".join([of, *([f"held out: {', '.join(found)}"] if found else [])])
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


def _places(artifact: Artifact) -> list[str]:
    noted = artifact.notes.get("input_paths", [])
    return [*noted, *[""] * len(artifact.inputs)][: len(artifact.inputs)]


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
        found = None
        if (where / MANIFEST).exists():
            try:
                found = Artifact.open(where)
            except RequestError:
                found = None
        if found is None or found.id != entry["id"]:
            lines.append(f"{indent}{entry['kind']} {entry['id']}  (no longer at {place})")
            continue
        lines.append(f"{indent}{entry['kind']} {entry['id']}  {place}")
        lines += _lineage(found, indent + "  ")
    return lines


def _lines(facts: dict[str, Any]) -> list[str]:
    return [f"    {key:<14} {_short(value)}" for key, value in sorted(facts.items())]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
