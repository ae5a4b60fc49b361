"""Monosemanticity (Pach et al. 2025, arXiv 2504.02821): how alike are the images on which a latent fires?

The mean similarity of pairs of images by another encoder's embedding, weighted by the product of their activations,
min–max scaled over all images. In closed form: (‖Σ ãu‖² − Σ ã²‖u‖²) / ((Σ ã)² − Σ ã²).
"""

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
