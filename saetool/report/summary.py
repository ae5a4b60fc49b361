"""The run in words and numbers: what was looked at, by what, and how well it is reconstructed."""

import json
from typing import Any

from saetool.artifacts import Artifact
from saetool.training.concerns import concerns, is_sparse, measured_on

_POINT = ("name", "kind", "l0", "fvu", "fvu_interval", "frontier")
"""What the plane draws of a point; links are the overview's own."""


def summarize(features: Artifact | None, store: Artifact, autoencoder: Artifact, evaluation: Artifact | None) -> dict:
    """Return what the pages say about the run, as JSON."""
    content = features.content if features else {**store.content, **autoencoder.content}
    settings = autoencoder.content.get("settings", {})
    source = store.content.get("source") or {}  # a store made from tensors has none
    source_name = str(source.get("source", source.get("name", "images")))
    evaluated = _read(evaluation)
    return {
        "n_latents": content["n_latents"],
        "d_in": content["d_in"],
        "images": content["images"],
        "counts": content.get("counts") or {"ok": 0},
        "indexed": features is not None,
        "site": site_words(content.get("site") or autoencoder.content.get("site") or {}),
        "backbone": backbone_name(store, content.get("site") or {}),
        "source": _last_part(source_name),
        "attribution": store.content.get("attribution") or "",
        "family": family_words(settings),
        "verdict": verdict(content, autoencoder.content, evaluated),
        "concerns": concerns(autoencoder.content, evaluated),
        "tiles": _tiles(content, autoencoder.content),
        "lineage": [lineage(a) for a in (store, autoencoder, features, evaluation) if a is not None],
        "evaluation": _evaluation(evaluated),
    }


def _read(evaluation: Artifact | None) -> dict[str, Any]:
    if evaluation is None or "evaluation.json" not in evaluation.files:
        return {}
    return json.loads(evaluation.read_bytes("evaluation.json"))


def verdict(content: dict, model: dict, evaluated: dict[str, Any]) -> str:
    """Return how good the autoencoder is, in one sentence: variance, latents a token, PCA beside it, the dead."""
    final, held_out = model.get("final") or {}, evaluated.get("held_out")
    if held_out:  # what baselines stand beside, and of this store
        final = {key: held_out[key]["value"] for key in ("fvu", "l0")}
    parts = []
    if (fvu := final.get("fvu")) is not None:
        parts.append(f"{_percent(1 - fvu)} of variance explained on {measured_on(final)}")
        if (l0 := final.get("l0")) is not None:
            tokens = "patch" if content.get("grid") else "token"
            parts[0] += f" with {l0:.0f} latents a {tokens}"
    if parts:
        beside = [("PCA", "PCA, as sparse: {}"), ("PCA, fixed", "PCA, as many fixed components: {}")]
        # A code that is not sparse has every latent, as fixed components are all there.
        for name, words in beside if is_sparse(model, final) else beside[1:]:
            found = evaluated.get("baselines") or []
            known = [one["numbers"].get("explained_variance") for one in found if one.get("name") == name]
            if known and known[0] is not None:
                parts.append(words.format(_percent(known[0]["value"])))
    dead = (content.get("counts") or {}).get("dead")
    if dead is not None:
        parts.append(f"{dead:,} of {content['n_latents']:,} latents dead")
    return "; ".join(parts) + "." if parts else ""


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


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
    if settings.get("solver") == "closed_form":  # it takes no step through an activation
        details = "closed form"
    kind = str(settings.get("kind", "autoencoder"))
    return f"{kind} · {details}" if details else kind


def _kind(value: Any) -> str:
    return str(value.get("kind", "")) if isinstance(value, dict) else str(value or "")


def _tiles(content: dict, model: dict) -> list[dict]:
    """Return the headline numbers: [{name, text, help}]."""
    final, counts, n = model.get("final") or {}, content.get("counts") or {}, content["n_latents"]
    share = {name: count / n for name, count in counts.items()} if n else {}
    where = measured_on(final)
    numbers = [
        ("FVU", final.get("fvu"), "unit", f"Fraction of variance unexplained on {where}: 0 is perfect"),
        ("L0", final.get("l0"), "value", "Latents active on an average token"),
        ("ELBO", final.get("elbo"), "value", f"Evidence lower bound on {where}, nats a row, at β = 1"),
        ("Active units", final.get("active_units"), "count", f"Latents whose posterior mean varies over {where}"),
        ("Dead", share.get("dead"), "share", "Latents that never fire on any image"),
        ("Dense", share.get("dense"), "share", "Latents that fire on a large share of tokens"),
        ("Latents", n, "count", "Width of the autoencoder"),
        ("Images", content["images"], "count", "Images seen for this report"),
        ("Tokens", content["tokens"], "count", "Token vectors of these images"),
        ("Trained on", model.get("tokens"), "count", "Activations seen in training, repeats included"),
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


def _evaluation(found: dict[str, Any]) -> dict[str, list[dict]]:
    """Return an evaluation's ready-made tables, and its models and baselines in the plane of L0 and FVU."""
    drawn = [point for point in found.get("pareto") or [] if _drawable(point)]
    pareto = [{key: point[key] for key in _POINT if key in point} for point in drawn]
    return {"tables": found.get("tables") or [], "pareto": pareto}


def _drawable(point: dict[str, Any]) -> bool:
    return isinstance(point.get("l0"), int | float) and isinstance(point.get("fvu"), int | float)
