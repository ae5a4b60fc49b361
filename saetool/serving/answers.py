"""What the model says of a picture, in classes that have names: by its own head, or by a probe on the run's labels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saetool import distributed
from saetool.activations import ActivationStore, held_out_images
from saetool.errors import RequestError
from saetool.evaluation.readout import Readout, find_head, heads_of, linear_probe
from saetool.evaluation.subject import Labels, read_labels, spread
from saetool.features.sheet import Originals
from saetool.images import ImageSource
from saetool.progress import bar, say
from saetool.threads import ordered
from saetool.vision.backbone import Backbone

PROBE_IMAGES, CHECKED_IMAGES = 400, 100
"""Training images that a probe is fitted on, and held-out ones that it is checked on."""
_TOGETHER = 16
_MOST_CLASSES = 1000


Said = tuple[Tensor, Tensor | None]
"""What a model says of pictures: embeddings [batch, e], and probabilities [batch, classes] where classes are known."""


@dataclass(frozen=True)
class Answers:
    """The model's final embedding of a picture, and probabilities of `classes` where there are any.

    `words` says where the classes come from and how good they are.
    """

    readout: Readout
    classes: list[str]
    words: str

    @torch.no_grad()
    def of(self, images: Tensor) -> Said:
        """Return embeddings [batch, e] and probabilities [batch, classes], float64 on the CPU."""
        embedding, logits = self.readout(images)
        return embedding.double().cpu(), None if logits is None else logits.double().cpu().softmax(-1)


def open_answers(
    backbone: Backbone,
    store: ActivationStore,
    split: dict[str, Any],
    source: ImageSource | None,
    label: str | None = None,
    *,
    pretrained: bool = True,
) -> Answers:
    """Return the model's own head where its classes have names, else a probe on `label` (default: the first).

    A head that is not `pretrained` has learned none.

    `split` is what the autoencoder's training held out: the probe is fitted on the other images, and checked on these.
    Without images or labels there is the embedding only. Raises RequestError for a label that the store does not have.
    """
    own = _own_head(backbone, store) if label is None and pretrained else None
    if own is not None:
        path, classes = own
        return Answers(Readout(backbone, path), classes, f"the model's own head ({path}, {len(classes):,} classes)")
    labels = read_labels(store, _MOST_CLASSES)
    chosen = next((one for one in labels if label in (None, one.name)), None)
    if label is not None and chosen is None:
        names = ", ".join(one.name for one in labels) or "none"
        raise RequestError(f"--label: {label!r} is no label with two classes; the store has {names}.")
    if chosen is None or source is None:
        why = "the images are not at hand" if chosen else "neither head nor labels have classes"
        return Answers(Readout(backbone), [], f"the final embedding only: {why}")
    return _probe(backbone, store, split, source, chosen)


def _own_head(backbone: Backbone, store: ActivationStore) -> tuple[str, list[str]] | None:
    for column in store.artifact.content["labels"]:
        if column.get("classes") and (path := find_head(backbone, len(column["classes"]))):
            return path, [str(name) for name in column["classes"]]
    for path, head in heads_of(backbone).items():
        if names := _names_of(backbone.whole, head.out_features):
            return path, names
    return None


def _names_of(model: Any, count: int) -> list[str] | None:
    """Return the names of a classifier's outputs, where its library knows them."""
    given = getattr(getattr(model, "config", None), "id2label", None) or {}
    if len(given) == count and not all(str(name).startswith("LABEL_") for name in given.values()):
        return [str(given[key]) for key in sorted(given, key=int)]
    if type(model).__module__.startswith("timm.") and count > 1:
        from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

        if getattr(model, "num_classes", 0) == count and (subset := infer_imagenet_subset(model)):
            info = ImageNetInfo(subset)
            return [info.index_to_description(i) for i in range(count)]
    return None


def _probe(
    backbone: Backbone, store: ActivationStore, split: dict[str, Any], source: ImageSource, label: Labels
) -> Answers:
    mask, labeled = held_out_images(store, split), np.isin(label.values, label.classes)
    train = spread(np.flatnonzero(labeled & ~mask), PROBE_IMAGES)
    classes = [name for name in label.classes if name in set(label.values[train])]
    if len(classes) < 2:
        return Answers(Readout(backbone), [], f"the final embedding only: {label.name} has one class in training")
    tested = spread(np.flatnonzero(np.isin(label.values, classes) & mask), CHECKED_IMAGES)
    try:
        found = _embeddings(backbone, store, source, np.concatenate([train, tested]), label.name)
    except RequestError as problem:
        say(f"No probe: {problem}")
        return Answers(Readout(backbone), [], "the final embedding only: the images are not those that were cached")
    weight, bias = linear_probe(found[: len(train)], label.values[train].astype(str), classes)
    said = (found[len(train) :] @ weight.T + bias).argmax(-1)
    right = [classes[int(k)] == label.values[row] for k, row in zip(said, tested, strict=True)]
    words = f"a linear probe on {label.name!r}, fitted on {len(train):,} training images"
    if right:
        most = max(list(label.values[tested]).count(name) for name in classes)
        words += f"; right on {sum(right)} of {len(right)} held-out ones (always the commonest class: {most})"
    return Answers(Readout(backbone, None, (weight, bias)), classes, words)


def _embeddings(backbone: Backbone, store: ActivationStore, source: ImageSource, rows: np.ndarray, name: str) -> Tensor:
    originals, found = Originals(store.images, source), []
    with bar(f"images for a probe on {name}", len(rows), "images") as advance:
        for start in range(0, len(rows), _TOGETHER):
            part = rows[start : start + _TOGETHER]
            images = ordered(lambda row: backbone.transform(originals.read(int(row))), part, distributed.cores())
            found.append(backbone.output(torch.stack(list(images))).float().cpu())
            advance(len(part))
    return torch.cat(found)
