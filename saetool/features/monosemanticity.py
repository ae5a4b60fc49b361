"""Monosemanticity (Pach et al. 2025, arXiv 2504.02821): how alike are the images on which a latent fires?

The mean similarity of pairs of images by another encoder's embedding, weighted by the product of their activations,
min–max scaled over all images. In closed form: (‖Σ ãu‖² − Σ ã²‖u‖²) / ((Σ ã)² − Σ ã²).
"""

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
    image = torch.from_numpy(maxima.records["image"].astype(np.int64))
    starts = torch.from_numpy(maxima.starts[:-1].astype(np.int64))
    total = torch.nn.functional.embedding_bag(
        image,
        torch.from_numpy(np.ascontiguousarray(embeddings, np.float32)),
        starts,
        mode="sum",
        per_sample_weights=torch.from_numpy(weights.astype(np.float32)),
    ).numpy()
    sums = np.bincount(maxima.latent, weights=weights, minlength=maxima.n_latents)
    squares = np.bincount(maxima.latent, weights=weights**2, minlength=maxima.n_latents)
    lengths = (embeddings.astype(np.float64) ** 2).sum(1)[maxima.records["image"]]
    alone = np.bincount(maxima.latent, weights=weights**2 * lengths, minlength=maxima.n_latents)
    together = (total.astype(np.float64) ** 2).sum(1) - alone
    pairs = sums**2 - squares
    weighty = np.bincount(maxima.latent[weights > 0], minlength=maxima.n_latents) >= 2
    return np.where(weighty, together / np.where(weighty, pairs, 1), np.nan)


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
