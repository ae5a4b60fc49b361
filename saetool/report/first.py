"""Which latents are shown first, and which are kept when a report would grow too large.

The rule for the first look: latents whose strongest training images are alike beyond chance, that fire on a fair share
of the training images but not on most, and not only at one place of the picture; none near another one shown, by
direction, by firing images or by the images shown. They are chosen on training images and shown with held-out ones.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from saetool.report.columns import numbers
from saetool.report.places import Places
from saetool.report.source import FeatureFiles
from saetool.report.words import Words

COUNT = 12
FAIR, MOST = 0.01, 0.5
"""Shares of the training images between which a latent fires often enough to say something, and not nearly always."""
MIN_IMAGES = 8
POSITIONAL = 0.5
"""Entropy over positions up to which a latent is taken for one of a place rather than of what is there."""
SPREAD_OUT = 0.6
"""Entropy over positions that a latent of the first look has at least."""
NEAR_COSINE, NEAR_JACCARD, SHARED_IMAGES = 0.3, 0.2, 2
CANDIDATES = 5_000
"""Latents that are looked at: the twelfth is found among the first hundreds or not at all."""


@dataclass(frozen=True)
class Interest:
    """How interesting each latent of an index is."""

    files: FeatureFiles
    places: Places
    words: Words

    def _column(self, name: str) -> np.ndarray | None:
        table = self.files.latents
        known = name in table.column_names and table[name].null_count < table.num_rows
        return numbers(table[name]).astype(np.float64) if known else None

    @cached_property
    def alive(self) -> np.ndarray:
        """Which latents are neither dead nor rare."""
        return np.isin(np.array(self.files.latents["status"].to_pylist()), ["ok", "dense"])

    @cached_property
    def score(self) -> np.ndarray:
        """How alike the strongest training images are, or how much of one class, or (of neither) how strong it is."""
        seen = self.places.where(~self.places.held_out.astype(bool))
        of_one_class = Words(self.files.latents, seen, self.words.facts).enrichment
        for found in (self._column("top_excess"), of_one_class, self._column("max")):
            if found is not None and not np.isnan(found).all():
                return np.where(np.isnan(found), -np.inf, found)
        return np.zeros(self.files.n_latents)

    @cached_property
    def order(self) -> np.ndarray:
        """All latents, the most interesting first: those of the first look, then living ones by score."""
        shown = np.full(self.files.n_latents, COUNT)
        shown[self.first_look] = np.arange(len(self.first_look))
        return np.lexsort((-self.score, ~self.alive, shown))

    @cached_property
    def training_share(self) -> np.ndarray:
        """On which share of the training images each latent fires; of all images where the index does not tell."""
        bits, sample = self.files.tensor("fires"), self.files.tensor("sample_images")
        if bits is None or sample is None or bool(self.files.held_out[sample].all()):
            return self.files.latents["image_frequency"].to_numpy()
        seen = ~self.files.held_out[sample]
        mask = np.packbits(seen, bitorder="little")
        counts = np.unpackbits(bits & mask, axis=1).sum(1, dtype=np.int64) if len(bits) < 1 << 14 else None
        if counts is None:
            counts = np.concatenate([np.unpackbits(b & mask, axis=1).sum(1) for b in np.array_split(bits, 64)])
        return counts / seen.sum()

    @cached_property
    def first_look(self) -> list[int]:
        """The latents of the first look, the most interesting first; looser rules fill up what strict ones leave."""
        entropy, images = self._column("spatial_entropy"), self._column("image_count")
        fair = (self.training_share >= FAIR) & (self.training_share <= MOST)
        anywhere = fair if entropy is None else fair & ~(entropy < SPREAD_OUT)
        often = self.alive if images is None else self.alive & (images >= MIN_IMAGES)
        chosen: list[int] = []
        for allowed in (often & anywhere, often & fair, self.alive):
            ranked = np.lexsort((np.arange(len(allowed)), -self.score, ~allowed))[: int(allowed.sum())]
            for latent in ranked[:CANDIDATES].tolist():
                if len(chosen) == COUNT:
                    return chosen
                if latent not in chosen and not any(self._near(latent, other) for other in chosen):
                    chosen.append(latent)
        return chosen

    def _near(self, a: int, b: int) -> bool:
        """Say whether two latents would show a reader the same thing."""
        if len(np.intersect1d(self._images[a], self._images[b])) > SHARED_IMAGES:
            return True
        directions, bits = self.files.tensor("decoder_directions"), self.files.tensor("fires")
        if directions is not None:
            x, y = directions[a].astype(np.float64), directions[b].astype(np.float64)
            if x @ y > NEAR_COSINE * max(np.linalg.norm(x) * np.linalg.norm(y), 1e-12):
                return True
        if bits is None:
            return False
        x, y = np.unpackbits(bits[a]), np.unpackbits(bits[b])
        return int((x & y).sum()) > NEAR_JACCARD * max(int((x | y).sum()), 1)

    @cached_property
    def _images(self) -> np.ndarray:
        """The strongest images, int32 [n_latents, 16]; places of none match nothing."""
        images, _ = self.places.of_group("top").first(self.files.n_latents, 16)
        return np.where(images < 0, -1 - np.arange(images.size).reshape(images.shape), images)
