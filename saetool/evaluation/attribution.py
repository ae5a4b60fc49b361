"""Which latents move a class: every latent by one backward pass, the strongest confirmed by ablating them.

The first-order effect of ablating latent j on a logit is −Σ_tokens z_j (W_dec,j · ∂logit/∂x), W_dec,j in raw units. It
is exact where the model is linear from the site to the logit, a ranking elsewhere; hence the confirmation.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saetool.autoencoders.base import Autoencoder
from saetool.errors import RequestError
from saetool.evaluation.cached_block_outputs import cached_block_outputs
from saetool.evaluation.interventions import intervene, site_of
from saetool.evaluation.readout import Readout
from saetool.sparse.codes import Codes, Support
from saetool.sparse.ops import sampled_products

ROWS_AT_ONCE = 1024
"""Tokens encoded at once; of a dense code a matrix of as many rows is held."""


def attribute(
    readout: Readout,
    autoencoder: Autoencoder,
    images: Float[Tensor, "batch channels height width"],
    target: Int[Tensor, "batch"],
    site: int | str | None = None,
) -> Float[Tensor, "n_latents"]:
    """Return the first-order change of the images' own target logits, summed over images, if a latent were ablated."""
    directions = autoencoder.decoder_directions()
    if directions is None:
        raise RequestError("effects on classes need a linear decoder: this autoencoder's latents have no directions")
    backbone = readout.backbone
    leaves: list[Tensor] = []

    def catch(x: Tensor) -> Tensor:
        leaf = x.detach().float().requires_grad_()
        leaves.append(leaf)
        return leaf.to(x.dtype)

    with torch.enable_grad(), backbone.replacing(site_of(backbone, autoencoder, site), catch):
        _, logits = readout(images)
        if logits is None:
            raise RequestError("effects on classes need class logits: a head, or a probe trained on labels")
        logits.gather(1, target.to(logits.device)[:, None]).sum().backward()
    leaf = leaves[-1]
    gradient = leaf.grad
    assert gradient is not None
    total = torch.zeros(autoencoder.n_latents, dtype=torch.float64)
    rows, slopes = leaf.detach().flatten(0, -2), gradient.flatten(0, -2)
    for x, slope in zip(rows.split(ROWS_AT_ONCE), slopes.split(ROWS_AT_ONCE), strict=True):
        total += _ablation_effect(autoencoder, directions, x, slope)
    return total


@torch.no_grad()
def _ablation_effect(
    autoencoder: Autoencoder, directions: Tensor, x: Float[Tensor, "rows d"], slope: Float[Tensor, "rows d"]
) -> Float[Tensor, "n_latents"]:
    x, slope = x.to(directions), slope.to(directions)
    dense = autoencoder.active_above > 0
    codes = Codes.from_dense(autoencoder.encode(x)) if dense else autoencoder.encode_sparse(x)
    if not autoencoder.adds_input:  # directions may be in a row's own units: layer norm's deviation
        slope = autoencoder.complete(slope, x) - autoencoder.complete(torch.zeros_like(slope), x)
    slopes = sampled_products(directions, slope, Support.of(codes))
    effects = -(codes.values * slopes).double().cpu()
    return torch.bincount(codes.latents.cpu(), effects, minlength=autoencoder.n_latents)


def class_effects(
    readout: Readout,
    autoencoder: Autoencoder,
    batches: Callable[[str], list[Tensor]],
    classes: dict[str, int],
    latents: int,
    confirm: int,
    site: int | str | None = None,
) -> list[dict]:
    """Return, for each class, the latents whose ablation changes its logit most, on images of that class.

    `classes` maps names to logits; `batches(name)` gives a class's prepared images; effects are means over images.
    Rows: class, latent, rank, `attributed` (first order, all images) and, on the first `confirm` images,
    `attributed_there` and `measured_logit`, `measured_probability`: the change when the latent is really ablated, and
    `embedding_cosine` of the final embedding then with the clean one.
    """
    rows = []
    with cached_block_outputs(readout.backbone):
        for name, index in classes.items():
            images = batches(name)
            if images:
                found = _of_class(readout, autoencoder, torch.cat(images), index, latents, confirm, site)
                rows += [{"class": name, "rank": rank, **row} for rank, row in enumerate(found)]
    return rows


def _of_class(
    readout: Readout,
    autoencoder: Autoencoder,
    images: Float[Tensor, "images channels height width"],
    index: int,
    latents: int,
    confirm: int,
    site: int | str | None,
) -> list[dict]:
    def attributed(some: Tensor) -> Float[Tensor, "n_latents"]:
        return attribute(readout, autoencoder, some, torch.full((len(some),), index), site)

    first, rest = images[:confirm], images[confirm:]
    total = torch.zeros(autoencoder.n_latents, dtype=torch.float64)
    for batch in rest.split(confirm):
        if len(batch):
            total += attributed(batch)
    there = attributed(first)  # after the others, so that their common part is remembered for what follows
    total += there
    clean = _said(readout, first, index)
    rows = []
    for latent in torch.argsort(-total.abs(), stable=True)[:latents].tolist():
        if float(total[latent]) == 0:
            break
        with intervene(readout.backbone, autoencoder, {latent: 0}, site=site):
            ablated = _said(readout, first, index)
        rows.append(
            {
                "latent": latent,
                "images": len(images),
                "attributed": float(total[latent]) / len(images),
                "attributed_there": float(there[latent]) / len(first),
                "measured_logit": float((ablated.logit - clean.logit).mean()),
                "measured_probability": float((ablated.probability - clean.probability).mean()),
                "embedding_cosine": float(torch.cosine_similarity(ablated.embedding, clean.embedding).mean()),
            }
        )
    return rows


@dataclass(frozen=True)
class _Said:
    """What the model says of some images, float64: one class's logit and probability, and the embedding."""

    logit: Float[Tensor, "batch"]
    probability: Float[Tensor, "batch"]
    embedding: Float[Tensor, "batch e"]


@torch.no_grad()
def _said(readout: Readout, images: Tensor, index: int) -> _Said:
    embedding, logits = readout(images)
    assert logits is not None
    wide = logits.double().cpu()
    return _Said(wide[:, index], wide.softmax(-1)[:, index], embedding.double().cpu())
