"""The `evaluation` section of a config."""

from pydantic import NonNegativeInt, PositiveInt

from saetool.settings import Settings


class EvaluationSettings(Settings):
    """What is measured. Held-out numbers always; the rest costs seconds (baselines) to minutes (effect)."""

    bootstrap: NonNegativeInt = 1000
    """Resamples of the held-out images behind every interval; 0: no intervals."""
    max_images: PositiveInt | None = 2048
    """At most so many held-out images, spread evenly over the store; null: all."""
    baselines: bool = True
    """PCA (each token's components, and fixed ones), k-means, a random dictionary, raw neurons, at the same L0."""
    refit: bool = False
    """A sparse autoencoder's own latents with values by least squares."""
    references: bool = False
    """Other codes at a sparse autoencoder's L0, on some of the images: matching pursuit on its decoder and on a random
    dictionary, ICA."""
    clusters: PositiveInt = 256
    """Centers of k-means."""
    probing: bool = False
    """k-sparse and full linear probes and label alignment, for the autoencoder, the baselines and raw activations."""
    probe_images: PositiveInt = 4096
    """At most so many training images for probes and alignment."""
    probe_classes: PositiveInt = 20
    """At most so many classes a label, the most frequent ones."""
    effect: bool = False
    """Splice the reconstruction into the backbone, and ablate and rank latents by their effect; needs the images."""
    effect_images: PositiveInt = 256
    """At most so many held-out images pass through the backbone, and twice as many training images fit its probe."""
    effect_label: str | None = None
    """The label whose classes are predicted; null: one with as many classes as the model's head, else the first."""
    effect_latents: PositiveInt = 5
    """Latents a class in the table of effects, each confirmed by ablation."""
    stability: tuple[str, ...] = ()
    """Paths of other autoencoders of the same site (other seeds) to compare directions with."""

    def content(self) -> dict:
        """Return the settings that determine what is measured, as JSON types: not those of what is left out."""
        used = {"refit": self.refit, "references": self.references, "probe_images": self.probing}
        used |= dict.fromkeys(("effect_images", "effect_label", "effect_latents"), self.effect)
        used |= {"probe_classes": self.probing or self.effect, "clusters": self.baselines or self.probing}
        used |= {"stability": False}  # the inputs tell them
        return self.model_dump(mode="json", exclude={name for name, is_used in used.items() if not is_used})
