"""The `evaluation` section of a config."""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from saetool.settings import Settings


class EvaluationSettings(Settings):
    """What is measured. Held-out numbers always; the rest costs seconds (baselines) to minutes (effect)."""

    bootstrap: NonNegativeInt = 1000
    """Resamples of the held-out images behind every interval; 0: no intervals."""
    max_images: PositiveInt | None = 2048
    """At most so many held-out images, spread evenly over the store; null: all."""
    baselines: bool = True
    """PCA, k-means, a random dictionary and raw neurons at the autoencoder's L0, on the same images."""
    clusters: PositiveInt = 256
    """Centers of k-means."""
    probing: bool = False
    """k-sparse and full linear probes and label alignment, for the autoencoder, the baselines and raw activations."""
    probe_images: PositiveInt = 4096
    """At most so many training images for probes and alignment."""
    probe_classes: PositiveInt = 20
    """At most so many classes a label, the most frequent ones."""
    pooling: Literal["max", "mean"] = "max"
    """How an image's tokens become one number a latent; raw activations and PCA always take the mean as well."""
    effect: bool = False
    """Splice the reconstruction into the backbone, and ablate and rank latents by their effect; needs the images."""
    effect_images: PositiveInt = 256
    """At most so many held-out images pass through the backbone, and twice as many training images fit its probe."""
    effect_latents: PositiveInt = 10
    """Latents a class in the table of effects, each confirmed by ablation."""
    stability: list[str] = Field(default=[])
    """Paths of other autoencoders of the same site (other seeds) to compare directions with."""

    def complete(self) -> "EvaluationSettings":
        """Return these settings with everything switched on: what `saetool evaluate` does."""
        return self.model_copy(update={"baselines": True, "probing": True, "effect": True})
