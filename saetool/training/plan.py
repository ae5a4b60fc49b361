"""What one training run is made of, before any of it is loaded."""

from dataclasses import dataclass
from typing import Any, cast

import torch

from saetool import seeding
from saetool.artifacts import Artifact, digest_json
from saetool.autoencoders.base import Autoencoder, Stream
from saetool.autoencoders.families import AutoencoderSettings, build
from saetool.errors import RequestError
from saetool.training.settings import TrainingSettings
from saetool.training.source import GivenStream, Source, StoreSource

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


def as_source(source: Artifact | Stream | Source) -> Source:
    """Return what a stage needs to know of a store, of a stream that exists, or of another source."""
    if isinstance(source, Artifact):
        return StoreSource(source)
    if not hasattr(source, "batches") and not hasattr(source, "open"):
        raise RequestError(
            f"train takes no {type(source).__module__}.{type(source).__name__}: give a store (its path, or what "
            "saetool.activations.write_store makes of tensors), or a stream (saetool.activations.TensorStream)."
        )
    return GivenStream(cast(Stream, source)) if hasattr(source, "batches") else cast(Source, source)
