"""Numbers of each latent that follow from its maxima, its profile over positions, or its weights."""

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from saetool.autoencoders.base import Autoencoder
from saetool.features.maxima import Maxima
from saetool.features.ranking import largest
from saetool.features.runs import counts_of
from saetool.statistics import squarable


def block_numbers(block: Maxima, held_out: Bool[Tensor, "images"]) -> dict[str, np.ndarray]:
    """Return what the image maxima of a block say by themselves: counts and the largest value (0 when dead).

    `held_out` is on the block's device.
    """
    tokens = block.column("tokens")
    found = {
        "image_count": block.counts,
        "token_count": counts_of(block.latent, tokens, block.n_latents),
        "held_out_token_count": counts_of(block.latent, tokens * held_out[block.image], block.n_latents),
        "max": largest(block),
    }
    return {name: numbers.cpu().numpy() for name, numbers in found.items()}


def spatial_entropy(profile: np.ndarray) -> np.ndarray:
    """Return the entropy of each row of [n_latents, positions] over ln(positions); NaN for empty rows."""
    if profile.shape[1] < 2:
        return np.full(len(profile), np.nan)
    mass = profile.astype(np.float64)
    total = mass.sum(1, keepdims=True)
    share = mass / np.where(total > 0, total, 1)
    entropy = -(share * np.log(np.where(share > 0, share, 1))).sum(1) / np.log(profile.shape[1])
    return np.where(total[:, 0] > 0, np.clip(entropy, 0, 1), np.nan)


@torch.no_grad()
def directions(model: Autoencoder) -> dict[str, np.ndarray]:
    """Return each latent's decoder norm and the cosine of its two directions; NaN where the family has none."""
    decoder, encoder = model.decoder_directions(), model.encoder_directions()
    norm = cosine = torch.full((model.n_latents,), torch.nan)
    if decoder is not None:
        decoder = squarable(decoder)
        norm = decoder.norm(dim=1)
        if encoder is not None:
            encoder = squarable(encoder)
            lengths = norm * encoder.norm(dim=1)
            cosine = (decoder * encoder).sum(1) / lengths
            cosine = torch.where(lengths > 0, cosine.clamp(-1, 1), torch.nan)
    found = {"decoder_norm": norm, "encoder_decoder_cosine": cosine}
    return {name: numbers.float().cpu().numpy() for name, numbers in found.items()}
