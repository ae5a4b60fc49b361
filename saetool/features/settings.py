"""What the index shows of each latent, and how much of it."""

from typing import Literal

from pydantic import Field

from saetool.settings import Settings


class IndexSettings(Settings):
    """The `index` section of a config.

    `top` images a latent, ranked by their strongest patch (`max`) or their mean over patches (`mean`); `intervals`
    equal parts of (0, max], each with `interval_examples` images drawn by seed; `random` firing images drawn by seed.
    `strongest` latents are kept for each patch. A latent is rare or dense when its share of firing tokens is below
    `rare_below` or above `dense_above`. `label_classes` is the most classes a latent has rows for in
    label_statistics. The monosemanticity score embeds images by what the store keeps for it (`cache.embedding`), or by
    their mean token at `embedding_layer`, another cached layer of the store, or at a layer of the store at the path
    `embeddings`: of the same images, made with another model (tokens: mean or cls stores no more than the embedding);
    its only layer need not be named. Where there is none of them, the score is undefined.
    """

    top: int = Field(default=16, ge=1, le=1000)
    top_by: Literal["max", "mean"] = "max"
    intervals: int = Field(default=4, ge=0, le=100)
    interval_examples: int = Field(default=4, ge=1, le=100)
    random: int = Field(default=8, ge=0, le=1000)
    strongest: int = Field(default=8, ge=1, le=64)
    neighbors: int = Field(default=10, ge=1, le=100)
    rare_below: float = Field(default=1e-5, ge=0, lt=1)
    dense_above: float = Field(default=0.1, gt=0, le=1)
    label_classes: int = Field(default=64, ge=1)
    embedding_layer: int | str | None = None
    embeddings: str | None = None
