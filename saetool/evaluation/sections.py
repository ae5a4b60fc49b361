"""The sections of evaluation.json: each takes the subject and the settings and returns JSON types."""

from typing import Any

import numpy as np
import torch

from saetool.artifacts import Artifact
from saetool.autoencoders.families import load
from saetool.errors import RequestError
from saetool.evaluation.alignment import align
from saetool.evaluation.baselines import FIT_ROWS, Fitted, fit_baselines
from saetool.evaluation.geometry import coherence
from saetool.evaluation.matching import stability
from saetool.evaluation.pooled import pool_latents
from saetool.evaluation.probing import probe_classes
from saetool.evaluation.reconstruction import binarity, held_out_sums, numbers
from saetool.evaluation.settings import EvaluationSettings
from saetool.evaluation.subject import Labels, Subject, spread
from saetool.progress import bar, say


def held_out(subject: Subject, settings: EvaluationSettings) -> dict[str, Any]:
    """Return the autoencoder's numbers on held-out images; for KL penalties binarity as well."""
    sums = _sums(subject, subject.autoencoder, "held-out images")
    found = numbers(sums, subject.seed, settings.bootstrap)
    penalty = subject.content["settings"].get("penalty") or {}
    if penalty.get("kind") == "kl":
        found["binarity"] = binarity(sums) | {"rho": penalty["rho"]}
    return found


def decoder(subject: Subject, settings: EvaluationSettings) -> dict[str, Any] | None:
    """Return the coherence of the decoder's directions; None where the decoder is not linear."""
    directions = subject.autoencoder.decoder_directions()
    return None if directions is None else coherence(directions.detach())


def fitted_baselines(subject: Subject, settings: EvaluationSettings, l0: float) -> list[Fitted]:
    """Fit the baselines at the autoencoder's rounded L0, on training rows."""
    rows = subject.training_rows(FIT_ROWS)
    n_latents = subject.autoencoder.n_latents
    return fit_baselines(rows, max(1, round(l0)), n_latents, settings.clusters, subject.seed)


def baselines(subject: Subject, settings: EvaluationSettings, fitted: list[Fitted]) -> list[dict[str, Any]]:
    """Return the baselines' numbers on the same held-out images, in the same columns."""
    rows = []
    for baseline in fitted:
        model = baseline.model.to(next(subject.autoencoder.parameters()).device)
        found = numbers(_sums(subject, model, baseline.name), subject.seed, settings.bootstrap)
        rows.append({"name": baseline.name, "about": baseline.about, "numbers": found})
    return rows


def _sums(subject: Subject, model: torch.nn.Module, name: str):
    images = subject.measured
    with bar(f"Evaluating {name}", len(images), "images") as advance:

        def batches():
            for x in subject.batches(images):
                yield x
                advance(len(x))

        return held_out_sums(model, batches(), subject.mean(images))  # pyright: ignore[reportArgumentType]


def features(subject: Subject, artifact: Artifact) -> dict[str, Any]:
    """Return the distribution of the latents' monosemanticity, read from an index of the same autoencoder."""
    import pyarrow.parquet as parquet

    table = parquet.read_table(artifact.file("latents.parquet"))
    scores = [score for score in table["monosemanticity"].to_pylist() if score is not None]
    edges = np.linspace(-1, 1, 41)
    counts, _ = np.histogram(scores, edges)
    at = [0.05, 0.25, 0.5, 0.75, 0.95]
    return {
        "monosemanticity": {
            "latents": len(scores),
            "mean": float(np.mean(scores)) if scores else None,
            "quantiles": dict(zip(map(str, at), np.quantile(scores, at).tolist(), strict=True)) if scores else None,
            "edges": edges.round(3).tolist(),
            "counts": counts.tolist(),
        }
    }


def probing(subject: Subject, settings: EvaluationSettings, fitted: list[Fitted]) -> dict[str, Any]:
    """Return probes and label alignment of the autoencoder, raw activations and baselines on every category label."""
    labels = subject.labels(settings.probe_classes)
    if not labels:
        say(f"No probes: {subject.store.artifact.path} has no category label with two classes or more.")
        return {"skipped": "the store has no category label with two classes or more", "labels": []}
    train, test = spread(subject.train, settings.probe_images), subject.measured
    found: list[dict[str, Any]] = [
        {"name": label.name, "classes": label.classes, "probes": [], "alignment": []} for label in labels
    ]
    models = [("autoencoder", subject.autoencoder), ("raw activations", None)]
    models += [(b.name, b.model) for b in fitted if b.name != "raw neurons"]
    with bar("Probing", len(models), "representations") as advance:
        for name, model in models:
            pooled = {
                part: pool_latents(model, subject.batches(rows)) for part, rows in (("train", train), ("test", test))
            }
            for label, entry in zip(labels, found, strict=True):
                _probe_label(subject, name, label, entry, pooled, train, test)
            advance(1)
    return {"images": {"train": len(train), "held_out": len(test)}, "labels": found}


def _probe_label(
    subject: Subject,
    name: str,
    label: Labels,
    entry: dict[str, Any],
    pooled: dict[str, dict[str, np.ndarray]],
    train: np.ndarray,
    test: np.ndarray,
) -> None:
    here = [np.isin(label.values[rows], label.classes) for rows in (train, test)]
    truth = [label.values[rows][kept].astype(str) for rows, kept in zip((train, test), here, strict=True)]
    for pooling in ("max", "mean"):
        a, b = pooled["train"][pooling][here[0]], pooled["test"][pooling][here[1]]
        scores = probe_classes(a, truth[0], b, truth[1], label.classes)
        entry["probes"].append({"representation": name, "pooling": pooling, "features": a.shape[1], "scores": scores})
        if pooling == "max":
            aligned = align(a, truth[0], b, truth[1], label.classes, subject.seed)
            entry["alignment"].append({"representation": name, **aligned})


def other_seeds(subject: Subject, others: list[Artifact]) -> list[dict[str, Any]]:
    """Return the agreement of the decoder's directions with those of other autoencoders of the same site."""
    mine = subject.autoencoder.decoder_directions()
    rows = []
    for artifact in others:
        theirs = load(artifact.path).decoder_directions()
        if mine is None or theirs is None:
            raise RequestError(f"{artifact.path}: stability compares linear decoders, and one of the two has none")
        found = stability(mine.detach().cpu(), theirs.detach().cpu(), subject.seed)
        rows.append({"autoencoder": artifact.id, **found})
    return rows
