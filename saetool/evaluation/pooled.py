"""An image as one vector: each latent's maximum, mean or minimum over the image's tokens."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from saetool.autoencoders.base import Autoencoder
from saetool.evaluation.baselines import Dictionary
from saetool.evaluation.interventions import rows_for
from saetool.sparse.codes import Codes

POOLINGS = ("max", "mean", "min")
Pooled = dict[str, Float[Tensor, "images n"]]
"""Image features by how they were pooled: "max", "mean", "min"."""


def pool_codes(codes: Codes, tokens: int) -> Pooled:
    """Return maximum, mean and minimum over each image's `tokens` consecutive rows; silent tokens count as 0."""
    images = codes.rows // tokens
    size = images * codes.n_latents
    place = (codes.row_of_entry() // tokens) * codes.n_latents + codes.latents
    total = codes.values.new_zeros(size).index_add_(0, place, codes.values)
    some_silent = torch.bincount(place, minlength=size) < tokens

    def extreme(start: float, way: str) -> Tensor:
        found = codes.values.new_full((size,), start).scatter_reduce_(0, place, codes.values, way)
        clamped = found.clamp(min=0) if way == "amax" else found.clamp(max=0)
        return torch.where(some_silent, clamped, found)

    found = {"max": extreme(-torch.inf, "amax"), "mean": total / tokens, "min": extreme(torch.inf, "amin")}
    return {pooling: values.view(images, -1) for pooling, values in found.items()}


def pool_rows(x: Float[Tensor, "images tokens n"]) -> Pooled:
    return {"max": x.amax(1), "mean": x.mean(1), "min": x.amin(1)}


@torch.no_grad()
def pool_latents(autoencoder: Autoencoder | None, batches: Iterable[Float[Tensor, "images tokens d_in"]]) -> Pooled:
    """Return the image features of an autoencoder, or of the raw activations where it is None."""
    parts: list[Pooled] = []
    for x in batches:
        if autoencoder is None:
            pooled = pool_rows(x.float())
        else:
            rows = rows_for(autoencoder, x)
            if isinstance(autoencoder, Dictionary) and autoencoder.k is None:  # no entry is 0
                pooled = pool_rows(autoencoder.encode(rows).unflatten(0, x.shape[:2]))
            else:
                pooled = pool_codes(autoencoder.encode_sparse(rows), x.shape[1])
        parts.append({pooling: values.cpu() for pooling, values in pooled.items()})
    return {pooling: torch.cat([part[pooling] for part in parts]) for pooling in POOLINGS}
