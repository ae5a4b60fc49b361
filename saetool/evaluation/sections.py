"""The sections of evaluation.json: each takes the subject and the settings and returns JSON types."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool
from torch import Tensor

from saetool.artifacts import Artifact
from saetool.autoencoders.base import Autoencoder
from saetool.autoencoders.families import load
from saetool.autoencoders.sparse import SparseAutoencoder
from saetool.errors import RequestError
from saetool.evaluation.alignment import Best, align, choose
from saetool.evaluation.baselines import FIT_ROWS, Dictionary, Fitted, baselines_of, fit_baselines
from saetool.evaluation.matching import coherence, stability
from saetool.evaluation.pooled import POOLINGS, pool_latents
from saetool.evaluation.probing import Prepared, probe_labels
from saetool.evaluation.reconstruction import HeldOutSums, binarity, fvu_difference, held_out_sums, numbers
from saetool.evaluation.references import Refitted, reference_models
from saetool.evaluation.splits import Split
from saetool.evaluation.subject import Labels, Subject, read_labels, spread
from saetool.features.monosemanticity import Chance, image_embeddings
from saetool.progress import bar, say

SPECIFICITY_IMAGES = 4096
"""Images by which neurons are compared with latents."""
REFERENCE_IMAGES, REFERENCE_TOKENS = 64, 2048
"""Images, and tokens of all of them together, that other codes are computed of: half a minute a dictionary of 12,288
directions on two cores."""

NEURONS = "raw activations"
"""The representation that a latent's knowledge of a label is compared with."""

Chosen = list[Best | None]


def held_out(subject: Subject) -> dict[str, Any]:
    """Return the autoencoder's numbers on held-out images; for KL penalties binarity as well."""
    sums = _own_sums(subject)
    if sums is None:
        return {}
    found = _numbers(subject, sums, subject.measured)
    penalty = subject.content["settings"].get("penalty") or {}
    if penalty.get("kind") == "kl":
        found["binarity"] = binarity(sums) | {"rho": penalty["rho"]}
    return found


def training(subject: Subject) -> dict[str, Any] | None:
    """Return the autoencoder's numbers on as many images that it was trained on, beside which those of held-out ones
    say how much of them is memory; None for a store that it was not trained on."""
    if subject.content["trained_on"] != subject.store.artifact.id or not len(subject.train):
        return None
    images = spread(subject.train, len(subject.measured))
    sums = _sums(subject, subject.autoencoder, "training images", images)
    return None if sums is None else _numbers(subject, sums, images)


def decoder(subject: Subject) -> dict[str, Any] | None:
    """Return the coherence of the decoder's directions; None where the decoder is not linear."""
    directions = subject.autoencoder.decoder_directions()
    return None if directions is None else coherence(directions.detach())


def fitted_baselines(subject: Subject, l0: float) -> list[Fitted]:
    """Return the baselines at the autoencoder's rounded L0, fitted on training rows by the main process."""
    own, k, clusters = subject.autoencoder, max(1, round(l0)), subject.settings.clusters

    def fit() -> dict[str, Tensor]:
        return fit_baselines(subject.training_rows(FIT_ROWS), k, own.n_latents, clusters, subject.seed)

    device = next(own.parameters()).device
    return baselines_of(subject.shared.once("baselines", fit), k, own.n_latents, subject.seed, device)


def baselines(subject: Subject, fitted: list[Fitted]) -> list[dict[str, Any]]:
    """Return the baselines' numbers on the same held-out images, in the same columns."""
    return [row for one in fitted if (row := _measured(subject, one, one.name)) is not None]


def _measured(subject: Subject, of: Fitted, title: str) -> dict[str, Any] | None:
    """Return a model's numbers on the measured images; None in all but the main process."""
    sums, own = _sums(subject, of.model, title), _own_sums(subject)
    return None if sums is None or own is None else _row(subject, of, sums, own, subject.measured)


def _sparse(subject: Subject) -> SparseAutoencoder | None:
    """Return a sparse autoencoder whose codes and directions alone say what it reconstructs; None of another."""
    own = subject.autoencoder
    if not isinstance(own, SparseAutoencoder) or own.normalizer.kind == "layer_norm" or own.activation.dense_only:
        return None
    return own


def refitted(subject: Subject) -> dict[str, Any] | None:
    """Return the numbers of a sparse autoencoder's own latents with refitted values; None of others."""
    if (own := _sparse(subject)) is None:
        return None
    of = Fitted("refitted", "the same latents, their values by least squares", Refitted(own))
    return _measured(subject, of, "refitted values")


def references(subject: Subject, l0: float) -> dict[str, Any] | None:
    """Return the numbers of other codes of the same dictionary and others of the same L0; None of no sparse model.

    They take minutes for what an autoencoder does in a second, so a part of the measured tokens must do, the
    autoencoder's own numbers among them.
    """
    if (own := _sparse(subject)) is None:
        return None
    images = spread(subject.measured, REFERENCE_IMAGES)
    every = max(1, len(images) * subject.site.tokens // REFERENCE_TOKENS)
    batches = [x[:, ::every] for x in subject.batches(images)]
    mean = torch.cat([x.flatten(0, 1) for x in batches]).double().mean(0)
    before = held_out_sums(own, batches, mean)
    found = _numbers(subject, before, images)
    rows = [{"name": "this autoencoder", "about": "on the same tokens", "numbers": found}]
    made = reference_models(own, subject.training_rows(FIT_ROWS), max(1, round(l0)), subject.seed)
    with bar("Other codes", len(made), "codes") as advance:
        for reference in made:
            sums = held_out_sums(reference.model, batches, mean)
            rows.append(_row(subject, reference, sums, before, images))
            advance(1)
    return {"images": len(images), "tokens": sum(x.shape[0] * x.shape[1] for x in batches), "rows": rows}


def _numbers(subject: Subject, sums: HeldOutSums, images: np.ndarray) -> dict[str, Any]:
    return numbers(sums, subject.seed, subject.settings.bootstrap, subject.groups_of(images))


def _row(subject: Subject, of: Fitted, sums: HeldOutSums, own: HeldOutSums, images: np.ndarray) -> dict[str, Any]:
    """Return a model's numbers, and how its FVU differs from the autoencoder's on the same `images` (paired)."""
    difference = fvu_difference(sums, own, subject.seed, subject.settings.bootstrap, subject.groups_of(images))
    found = _numbers(subject, sums, images)
    return {"name": of.name, "about": of.about, "numbers": found, "fvu_difference": difference}


def _own_sums(subject: Subject) -> HeldOutSums | None:
    """Return the autoencoder's own sums over the measured images, computed once."""
    if "sums" not in subject.kept:
        subject.kept["sums"] = _sums(subject, subject.autoencoder, "held-out images")
    return subject.kept["sums"]


def _sums(subject: Subject, model: Autoencoder, name: str, images: np.ndarray | None = None) -> HeldOutSums | None:
    """Return a model's sums over images (the measured ones), which processes share; None in all but the main one."""
    parts = subject.parts(subject.measured if images is None else images)
    mean = subject.measured_mean if images is None else subject.mean(images)
    sums = HeldOutSums(mean.double(), model.n_latents)
    with bar(f"Evaluating {name}", sum(map(len, subject.shared.mine(parts))), "images") as advance:

        def batches(part: np.ndarray) -> Iterator[Tensor]:
            for x in subject.batches(part):
                yield x
                advance(len(x))

        found = subject.shared.map(f"sums of {name}", parts, lambda p: held_out_sums(model, batches(p), mean).tensors())
    if found is None:
        return None
    for part in found:
        sums.merge(part)
    return sums


def _pooled(subject: Subject, model: Autoencoder | None, name: str, rows: np.ndarray) -> dict[str, np.ndarray] | None:
    """Return the image features of some images, which the processes share; None in all but the main one."""
    which = f"{rows[0]} to {rows[-1]}" if len(rows) else "none"
    parts = subject.shared.map(
        f"features of {name}, {which}", subject.parts(rows), lambda p: pool_latents(model, subject.batches(p))
    )
    if parts is None:
        return None
    return {key: torch.cat([part[key] for part in parts]).numpy() for key in POOLINGS}


def features(subject: Subject, artifact: Artifact) -> dict[str, Any]:
    """Return the distribution of the latents' monosemanticity, read from an index of the same autoencoder."""
    table = artifact.read_table("latents.parquet")
    scores = [score for score in table["monosemanticity"].to_pylist() if score is not None]
    edges = np.linspace(-1, 1, 41)
    counts, _ = np.histogram(scores, edges)
    at = [0.05, 0.25, 0.5, 0.75, 0.95]
    return {
        "specificity": _specificity(subject, artifact, table),
        "monosemanticity": {
            "latents": len(scores),
            "mean": float(np.mean(scores)) if scores else None,
            "all_pairs": (artifact.content.get("embedding") or {}).get("all_pairs"),
            "quantiles": dict(zip(map(str, at), np.quantile(scores, at).tolist(), strict=True)) if scores else None,
            "edges": edges.round(3).tolist(),
            "counts": counts.tolist(),
        },
    }


def _specificity(subject: Subject, artifact: Artifact, table: pa.Table) -> dict[str, Any] | None:
    """Return by how much latents' images are more alike than chance, and those of neurons of either sign beside them;
    None without image embeddings, or of an index that was made before there was a chance."""
    if "monosemanticity_excess" not in table.column_names:
        return None
    excess, deviation = (
        table[name].to_numpy(zero_copy_only=False).astype(np.float64)
        for name in ("monosemanticity_excess", "monosemanticity_spread")
    )
    known = ~np.isnan(excess)
    if not known.any():
        return None
    sure = float((excess[known] > 2 * deviation[known]).mean())
    found: dict[str, Any] = {"latents": _spread_of(excess[known]) | {"above_two_deviations": sure}, "neurons": None}
    site = subject.store.embedding
    # Neurons are compared by the embeddings that the index took: the store's own.
    if site is None or len(artifact.inputs) > 2 or artifact.config.get("embedding_layer") is not None:
        return found
    images = spread(np.arange(site.n_images), SPECIFICITY_IMAGES)
    chance = Chance.of(torch.from_numpy(image_embeddings(site)[images]))
    if chance is not None:
        pooled = pool_latents(None, subject.batches(images))
        neurons = chance.excess_of(torch.cat([pooled["max"], -pooled["min"]], dim=1))
        found["neurons"] = _spread_of(neurons[~np.isnan(neurons)]) | {"images": len(images)}
    return found


def _spread_of(values: np.ndarray) -> dict[str, Any]:
    at = ["0.05", "0.5", "0.95"]
    quantiles = np.quantile(values, list(map(float, at))).tolist() if len(values) else [None] * len(at)
    return {
        "features": len(values),
        "mean": float(values.mean()) if len(values) else None,
        "quantiles": dict(zip(at, quantiles, strict=True)),
    }


def probing(subject: Subject, fitted: list[Fitted]) -> dict[str, Any]:
    """Return probes and label alignment of the autoencoder, raw activations and baselines on every category label."""
    labels = read_labels(subject.store, subject.settings.probe_classes)
    if not labels:
        say(f"No probes: {subject.store.artifact.path} has no category label with two classes or more.")
        return {"skipped": "the store has no category label with two classes or more", "labels": []}
    train, test = spread(subject.train, subject.settings.probe_images), subject.measured
    found: list[dict[str, Any]] = [
        {"name": label.name, "classes": label.classes, "probes": [], "alignment": []} for label in labels
    ]
    groups = _alike(labels, train, test, subject.groups_of(test))
    models = [("autoencoder", subject.autoencoder), (NEURONS, None)]
    for baseline in fitted:
        if isinstance(baseline.model, SparseAutoencoder):  # as many random directions, but every token's score on all
            directions, mean = baseline.model.W_enc.detach(), baseline.model.b_dec.detach()
            models.append(("random directions", Dictionary(mean, directions)))
        elif baseline.name != "raw neurons":
            models.append((baseline.name, baseline.model))
    chosen: dict[tuple[str, int], tuple[Chosen, Chosen]] = {}
    with bar("Probing", len(models), "representations") as advance:
        for name, model in models:
            pairs = (_pooled(subject, model, name, rows) for rows in (train, test))
            pooled = [pair for pair in pairs if pair is not None]
            for known, splits in groups if pooled else ():
                known_train, known_test = (
                    {key: part[key][mask] for key in part} for part, mask in zip(pooled, known, strict=True)
                )
                asked = list(splits.values())
                for i, rows in zip(splits, _probes(name, known_train, known_test, asked), strict=True):
                    found[i]["probes"] += rows
                for i, *best in zip(splits, *choose(known_train, known_test, asked, subject.seed), strict=True):
                    chosen[name, i] = (best[0], best[1])
            advance(1)
    for (name, i), (best, shuffled) in chosen.items():
        beside: Chosen = [None] * len(best) if name == NEURONS else chosen[NEURONS, i][0]
        found[i]["alignment"].append({"representation": name, **align(best, shuffled, beside, found[i]["classes"])})
    return {"images": {"train": len(train), "held_out": len(test)}, "labels": found}


Masks = list[Bool[np.ndarray, "images"]]


def _alike(
    labels: list[Labels], train: np.ndarray, test: np.ndarray, test_groups: np.ndarray | None
) -> list[tuple[Masks, dict[int, Split]]]:
    """Return labels that are known of the same training and held-out images together, by their place."""
    groups: dict[tuple[bytes, ...], tuple[Masks, dict[int, Split]]] = {}
    for i, label in enumerate(labels):
        known = [np.isin(label.values[rows], label.classes) for rows in (train, test)]
        here = [label.values[rows][mask].astype(str) for rows, mask in zip((train, test), known, strict=True)]
        key = tuple(mask.tobytes() for mask in known)
        together = None if test_groups is None else test_groups[known[1]]
        groups.setdefault(key, (known, {}))[1][i] = Split(label.classes, here[0], here[1], together)
    return list(groups.values())


def _probes(
    name: str, train: dict[str, np.ndarray], test: dict[str, np.ndarray], splits: list[Split]
) -> list[list[dict[str, Any]]]:
    """Return the rows of each label for one representation, of its training and held-out features."""
    rows: list[list[dict[str, Any]]] = [[] for _ in splits]
    for pooling in ("max", "mean"):
        prepared = Prepared(train[pooling], test[pooling])
        for row, scores in zip(rows, probe_labels(prepared, splits), strict=True):
            facts = {"representation": name, "pooling": pooling, "features": train[pooling].shape[1]}
            row.append(facts | {"scores": scores})
    return rows


def other_seeds(subject: Subject, others: list[Artifact]) -> list[dict[str, Any]]:
    """Return the agreement of the decoder's directions with those of other autoencoders of the same site."""
    mine = subject.autoencoder.decoder_directions()
    rows = []
    for artifact in others:
        theirs = load(artifact).decoder_directions()
        if mine is None or theirs is None:
            raise RequestError(f"{artifact.path}: stability compares linear decoders, and one of the two has none")
        found = stability(mine.detach().cpu(), theirs.detach().cpu(), subject.seed)
        rows.append({"autoencoder": artifact.id, **found})
    return rows
