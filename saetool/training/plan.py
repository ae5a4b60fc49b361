"""What one training run is made of, before any of it is loaded."""

import os
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from saetool import distributed, seeding
from saetool.artifacts import Artifact, artifact_of, digest_json
from saetool.autoencoders.base import Autoencoder, Stream
from saetool.autoencoders.families import AutoencoderSettings, build
from saetool.errors import RequestError, type_name
from saetool.images.settings import Grouping
from saetool.sparse.backends import default_precision
from saetool.training.settings import TrainingSettings
from saetool.training.source import GivenRows, GivenStream, Source, StoreSource

SHARED = {"tokens", "batch_size", "pool_rows", "layer", "held_out", "log_every", "evaluate_every"}
"""Settings that models must agree on to learn from one stream."""


@dataclass(frozen=True)
class Plan:
    """One model to train: on what, which, how, and with which seed for the order and split of the data."""

    source: Source
    autoencoder: AutoencoderSettings
    settings: TrainingSettings
    seed: int
    device: torch.device | None = None

    @property
    def model_seed(self) -> int:
        """The seed of weights and noise."""
        return self.seed if self.settings.seed is None else self.settings.seed

    @property
    def stream_key(self) -> str:
        """Equal for plans that can share one stream."""
        return digest_json(
            {
                "inputs": [artifact.id for artifact in self.source.inputs],
                "listing": self.source.listing,
                "source": self.source.config(),
                "seed": self.seed,
                "settings": self.settings.model_dump(mode="json", include=SHARED),
            }
        )

    @property
    def held_out(self) -> dict[str, Any]:
        """What decides which images are held out: seed, share, and the rule of groups where there is one."""
        share = {"seed": self.seed, "share": self.settings.held_out}
        config = self.source.config()
        return {**share, "group": config["group"]} if "group" in config else share

    def config(self) -> dict[str, Any]:
        """Return the resolved request, as JSON types."""
        return {
            "autoencoder": self.autoencoder.model_dump(mode="json"),
            "training": self.settings.content(),
            "seed": self.seed,
            **self.source.config(),
        }

    def model(self, d_in: int) -> Autoencoder:
        """Return the untrained model; whatever it draws while it is built follows from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeding.derive(self.model_seed, "build"))
            return build(self.autoencoder, d_in)


def resolved(autoencoder: AutoencoderSettings, device: torch.device | None) -> AutoencoderSettings:
    """Return the settings with what depends on the device decided: a run records what it did."""
    if getattr(autoencoder, "codes", None) != "auto":
        return autoencoder
    return autoencoder.model_copy(update={"codes": default_precision(device or distributed.default_device())})


def as_source(source: Any, group: Grouping | None = None) -> Source:
    """Return what a stage needs to know of a store (opened or by its path), of rows in memory, or of a stream.

    By `group`, images of a store are held out as one; nothing else has names that a rule could read.
    """
    is_source = hasattr(source, "open") and hasattr(source, "inputs") and not isinstance(source, Artifact)
    if not is_source and isinstance(getattr(source, "artifact", source), Artifact | str | os.PathLike):
        return StoreSource(artifact_of(source, "activations", "train"), group=group)
    if group is not None:
        raise RequestError(f"train: group is for a store's images; a {type_name(source)} has no names to group by.")
    if isinstance(source, torch.Tensor | np.ndarray):
        return GivenRows.of(source)
    if hasattr(source, "batches"):
        return GivenStream(cast(Stream, source))
    if is_source:
        return cast(Source, source)
    raise RequestError(
        f"train takes no {type_name(source)}: give rows (a tensor or an array [n, d] or [images, tokens, d]), a store "
        "(its path, or what saetool.cache returned), or a stream (saetool.activations.TensorStream)."
    )
