"""What it takes to compare any two latents: on which images each fires, and the direction it writes, both small."""

import numpy as np
import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from saetool.features.maxima import Maxima
from saetool.statistics import unit_rows

SAMPLE = 4096
"""Images on which is kept who fires: half a kilobyte a latent, whatever the number of images."""
_STEPS = 127


def sample_of(hashes: Int[Tensor, "images"]) -> np.ndarray:
    """Return the rows of the images kept, int32 in rising order: all, or the `SAMPLE` of smallest seeded hash."""
    return np.sort(np.argsort(hashes.numpy().view(np.uint64), kind="stable")[:SAMPLE]).astype(np.int32)


def firing_bits(maxima: Maxima, sample: np.ndarray, images: int) -> np.ndarray:
    """Return on which images of the sample each latent of a block fires, uint8 [latents, ceil(sample / 8)]."""
    width = -(-len(sample) // 8)
    place = np.full(images, -1, np.int64)
    place[sample] = np.arange(len(sample))
    at, latent = place[maxima.image.cpu().numpy()], maxima.latent.cpu().numpy()
    known = at >= 0
    bits = np.zeros(maxima.n_latents * width, np.uint8)
    np.bitwise_or.at(bits, latent[known] * width + at[known] // 8, np.uint8(1) << (at[known] % 8).astype(np.uint8))
    return bits.reshape(maxima.n_latents, width)


def small_directions(directions: Float[Tensor, "n_latents d_in"]) -> Int8[Tensor, "n_latents d_in"]:
    """Return directions in `_STEPS` steps of each one's largest magnitude; a latent without direction stays 0."""
    unit = unit_rows(directions).cpu()
    largest = unit.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return (unit / largest * _STEPS).round().to(torch.int8)
