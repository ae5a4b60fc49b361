"""What the model loses when it computes with the reconstruction, beside the same splice of baselines, zero and mean
ablation and the exact splice."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saetool.autoencoders.base import Autoencoder
from saetool.evaluation import bootstrap
from saetool.evaluation.cached_block_outputs import cached_block_outputs
from saetool.evaluation.interventions import ablate_site, site_of, splice
from saetool.evaluation.readout import Readout

CONDITIONS = ("clean", "spliced", "spliced_with_error", "mean_ablation", "zero_ablation")


def condition(
    name: str,
    readout: Readout,
    autoencoder: Autoencoder,
    mean: Float[Tensor, "d"],
    beside: Mapping[str, Autoencoder] | None = None,
) -> AbstractContextManager[None]:
    """Return the context in which the model runs under one of CONDITIONS, or with the reconstruction of one of those
    `beside` it; `mean` is the site's mean activation."""
    backbone = readout.backbone
    if name == "clean":
        return nullcontext()
    if beside and name in beside:
        return splice(backbone, beside[name], site=site_of(backbone, autoencoder).module)
    if name in ("spliced", "spliced_with_error"):
        return splice(backbone, autoencoder, error=name == "spliced_with_error")
    return ablate_site(backbone, site_of(backbone, autoencoder), mean if name == "mean_ablation" else None)


@dataclass
class EffectSums:
    """Per-image numbers under every condition, by its name [images, columns]: a few floats an image."""

    columns: list[str] = field(default_factory=list)
    tables: dict[str, Float[Tensor, "images columns"]] = field(default_factory=dict)


@torch.no_grad()
def measure_effect(
    readout: Readout,
    autoencoder: Autoencoder,
    batches: Iterator[tuple[Tensor, Int[Tensor, "batch"] | None]],
    mean: Float[Tensor, "d"],
    beside: Mapping[str, Autoencoder] | None = None,
) -> EffectSums:
    """Run every batch of (prepared images, class indices or None) under every condition, and with each of those
    `beside` the autoencoder spliced in its place."""
    columns, rows = [], {}
    with cached_block_outputs(readout.backbone):
        for images, target in batches:
            clean: tuple[Tensor, Tensor | None] | None = None
            for name in (*CONDITIONS, *(beside or ())):
                with condition(name, readout, autoencoder, mean, beside):
                    said = readout(images)
                clean = clean or said
                numbers = _image_numbers(said, clean, target)
                columns = list(numbers)
                rows.setdefault(name, []).append(torch.stack(list(numbers.values()), dim=-1))
    return EffectSums(columns, {name: torch.cat(found) for name, found in rows.items()})


def _image_numbers(
    said: tuple[Tensor, Tensor | None], clean: tuple[Tensor, Tensor | None], target: Tensor | None
) -> dict[str, Float[Tensor, "batch"]]:
    """Return an image's numbers: embedding cosine with the clean pass, and with logits what became of the classes."""
    embedding, logits = said[0].double().cpu(), said[1]
    reference = clean[0].double().cpu()
    numbers = {
        "one": torch.ones(len(embedding), dtype=torch.float64),
        "embedding_cosine": torch.nn.functional.cosine_similarity(embedding, reference, dim=-1),
        "embedding_relative_error": (embedding - reference).norm(dim=-1) / reference.norm(dim=-1).clamp(min=1e-30),
    }
    if logits is None or clean[1] is None:
        return numbers
    log_p, log_clean = logits.double().cpu().log_softmax(-1), clean[1].double().cpu().log_softmax(-1)
    numbers["kl_from_clean"] = (log_clean.exp() * (log_clean - log_p)).sum(-1)
    numbers["agreement"] = (log_p.argmax(-1) == log_clean.argmax(-1)).double()
    if target is not None:
        of_target = log_p.gather(1, target[:, None])[:, 0]
        numbers["accuracy"] = (log_p.argmax(-1) == target).double()
        numbers["cross_entropy"] = -of_target
        numbers["probability"] = of_target.exp()
    return numbers


def summarize(
    sums: EffectSums, seed: int, resamples: int = bootstrap.RESAMPLES, groups: Int[np.ndarray, "images"] | None = None
) -> dict:
    """Return the mean of every number under every condition, with intervals, and the shares recovered.

    A share is (spliced − ablated) / (clean − ablated), for zero and mean ablation. `differences`: by how
    much each number with a baseline spliced exceeds that with the autoencoder, on the same images.
    """
    wanted = {name: (name, "one") for name in sums.columns if name != "one"}
    draw: dict[str, Any] = {"seed": seed, "resamples": resamples, "groups": groups}
    return {
        "images": len(sums.tables["clean"]),
        "conditions": {
            name: bootstrap.ratios(table, sums.columns, wanted, **draw) for name, table in sums.tables.items()
        },
        "differences": {
            name: bootstrap.ratios(_less_spliced(sums, name), sums.columns, wanted, **draw)
            for name in sums.tables
            if name not in CONDITIONS
        },
        "share_recovered": {
            ablation: {
                number: share_recovered(_paired(sums, number, ablation), least=_worth_recovering(sums, number), **draw)
                for number in wanted
                if number in RECOVERED
            }
            for ablation in ("zero_ablation", "mean_ablation")
        },
    }


RECOVERED = ("embedding_cosine", "accuracy", "cross_entropy", "kl_from_clean", "probability")
"""Numbers of which a share recovered is told."""
LEAST_SHARE = 0.05
"""An ablation that costs less than this share of what the clean model reaches leaves nothing to recover."""
SMALLEST_LOSS = 1e-9
"""Differences an image between clean and ablated below this are rounding; a share of them means nothing."""


def _less_spliced(sums: EffectSums, name: str) -> Float[Tensor, "images columns"]:
    """Return each image's numbers with a baseline in the model, less those with the autoencoder."""
    difference = sums.tables[name] - sums.tables["spliced"]
    difference[:, sums.columns.index("one")] = 1.0
    return difference


def _paired(sums: EffectSums, number: str, ablation: str) -> Float[Tensor, "images 2"]:
    """Return what each image regains by splicing and what it loses by the ablation."""
    column = sums.columns.index(number)
    clean, spliced, ablated = (sums.tables[name][:, column] for name in ("clean", "spliced", ablation))
    return torch.stack([spliced - ablated, clean - ablated], dim=1)


def _worth_recovering(sums: EffectSums, number: str) -> float:
    """Return the least loss of a number that is worth the name: of those that grow towards 1, a share."""
    if number not in ("embedding_cosine", "accuracy", "probability"):
        return 0.0
    return LEAST_SHARE * abs(float(sums.tables["clean"][:, sums.columns.index(number)].mean()))


def share_recovered(
    paired: Float[Tensor, "images 2"],
    seed: int,
    resamples: int = bootstrap.RESAMPLES,
    least: float = 0.0,
    groups: Int[np.ndarray, "images"] | None = None,
) -> dict[str, float | None]:
    """Return Σ (spliced − ablated) / Σ (clean − ablated): 1 as good as clean, 0 as bad as the ablation.

    With an interval: an image is drawn with all its conditions. Null where the interval of the loss holds 0, so that
    it is not known whether there is anything to recover, and where the mean loss is smaller than `least`.
    """
    wanted = {"share": ("regained", "lost")}
    share = bootstrap.ratios(paired, ["regained", "lost"], wanted, seed, resamples, groups)["share"]
    if abs(float(paired[:, 1].double().mean())) < max(SMALLEST_LOSS, least):
        return bootstrap.interval(None, None)
    lost = bootstrap.grouped(paired.double(), groups)[:, 1]
    if min(len(lost), resamples) > 1:
        loss = bootstrap.interval(float(lost.sum()), bootstrap.resample(lost[:, None], seed, resamples)[:, 0])
        if loss["low"] is not None and loss["high"] is not None and loss["low"] <= 0 <= loss["high"]:
            return bootstrap.interval(None, None)
    return share
