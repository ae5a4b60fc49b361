"""Rows for pictures of models whose latents are not sparse: originals, reconstructions, what the family adds."""

import torch
from torch import Tensor

from saetool import seeding
from saetool.autoencoders.contractive import Contractive
from saetool.autoencoders.corruption import corrupt
from saetool.autoencoders.denoising import Denoising
from saetool.autoencoders.dense import Dense
from saetool.autoencoders.variational import Variational
from saetool.evaluation.interventions import rows_for
from saetool.evaluation.subject import ROWS_AT_ONCE, Subject, spread

ROWS = 16
"""Held-out rows shown."""
FILTERS = 64
"""Directions shown, largest first."""


@torch.no_grad()
def figures(subject: Subject) -> dict[str, Tensor]:
    """Return float32 tensors in raw units, seeded.

    originals, reconstructions [n, d_in]: at most 16 held-out rows, each from another image where there are as many;
    filters [k, d_in]: at most 64 decoder directions, where the decoder is linear, or else encoder_filters [k, d_in]:
    as many rows of the encoder's first layer; corrupted [n, d_in] (denoising: reconstructions are then of those
    rows); samples [n, d_in] (variational); spectrum [k]: the encoder's mean Jacobian singular values (contractive),
    else the singular values of held-out codes, both descending.
    """
    model = subject.autoencoder
    x = _rows(subject)
    generator = seeding.generator(subject.seed, "figures", device=x.device)
    found = {"originals": x, "reconstructions": model(x)}
    if isinstance(model, Denoising):
        units = corrupt(model.corruption, model.normalizer(x), generator, model.normalizer)
        found["corrupted"] = model.normalizer.inverse(units)
        found["reconstructions"] = model.denoise(found["corrupted"])
    if isinstance(model, Variational):
        found["samples"] = model.sample(ROWS, generator)
    directions = model.decoder_directions()
    if directions is not None:
        found["filters"] = _largest(directions)
    elif isinstance(model, Dense | Variational):
        found["encoder_filters"] = _largest(model.encoder.weights[0] * model.normalizer.factor)
    found["spectrum"] = _spectrum(subject, x)
    return {name: tensor.detach().float().cpu() for name, tensor in found.items()}


def _largest(directions: Tensor) -> Tensor:
    return directions[torch.argsort(-directions.norm(dim=-1), stable=True)[:FILTERS]]


def _rows(subject: Subject) -> Tensor:
    """Return one token of each of ROWS held-out images spread over the store, the middle one of the image."""
    images = spread(subject.held_out, ROWS)
    middle = subject.site.tokens // 2
    rows = [subject.site.rows(int(image), int(image) + 1)[0, middle] for image in images]
    return rows_for(subject.autoencoder, torch.stack(rows))


def _spectrum(subject: Subject, x: Tensor) -> Tensor:
    model = subject.autoencoder
    if isinstance(model, Contractive):
        return torch.linalg.svdvals(model.jacobian(x).float()).mean(0)
    codes = model.encode(rows_for(model, next(subject.batches(subject.held_out)))[:ROWS_AT_ONCE]).float()
    return torch.linalg.svdvals(codes - codes.mean(0))
