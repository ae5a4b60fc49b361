"""Monosemanticity (Pach et al. 2025, arXiv 2504.02821): how alike are the images on which a latent fires?

The mean similarity of pairs of images by another encoder's embedding, weighted by the product of their activations,
min–max scaled over all images. In closed form: (‖Σ ãu‖² − Σ ã²‖u‖²) / ((Σ ã)² − Σ ã²).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from saetool.activations import SiteStore
from saetool.features.maxima import Maxima
from saetool.statistics import squarable, unit_rows


def monosemanticity(maxima: Maxima, embeddings: Float[np.ndarray, "images d"]) -> Float[np.ndarray, "latents"]:
    """Return the score of every latent of a block, NaN where fewer than two images have weight.

    `embeddings` has unit rows, or zeros, which are like no other. An image's activation is its maximum over tokens,
    0 where the latent does not fire.
    """
    weights = scaled(maxima, len(embeddings))
    total = _sums(embeddings, maxima.records["image"], maxima.starts[:-1], weights)
    sums = np.bincount(maxima.latent, weights=weights, minlength=maxima.n_latents)
    squares = np.bincount(maxima.latent, weights=weights**2, minlength=maxima.n_latents)
    lengths = (embeddings.astype(np.float64) ** 2).sum(1)[maxima.records["image"]]
    alone = np.bincount(maxima.latent, weights=weights**2 * lengths, minlength=maxima.n_latents)
    together = (total.astype(np.float64) ** 2).sum(1) - alone
    pairs = sums**2 - squares
    weighty = np.bincount(maxima.latent[weights > 0], minlength=maxima.n_latents) >= 2
    return np.where(weighty, together / np.where(weighty, pairs, 1), np.nan)


def _sums(
    embeddings: Float[np.ndarray, "images d"], image: np.ndarray, starts: np.ndarray, weights: np.ndarray
) -> Float[np.ndarray, "bags d"]:
    """Return the weighted sums of the embeddings of runs of images, float32."""
    return torch.nn.functional.embedding_bag(
        torch.from_numpy(image.astype(np.int64)),
        torch.from_numpy(np.ascontiguousarray(embeddings, np.float32)),
        torch.from_numpy(starts.astype(np.int64)),
        mode="sum",
        per_sample_weights=torch.from_numpy(weights.astype(np.float32)),
    ).numpy()


@dataclass(frozen=True)
class Chance:
    """What images are alike by chance: those of a latent may be of a kind that is like all others.

    A pair's similarity above chance is s_ij − r_i − r_j + c, where r_i is the mean similarity of image i with all
    others (`usual` [images]) and c that of all pairs: its mean over random pairs is 0, for any number of images. The
    sums over ordered pairs of it, of its square and of its product with another pair's that shares one image say how
    far a score strays when the same activations are dealt to the images at random (Mantel 1967).
    """

    embeddings: Float[np.ndarray, "images d"]
    usual: Float[np.ndarray, "images"]
    all_pairs: float
    total: float
    squares: float
    adjacent: float

    @classmethod
    def of(cls, embeddings: Float[np.ndarray, "images d"]) -> "Chance | None":
        """Sum over all pairs of images; the similarities themselves are never held. None of fewer than 4 images."""
        wide, n = embeddings.astype(np.float64), len(embeddings)
        if n < 4:
            return None
        lengths = (wide**2).sum(1)
        usual = (wide @ wide.sum(0) - lengths) / (n - 1)
        c, square = float(usual.mean()), float((usual**2).sum())
        raw = float(((wide.T @ wide) ** 2).sum() - (lengths**2).sum())
        # Σ (s − t)² with t = r_i + r_j − c, over ordered pairs of different images.
        mixed = 2 * (n - 1) * square - c * n * (n - 1) * c
        taken = 2 * (n - 1) * square + n * (n - 1) * c**2 + 2 * ((n * c) ** 2 - square) - 4 * c * (n - 1) * n * c
        squares = raw - 2 * mixed + taken
        rows = usual - c
        return cls(embeddings, usual, c, float(rows.sum()), squares, float((rows**2).sum()) - squares)

    def excess(self, maxima: Maxima, score: Float[np.ndarray, "latents"]) -> Float[np.ndarray, "latents"]:
        """Return by how much every latent's score lies above that of random pairs."""
        weights = scaled(maxima, len(self.usual))
        sums, squares = (np.bincount(maxima.latent, weights**k, minlength=maxima.n_latents) for k in (1, 2))
        shares = weights * (sums[maxima.latent] - weights) * self.usual[maxima.records["image"]]
        pairs = sums**2 - squares
        usual = np.bincount(maxima.latent, shares, minlength=maxima.n_latents) / np.where(pairs > 0, pairs, 1)
        return score - 2 * usual + self.all_pairs

    def spread(self, maxima: Maxima) -> Float[np.ndarray, "latents"]:
        """Return the standard deviation of every latent's excess over all ways to deal its activations to images."""
        n, weights = len(self.usual), scaled(maxima, len(self.usual))
        p1, p2, p3, p4 = (np.bincount(maxima.latent, weights**k, minlength=maxima.n_latents) for k in (1, 2, 3, 4))
        pairs, squares = p1**2 - p2, p2**2 - p4
        adjacent = p1**2 * p2 - 2 * p1 * p3 + p4 - squares
        apart = pairs**2 - 2 * squares - 4 * adjacent
        others = self.total**2 - 2 * self.squares - 4 * self.adjacent
        pair, triple = n * (n - 1), n * (n - 1) * (n - 2)
        second = 2 * squares * self.squares / pair + 4 * adjacent * self.adjacent / triple
        second = second + apart * others / (triple * (n - 3))
        variance = second - (pairs * self.total / pair) ** 2
        weighty = np.bincount(maxima.latent[weights > 0], minlength=maxima.n_latents) >= 2
        return np.where(weighty, np.sqrt(np.maximum(variance, 0)) / np.where(weighty, pairs, 1), np.nan)

    def of_groups(self, latent: np.ndarray, image: np.ndarray, n_latents: int) -> Float[np.ndarray, "n_latents"]:
        """Return the mean similarity above chance of the pairs of each latent's images, NaN with fewer than two.

        `latent` (sorted) and `image` [rows] are which images belong to which latent.
        """
        counts = np.bincount(latent, minlength=n_latents)
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        total = _sums(self.embeddings, image, starts, np.ones(len(image))).astype(np.float64)
        alone = np.bincount(latent, (self.embeddings.astype(np.float64) ** 2).sum(1)[image], minlength=n_latents)
        usual = np.bincount(latent, self.usual[image], minlength=n_latents) / np.maximum(counts, 1)
        pairs = counts * (counts - 1)
        mean = ((total**2).sum(1) - alone) / np.maximum(pairs, 1)
        return np.where(pairs > 0, mean - 2 * usual + self.all_pairs, np.nan)


def all_pairs(embeddings: Float[np.ndarray, "images d"]) -> float | None:
    """Return the mean similarity of all pairs of images: the score of a latent that does not choose; None of one image.

    Embeddings share a large mean (on the demo .86), so a score says something only beside this number.
    """
    n, wide = len(embeddings), embeddings.astype(np.float64)
    if n < 2:
        return None
    return float(((wide.sum(0) ** 2).sum() - (wide**2).sum()) / (n * (n - 1)))


def scaled(maxima: Maxima, images: int) -> Float[np.ndarray, "records"]:
    """Return the activations min–max scaled over all images, float64; 0 where a latent is the same on all."""
    values = maxima.column("value").astype(np.float64)
    high, low = np.zeros(maxima.n_latents), np.zeros(maxima.n_latents)
    alive = maxima.counts > 0
    if alive.any():
        high[alive] = np.maximum.reduceat(values, maxima.starts[:-1][alive])
        everywhere = alive & (maxima.counts == images)
        low[alive] = np.where(everywhere[alive], np.minimum.reduceat(values, maxima.starts[:-1][alive]), 0)
    span = (high - low)[maxima.latent]
    return np.where(span > 0, (values - low[maxima.latent]) / np.where(span > 0, span, 1), 0.0)


def image_embeddings(site: SiteStore, block: int = 256) -> Float[np.ndarray, "images d"]:
    """Return each image's mean token at a site, scaled to length 1 (zeros stay zeros), float32."""
    out = np.empty((site.n_images, site.d), np.float32)
    for start in range(0, site.n_images, block):
        stop = min(start + block, site.n_images)
        mean = squarable(site.rows(start, stop)).mean(1)
        out[start:stop] = unit_rows(mean).numpy()
    return out
