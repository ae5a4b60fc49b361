"""The sections of evaluation.json that run the backbone: splicing and the latents with the largest effects."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saetool import distributed
from saetool.autoencoders.base import Autoencoder
from saetool.errors import RequestError
from saetool.evaluation.attribution import class_effects
from saetool.evaluation.baselines import Fitted
from saetool.evaluation.effect import CONDITIONS, EffectSums, measure_effect, summarize
from saetool.evaluation.readout import Readout, find_head, linear_probe
from saetool.evaluation.sharing import Shared
from saetool.evaluation.subject import Labels, Subject, read_labels, spread
from saetool.features.sheet import Originals
from saetool.images import ImageSource
from saetool.progress import bar, say
from saetool.threads import ordered
from saetool.vision.backbone import Backbone

IMAGES_AT_ONCE = 16
"""Images in a forward pass."""
GPU_IMAGES_AT_ONCE = 128
CONFIRM_IMAGES = 32
"""Images of a class on which the strongest latents are really ablated."""
MOST_CLASSES = 1000
"""Classes that a probe may tell apart."""


class Pictures:
    """The store's images, prepared for the backbone, by row; each must have the digest that the store recorded."""

    def __init__(self, subject: Subject, source: ImageSource, backbone: Backbone):
        self.originals = Originals(subject.store.images, source)
        self.transform = backbone.transform

    def read(self, rows: np.ndarray) -> Tensor:
        """Return prepared images [batch, channels, height, width]; RequestError where one is missing or changed."""
        images = ordered(lambda row: self.transform(self.originals.read(int(row))), rows, distributed.cores())
        return torch.stack(list(images))

    def parts(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return images in runs that pass through the backbone together."""
        at_once = GPU_IMAGES_AT_ONCE if distributed.default_device().type == "cuda" else IMAGES_AT_ONCE
        return [rows[start : start + at_once] for start in range(0, len(rows), at_once)]

    def map(
        self, shared: Shared, title: str, rows: np.ndarray, work: Callable[[np.ndarray, Tensor], dict[str, Tensor]]
    ) -> list[dict[str, Tensor]] | None:
        """Return what work(rows, images) makes of each part, which processes share; None in all but the main one."""
        parts = self.parts(rows)
        with bar(title, sum(map(len, shared.mine(parts))), "images") as advance:

            def of_part(part: np.ndarray) -> dict[str, Tensor]:
                made = work(part, self.read(part))
                advance(len(part))
                return made

            return shared.map(title, parts, of_part)


def choose_label(subject: Subject, backbone: Backbone) -> tuple[Labels | None, str | None]:
    """Return the label to predict and the path of the model's own head for it, where it has one.

    A head is taken where it has as many outputs as the label has classes, which must stand in its order.
    """
    wanted = subject.settings.effect_label
    columns = [c for c in subject.store.artifact.content["labels"] if wanted is None or c["name"] == wanted]
    for column in columns:
        head = find_head(backbone, len(column["classes"])) if column.get("classes") else None
        if head is not None:
            values = np.array(subject.store.images[column["name"]].to_pylist(), dtype=object)
            return Labels(column["name"], column["classes"], values), head
    labels = [label for label in read_labels(subject.store, MOST_CLASSES) if wanted in (None, label.name)]
    if labels:
        return labels[0], None
    if wanted is not None:
        names = ", ".join(c["name"] for c in subject.store.artifact.content["labels"]) or "none"
        raise RequestError(
            f"evaluation.effect_label: {wanted!r} is no category label with two classes; the store has {names}"
        )
    say("No category label with two classes: the effect is measured on the final embedding only.")
    return None, None


def effect(subject: Subject, backbone: Backbone, source: ImageSource, fitted: Sequence[Fitted] = ()) -> dict[str, Any]:
    """Return what splicing does to the model, the autoencoder and each of the baselines, and each class's latents of
    largest effect."""
    settings, pictures = subject.settings, Pictures(subject, source, backbone)
    label, head = choose_label(subject, backbone)
    if not len(subject.train):
        raise RequestError(
            f"{subject.store.artifact.path}: every image is held out; the effect needs training images for the mean "
            "ablation. Evaluate on a store with others, or leave evaluation.effect out"
        )
    train, left_out = np.empty(0, np.int64), []
    if label is not None and head is None:
        train = spread(_labeled(subject.train, label), 2 * settings.effect_images)
        label, left_out = _with_training_images(label, train)
    if label is not None and not len(_labeled(subject.held_out, label)):
        say(f"No held-out image has a class of {label.name!r}: the effect is measured on the final embedding only.")
        label, head = None, None
    rows = spread(_labeled(subject.held_out, label), settings.effect_images)
    readout = Readout(backbone, head)
    if label is not None and head is None:
        readout = _with_probe(subject, backbone, pictures, label, train)
    beside = {baseline.name: baseline.model for baseline in fitted}
    sums = _measured(subject, pictures, readout, label, rows, beside)
    latents = []
    if label is not None and subject.autoencoder.decoder_directions() is not None:
        latents = _strongest(subject, pictures, readout, label, rows)
    if sums is None:
        return {}
    return {
        "label": label.name if label else None,
        "readout": "head" if head else "probe" if label else "embedding",
        "probe_images": len(train) if label is not None else 0,
        "left_out": left_out,
        **summarize(sums, subject.seed, settings.bootstrap, subject.groups_of(rows)),
        "latents": latents,
    }


def _labeled(rows: np.ndarray, label: Labels | None) -> np.ndarray:
    """Return the images that have one of the label's classes; all of them where there is no label."""
    return rows if label is None else rows[np.isin(label.values[rows], label.classes)]


def _with_training_images(label: Labels, train: np.ndarray) -> tuple[Labels | None, list[str]]:
    """Return the label with the classes that a probe can learn from the images `train`, and the names of the others.

    Without two such classes there is no label to predict.
    """
    seen = set(label.values[train])
    kept, missing = ([name for name in label.classes if (name in seen) == there] for there in (True, False))
    if missing:
        some = ", ".join(map(repr, missing[:5])) + (", …" if len(missing) > 5 else "")
        say(
            f"{label.name}: {len(missing):,} of {len(label.classes):,} classes have none of the {len(train):,} "
            f"training images of the probe and are left out ({some}); evaluation.effect_images takes more images"
        )
    if len(kept) < 2:
        say(f"{label.name}: no two classes are left: the effect is measured on the final embedding only.")
    return (replace(label, classes=kept) if len(kept) > 1 else None), missing


def _with_probe(subject: Subject, backbone: Backbone, pictures: Pictures, label: Labels, rows: np.ndarray) -> Readout:
    found = pictures.map(
        subject.shared, "Images for the probe", rows, lambda _, images: {"output": backbone.output(images).float()}
    )

    def fit() -> dict[str, Tensor]:
        embeddings = torch.cat([part["output"] for part in found or []])
        weight, bias = linear_probe(embeddings, label.values[rows].astype(str), label.classes)
        return {"weight": weight, "bias": bias}

    fitted = subject.shared.once("probe", fit)
    return Readout(backbone, None, (fitted["weight"], fitted["bias"]))


def _measured(
    subject: Subject,
    pictures: Pictures,
    readout: Readout,
    label: Labels | None,
    rows: np.ndarray,
    beside: Mapping[str, Autoencoder],
) -> EffectSums | None:
    """Return numbers of the images, which processes share, under every condition; None in all but the main one."""
    sums, mean = EffectSums(), subject.mean(subject.train).float()

    def work(chosen: np.ndarray, images: Tensor) -> dict[str, Tensor]:
        target = None if label is None else torch.tensor([label.classes.index(v) for v in label.values[chosen]])
        part = measure_effect(readout, subject.autoencoder, iter([(images, target)]), mean, beside=beside)
        sums.columns = part.columns
        return part.tables

    names = [*CONDITIONS, *beside]
    found = pictures.map(subject.shared, f"Images under {len(names)} conditions", rows, work)
    if found is None:
        return None
    sums.tables = {name: torch.cat([part[name] for part in found]) for name in names}
    return sums


def _strongest(
    subject: Subject, pictures: Pictures, readout: Readout, label: Labels, rows: np.ndarray
) -> list[dict[str, Any]]:
    counts = {name: int((label.values[rows] == name).sum()) for name in label.classes}
    most = sorted((name for name in label.classes if counts[name]), key=lambda name: -counts[name])
    classes = {name: label.classes.index(name) for name in most[: subject.settings.probe_classes]}

    def batches(name: str) -> list[Tensor]:
        parts = pictures.parts(rows[label.values[rows] == name])
        with bar(f"Images of {name}", sum(map(len, parts)), "images") as advance:
            found = []
            for part in parts:
                found.append(pictures.read(part))
                advance(len(part))
            return found

    latents = subject.settings.effect_latents
    mine = {name: classes[name] for name in subject.shared.mine(list(classes))}
    found = class_effects(readout, subject.autoencoder, batches, mine, latents, CONFIRM_IMAGES)
    of_all = [row for rows in distributed.all_gather(found) for row in rows]
    return sorted(of_all, key=lambda row: list(classes).index(row["class"]))
