"""The run in words and numbers: what was looked at, by what, and how well it is reconstructed."""

import json
from typing import Any

from saetool.artifacts import Artifact
from saetool.report.site import attribution


def summarize(features: Artifact, store: Artifact, autoencoder: Artifact, evaluation: Artifact | None) -> dict:
    """Return what the pages say about the run, as JSON."""
    content = features.content
    settings = autoencoder.content.get("settings", {})
    source = store.content.get("source", {})
    source_name = str(source.get("source", source.get("name", "images")))
    return {
        "n_latents": content["n_latents"],
        "d_in": content["d_in"],
        "images": content["images"],
        "tokens": content["tokens"],
        "grid": content["grid"],
        "counts": content.get("counts", {}),
        "site": site_words(content.get("site") or autoencoder.content.get("site") or {}),
        "backbone": backbone_name(store, content.get("site") or {}),
        "source": _last_part(source_name),
        "attribution": attribution(source_name),
        "family": family_words(settings),
        "tiles": _tiles(features, autoencoder, evaluation),
        "lineage": [lineage(a) for a in (store, autoencoder, features, evaluation) if a is not None],
        "evaluation": _evaluation(evaluation),
    }


def _last_part(source: str) -> str:
    """Return a source's name without the folders above it: a report says no absolute path."""
    return source.rstrip("/").rsplit("/", 1)[-1] if source.startswith(("/", "~", ".")) else source


def backbone_name(store: Artifact, site: dict) -> str:
    """Return the backbone's name, wherever the store keeps it."""
    config = store.config.get("backbone") or store.content.get("backbone") or {}
    name = config.get("name") if isinstance(config, dict) else config
    return str(name or site.get("backbone") or site.get("name") or store.config.get("name") or "a backbone")


def site_words(site: dict) -> str:
    """Return a site in both counts: the layer from 1 and the module's path."""
    if label := site.get("label"):
        return str(label)
    layer, module = site.get("layer"), site.get("module")
    if layer is not None and module:
        return f"layer {layer} ({module})"
    return f"layer {layer}" if layer is not None else str(module or "its input")


def family_words(settings: dict) -> str:
    """Return an autoencoder's family in a few words, such as "sparse · relu + l1"."""
    parts = [_kind(settings.get(key)) for key in ("activation", "penalty")]
    details = " + ".join(part for part in parts if part and part != "none")
    kind = str(settings.get("kind", "autoencoder"))
    return f"{kind} · {details}" if details else kind


def _kind(value: Any) -> str:
    return str(value.get("kind", "")) if isinstance(value, dict) else str(value or "")


def _tiles(features: Artifact, autoencoder: Artifact, evaluation: Artifact | None) -> list[dict]:
    """Return the headline numbers: [{name, text, help}]."""
    final = autoencoder.content.get("final") or {}
    counts, n = features.content.get("counts", {}), features.content["n_latents"]
    numbers = [
        ("FVU", final.get("fvu"), "unit", "Fraction of variance unexplained on held-out images: 0 is perfect"),
        ("L0", final.get("l0"), "value", "Latents active on an average token"),
        ("Dead", counts.get("dead", 0) / n if n else None, "share", "Latents that never fire on any image"),
        ("Dense", counts.get("dense", 0) / n if n else None, "share", "Latents that fire on a large share of tokens"),
        ("Latents", n, "count", "Width of the autoencoder"),
        ("Images", features.content["images"], "count", "Images encoded for this report"),
        ("Tokens", features.content["tokens"], "count", "Token vectors encoded for this report"),
    ]
    return [
        {"name": name, "text": _words(value, form), "help": words}
        for name, value, form, words in numbers
        if value is not None
    ]


def _words(value: float, form: str) -> str:
    """Return a headline number as text."""
    if form == "count":
        return f"{value:,}"
    if form == "share":
        return f"{100 * value:.2f}%"
    return f"{value:.3f}" if form == "unit" else f"{value:.1f}"


def lineage(artifact: Artifact) -> dict:
    """Return what made an artifact: kind, id, version, inputs and the resolved settings as text."""
    return {
        "kind": artifact.kind,
        "id": artifact.id,
        "version": artifact.manifest["saetool"],
        "inputs": [f"{entry['kind']} {entry['id']}" for entry in artifact.inputs],
        "config": json.dumps(artifact.config, indent=2, sort_keys=True, ensure_ascii=False),
    }


def _evaluation(evaluation: Artifact | None) -> list[dict]:
    """Return an evaluation's numbers as tables: [{title, columns, rows}], nested names as row titles."""
    if evaluation is None or "evaluation.json" not in evaluation.files:
        return []
    found = json.loads(evaluation.file("evaluation.json").read_bytes())
    tables = []
    for title, value in found.items():
        rows = _rows(value) if isinstance(value, dict | list) else []
        if rows:
            tables.append({"title": title.replace("_", " "), "rows": rows})
    loose = [[key.replace("_", " "), value] for key, value in found.items() if _is_fact(value)]
    return ([{"title": "summary", "rows": loose}] if loose else []) + tables


def _is_fact(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rows(value: dict | list, prefix: str = "") -> list[list]:
    """Return [name, number] for every number below `value`; long lists are left to the file."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if len(value) <= 12 else ()
    rows: list[list] = []
    for key, item in items:
        name = f"{prefix}{str(key).replace('_', ' ')}"
        if isinstance(item, dict | list):
            rows += _rows(item, f"{name} · ")
        elif _is_fact(item):
            rows.append([name, item])
    return rows
