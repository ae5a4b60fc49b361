"""An image as one vector: each latent's maximum and mean over the image's tokens."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from saetool.autoencoders.base import Autoencoder
from saetool.sparse.codes import Codes


def pool_codes(codes: Codes, tokens: int) -> tuple[Float[Tensor, "images n"], Float[Tensor, "images n"]]:
    """Return maximum and mean over each image's `tokens` consecutive rows; silent tokens count as 0."""
    images = codes.rows // tokens
    size = images * codes.n_latents
    place = (codes.row_of_entry() // tokens) * codes.n_latents + codes.latents
    total = codes.values.new_zeros(size).index_add_(0, place, codes.values)
    lowest = float("-inf")
    highest = codes.values.new_full((size,), lowest).scatter_reduce_(0, place, codes.values, "amax")
    fires = torch.bincount(place, minlength=size)
    highest = torch.where(fires < tokens, highest.clamp(min=0), highest)
    return highest.view(images, -1), (total / tokens).view(images, -1)


@torch.no_grad()
def pool_latents(
    autoencoder: Autoencoder | None, batches: Iterable[Float[Tensor, "images tokens d_in"]]
) -> dict[str, Float[Tensor, "images n"]]:
    """Return {"max", "mean"}: image features of an autoencoder, or of the raw activations where it is None."""
    highest, means = [], []
    for x in batches:
        if autoencoder is None:
            x = x.float()
            top, mean = x.amax(1), x.mean(1)
        else:
            like = next(iter([*autoencoder.parameters(), *autoencoder.buffers()]))
            codes = autoencoder.encode_sparse(x.flatten(0, 1).to(like.device, like.dtype))
            top, mean = pool_codes(codes, x.shape[1])
        highest.append(top.cpu())
        means.append(mean.cpu())
    return {"max": torch.cat(highest), "mean": torch.cat(means)}
