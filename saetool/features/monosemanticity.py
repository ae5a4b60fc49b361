"""Monosemanticity (Pach et al. 2025, arXiv 2504.02821): how alike are the images on which a latent fires?

The mean similarity of pairs of images by another encoder's embedding, weighted by the product of their activations,
min–max scaled over all images. In closed form: (‖Σ ãu‖² − Σ ã²‖u‖²) / ((Σ ã)² − Σ ã²).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saetool.activations import SiteStore
from saetool.features.maxima import Maxima
from saetool.features.ranking import largest
from saetool.features.runs import sums_of_runs
from saetool.statistics import squarable, unit_rows


def monosemanticity(maxima: Maxima, embeddings: Float[Tensor, "images d"]) -> Float[np.ndarray, "latents"]:
    """Return the score of every latent of a block, NaN where fewer than two images have weight.

    `embeddings`, on the maxima's device, has unit rows, or zeros, which are like no other. An image's activation is
    its maximum over tokens, 0 where the latent does not fire. Devices agree to float32's rounding.
    """
    weights = scaled(maxima, len(embeddings))
    total = torch.nn.functional.embedding_bag(
        maxima.image, embeddings, maxima.starts[:-1], mode="sum", per_sample_weights=weights.float()
    )
    lengths = embeddings.double().square().sum(1)[maxima.image]
    parts = (weights, weights.square(), weights.square() * lengths, (weights > 0).double())
    sums, squares, alone, weighty = (sums_of_runs(maxima.latent, part, maxima.n_latents) for part in parts)
    together = total.double().square().sum(1) - alone
    defined = weighty >= 2
    score = torch.where(defined, together / torch.where(defined, sums.square() - squares, 1.0), torch.nan)
    return score.cpu().numpy()


@dataclass(frozen=True)
class Chance:
    """What images are alike by chance: those of a latent may be of a kind that is like all others.

    A pair's similarity above chance is s_ij − r_i − r_j + c, where r_i is the mean similarity of image i with all
    others (`usual` [images], float64) and c that of all pairs: its mean over random pairs is 0, for any number of
    images. The sums over ordered pairs of it, of its square and of its product with another pair's that shares one
    image say how far a score strays when the same activations are dealt to the images at random (Mantel 1967).
    """

    embeddings: Float[Tensor, "images d"]
    usual: Float[Tensor, "images"]
    all_pairs: float
    total: float
    squares: float
    adjacent: float

    @classmethod
    def of(cls, embeddings: Float[Tensor, "images d"]) -> "Chance | None":
        """Sum over all pairs of images; the similarities themselves are never held. None of fewer than 4 images."""
        wide, n = embeddings.double(), len(embeddings)
        if n < 4:
            return None
        lengths = wide.square().sum(1)
        usual = (wide @ wide.sum(0) - lengths) / (n - 1)
        c, square = float(usual.mean()), float(usual.square().sum())
        raw = float((wide.T @ wide).square().sum() - lengths.square().sum())
        # Σ (s − t)² with t = r_i + r_j − c, over ordered pairs of different images.
        mixed = 2 * (n - 1) * square - c * n * (n - 1) * c
        taken = 2 * (n - 1) * square + n * (n - 1) * c**2 + 2 * ((n * c) ** 2 - square) - 4 * c * (n - 1) * n * c
        squares = raw - 2 * mixed + taken
        rows = usual - c
        return cls(embeddings, usual, c, float(rows.sum()), squares, float(rows.square().sum()) - squares)

    def excess(self, maxima: Maxima, score: Float[np.ndarray, "latents"]) -> Float[np.ndarray, "latents"]:
        """Return by how much every latent's score lies above that of random pairs."""
        weights = scaled(maxima, len(self.usual))
        sums, squares = (sums_of_runs(maxima.latent, weights**k, maxima.n_latents) for k in (1, 2))
        shares = weights * (sums[maxima.latent] - weights) * self.usual[maxima.image]
        pairs = sums.square() - squares
        usual = sums_of_runs(maxima.latent, shares, maxima.n_latents) / torch.where(pairs > 0, pairs, 1.0)
        return score - 2 * usual.cpu().numpy() + self.all_pairs

    def excess_of(self, values: Float[Tensor, "images features"]) -> Float[np.ndarray, "features"]:
        """Return the same of features that have a value on every image, NaN of one that has the same on all."""
        wide = values.to(self.usual.device, torch.float64)
        low, high = wide.amin(0), wide.amax(0)
        weights = (wide - low) / torch.where(high > low, high - low, torch.nan)
        sums, squares = weights.sum(0), weights.square()
        embeddings = self.embeddings.double()
        alone = squares.T @ embeddings.square().sum(1)
        together = (weights.T @ embeddings).square().sum(1) - alone
        usual = (weights * (sums - weights)).T @ self.usual
        return ((together - 2 * usual) / (sums.square() - squares.sum(0)) + self.all_pairs).cpu().numpy()

    def spread(self, maxima: Maxima) -> Float[np.ndarray, "latents"]:
        """Return the standard deviation of every latent's excess over all ways to deal its activations to images."""
        n, weights = len(self.usual), scaled(maxima, len(self.usual))
        p1, p2, p3, p4 = (sums_of_runs(maxima.latent, weights**k, maxima.n_latents) for k in (1, 2, 3, 4))
        pairs, squares = p1.square() - p2, p2.square() - p4
        adjacent = p1.square() * p2 - 2 * p1 * p3 + p4 - squares
        apart = pairs.square() - 2 * squares - 4 * adjacent
        others = self.total**2 - 2 * self.squares - 4 * self.adjacent
        pair, triple = n * (n - 1), n * (n - 1) * (n - 2)
        second = 2 * squares * self.squares / pair + 4 * adjacent * self.adjacent / triple
        second = second + apart * others / (triple * (n - 3))
        variance = second - (pairs * self.total / pair).square()
        weighty = sums_of_runs(maxima.latent, (weights > 0).double(), maxima.n_latents) >= 2
        spread = torch.where(weighty, variance.clamp_min(0).sqrt() / torch.where(weighty, pairs, 1.0), torch.nan)
        return spread.cpu().numpy()

    def of_groups(self, latent: np.ndarray, image: np.ndarray, n_latents: int) -> Float[np.ndarray, "n_latents"]:
        """Return the mean similarity above chance of the pairs of each latent's images, NaN with fewer than two.

        `latent` (ascending) and `image` [rows] are which images belong to which latent.
        """
        cell, row = (torch.from_numpy(part.astype(np.int64)).to(self.usual.device) for part in (latent, image))
        starts = torch.searchsorted(cell, torch.arange(n_latents, device=cell.device))
        total = torch.nn.functional.embedding_bag(row, self.embeddings, starts, mode="sum").double().square().sum(1)
        lengths = self.embeddings.double().square().sum(1)
        parts = (torch.ones(len(row), device=row.device), lengths[row], self.usual[row])
        counts, alone, usual = (sums_of_runs(cell, part, n_latents) for part in parts)
        pairs = counts * (counts - 1)
        mean = (total - alone) / pairs.clamp_min(1) - 2 * usual / counts.clamp_min(1) + self.all_pairs
        return torch.where(pairs > 0, mean, torch.nan).cpu().numpy()


def all_pairs(embeddings: Float[np.ndarray, "images d"]) -> float | None:
    """Return the mean similarity of all pairs of images: the score of a latent that does not choose; None of one image.

    Embeddings share a large mean (on the demo .86), so a score says something only beside this number.
    """
    n, wide = len(embeddings), embeddings.astype(np.float64)
    if n < 2:
        return None
    return float(((wide.sum(0) ** 2).sum() - (wide**2).sum()) / (n * (n - 1)))


def scaled(maxima: Maxima, images: int) -> Float[Tensor, "records"]:
    """Return the activations min–max scaled over all images, float64; 0 where a latent is the same on all."""
    values = maxima.column("value")
    high, low = largest(maxima), torch.full((maxima.n_latents,), torch.inf, device=maxima.device)
    low.scatter_reduce_(0, maxima.latent, values, "amin")
    low = torch.where(maxima.counts == images, low, 0.0).double()
    span = (high.double() - low)[maxima.latent]
    return torch.where(span > 0, (values.double() - low[maxima.latent]) / torch.where(span > 0, span, 1.0), 0.0)


def image_embeddings(site: SiteStore, block: int = 256) -> Float[np.ndarray, "images d"]:
    """Return each image's mean token at a site, scaled to length 1 (zeros stay zeros), float32."""
    out = np.empty((site.n_images, site.d), np.float32)
    for start in range(0, site.n_images, block):
        stop = min(start + block, site.n_images)
        mean = squarable(site.rows(start, stop)).mean(1)
        out[start:stop] = unit_rows(mean).numpy()
    return out
