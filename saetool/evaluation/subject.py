"""What is evaluated, on what: a trained autoencoder, its site in a store, the images it was and was not trained on."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saetool import distributed
from saetool.activations import ActivationStore, SiteStore, StoreStream, held_out_images, image_groups
from saetool.activations.sites import find_site
from saetool.artifacts import Artifact
from saetool.autoencoders.base import Autoencoder
from saetool.autoencoders.families import load
from saetool.errors import RequestError
from saetool.evaluation.settings import EvaluationSettings
from saetool.evaluation.sharing import Shared

ROWS_AT_ONCE = 2048
"""Rows encoded together; whole images, at least one."""
GPU_CELLS = 1 << 28
"""Outputs computed together on a GPU: some milliseconds of work, a gigabyte where they are float32."""
MOST_PARTS = 64
"""Parts of a pass, at most: what processes share, and each keeps sums of its own until the end."""


@dataclass(frozen=True)
class Labels:
    """One label: its name, its classes in order, the class of every image of the store (None where unlabeled)."""

    name: str
    classes: list[str]
    values: np.ndarray


@dataclass(frozen=True)
class Subject:
    """An autoencoder in evaluation mode with the images of its site, split as in its training.

    held_out and train are increasing image rows; `measured` are the held-out images that numbers are taken from.
    `groups` numbers the group of every image of the store, of images that depend on each other; None: each is alone.
    """

    autoencoder: Autoencoder
    content: dict
    store: ActivationStore
    site: SiteStore
    held_out: Int[np.ndarray, "held_out"]
    train: Int[np.ndarray, "train"]
    measured: Int[np.ndarray, "measured"]
    seed: int
    groups: Int[np.ndarray, "images"] | None = None
    settings: EvaluationSettings = field(default_factory=EvaluationSettings)
    shared: Shared = field(default_factory=Shared)
    kept: dict[str, Any] = field(default_factory=dict)
    """What one section has computed and another needs too."""

    @classmethod
    def open(
        cls,
        autoencoder: Artifact,
        store: Artifact,
        settings: EvaluationSettings,
        seed: int,
        shared: Shared | None = None,
    ) -> "Subject":
        """Load the autoencoder and split the store's images; raises RequestError where no image was held out."""
        opened, split = ActivationStore(store), autoencoder.content["held_out"]
        mask = held_out_images(opened, split)
        if not mask.any():
            raise RequestError(
                f"{autoencoder.path}: no image was held out of training (training.held_out is {split['share']}), "
                "so nothing can be measured on images it has not seen; train with held_out above 0"
            )
        held_out = np.flatnonzero(mask)
        return cls(
            autoencoder=load(autoencoder).to(distributed.default_device()),
            content=autoencoder.content,
            store=opened,
            site=opened.site(find_site(autoencoder, store)["folder"]),
            held_out=held_out,
            train=np.flatnonzero(~mask),
            measured=spread(held_out, settings.max_images),
            seed=seed,
            groups=image_groups(opened, split),
            settings=settings,
            shared=shared or Shared(),
        )

    def groups_of(self, images: Int[np.ndarray, "images"]) -> Int[np.ndarray, "images"] | None:
        """Return the number of each of these images' groups; None where each is alone."""
        return None if self.groups is None else self.groups[images]

    @property
    def _images_at_once(self) -> int:
        on_gpu = distributed.default_device().type == "cuda"
        rows = GPU_CELLS // self.autoencoder.n_latents if on_gpu else ROWS_AT_ONCE
        return max(1, rows // self.site.tokens)

    def parts(self, images: Int[np.ndarray, "images"]) -> list[Int[np.ndarray, "images"]]:
        """Return images in runs of whole batches, MOST_PARTS at most, which processes share."""
        size = self._images_at_once
        batches = -(-len(images) // size)
        count = max(1, min(MOST_PARTS, batches))
        bounds = [batches * i // count * size for i in range(count + 1)]
        return [images[start:stop] for start, stop in itertools.pairwise(bounds)]

    def batches(self, images: Int[np.ndarray, "images"]) -> Iterator[Float[Tensor, "images tokens d_in"]]:
        """Yield the tokens of some images, whole images at a time, in order, as stored."""
        at_once = self._images_at_once
        for start in range(0, len(images), at_once):
            yield self.site.rows_of(images[start : start + at_once])

    @cached_property
    def measured_mean(self) -> Float[Tensor, "d_in"]:
        return self.mean(self.measured)

    def mean(self, images: Int[np.ndarray, "images"]) -> Float[Tensor, "d_in"]:
        """Return the global mean of some images' tokens, float64."""
        return self.site.statistics(self._mask(images)).mean

    def _mask(self, images: Int[np.ndarray, "images"]) -> Bool[np.ndarray, "all"]:
        mask = np.zeros(self.site.n_images, dtype=bool)
        mask[images] = True
        return mask

    def training_rows(self, rows: int) -> Float[Tensor, "rows d_in"]:
        """Return up to `rows` training rows, the same for the same seed."""
        if not len(self.train):
            raise RequestError(f"{self.store.artifact.path}: every image is held out; baselines and probes need others")
        return StoreStream(self.site, 1, 1, self.seed, self._mask(self.held_out)).sample(rows)


def spread(images: Int[np.ndarray, "images"], most: int | None) -> Int[np.ndarray, "chosen"]:
    """Return at most `most` of the images, evenly spaced in their order."""
    if most is None or len(images) <= most:
        return images
    return images[(np.arange(most) * len(images)) // most]


def read_labels(store: ActivationStore, most_classes: int) -> list[Labels]:
    """Return the category labels of a store that have at least two classes, of each the most frequent classes."""
    found = []
    for column in store.artifact.content["labels"]:
        if column["kind"] != "category":
            continue
        values = np.array(store.images[column["name"]].to_pylist(), dtype=object)
        present = [value for value in values if value is not None]
        counts = {name: present.count(name) for name in dict.fromkeys(column.get("classes") or sorted(set(present)))}
        counts = {name: count for name, count in counts.items() if count}
        kept = sorted(counts, key=lambda name: -counts[name])[:most_classes]
        if len(kept) >= 2:
            found.append(Labels(column["name"], [name for name in counts if name in kept], values))
    return found
