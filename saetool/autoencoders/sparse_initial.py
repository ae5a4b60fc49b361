"""Where a sparse model starts: unit decoder rows, the encoder tied to them, biases that give the wanted L0 at once.

Starting at the wanted L0 keeps the sparse step fast from step 0; W_enc = c W_dec keeps latents alive (Gao et al. 2024).
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from saetool.autoencoders.base import Stream
from saetool.autoencoders.sparse_activations import BatchTopK, Gated, JumpRelu
from saetool.autoencoders.sparse_settings import KlPenalty, SparseSettings
from saetool.sparse.backends.plain import SLICE_ROWS

if TYPE_CHECKING:
    from saetool.autoencoders.sparse import SparseAutoencoder

SAMPLE_ROWS = 1024
"""Rows whose pre-activations set the biases: with 100 active of 12,288 the quantile is then known to about 1 %."""

KL_ENCODER_SCALE = 1.5
"""‖W_enc,j‖ at the start of KL models: pre-activations then spread wide enough to be rare rather than small."""

L1_ENCODER_SCALE = 2.0
"""The same of ReLU models with L1. In a training of 635 steps to L0 45 (the demo) it ends at FVU .119 with .3 % of the
latents silent, 1 at .134 with 5 %. All others without a gain begin at 1: from 2, gated and TopK models end at .106 and
.119 instead of .092 and .091; from less than 1, TopK gains little and loses many latents."""

GAINED_ENCODER_SCALE = 0.1
"""The same of models with an initial gain. Beside a gain of .3, .03 ends a training of 300 steps with less error and
more silent latents (.1051 and 41 % clipped, .1059 and 34 % from .1), .3 with more and fewer (.1074 and 25 %)."""

MOST_ACTIVE = 0.25
"""The wanted L0 is at most this share of the latents: a quantile near 1 says nothing."""


@torch.no_grad()
def initialize_sparse(model: "SparseAutoencoder", stream: Stream, generator: torch.Generator) -> float:
    """Set normalization and parameters from training rows; return the expected number of active latents."""
    statistics = stream.statistics()
    model.normalizer.fit(statistics)
    if model.settings.normalize != "center_scale":
        model.b_dec.copy_(model.normalizer(statistics.mean.to(model.b_dec)))
    rows = torch.randn(model.W_dec.shape, generator=generator, device=generator.device)
    model.W_dec.copy_(nn.functional.normalize(rows, dim=1))
    penalty = model.settings.penalty
    model.W_enc.copy_(model.W_dec * _encoder_scale(model.settings))
    if isinstance(penalty, KlPenalty) and model.settings.activation.kind == "sigmoid":
        model.b_enc.fill_(math.log(penalty.rho / (1 - penalty.rho)))
        return float(model.n_latents)
    return _set_biases(model, model.normalizer(stream.sample(SAMPLE_ROWS).to(model.W_enc)))


def _encoder_scale(settings: SparseSettings) -> float:
    if settings.initial_norm is not None:
        return settings.initial_norm
    if isinstance(settings.penalty, KlPenalty):
        return KL_ENCODER_SCALE
    if settings.initial_gain is not None:
        return GAINED_ENCODER_SCALE
    return L1_ENCODER_SCALE if settings.penalty.kind == "l1" and settings.activation.kind == "relu" else 1.0


def _set_biases(model: "SparseAutoencoder", x: Tensor) -> float:
    activation, penalty = model.activation, model.settings.penalty
    wanted = min(model.settings.initial_l0, MOST_ACTIVE * model.n_latents)
    if isinstance(penalty, KlPenalty):
        # Active latents start between 0 and about 1, so twice the rate of them gives about the mean.
        wanted = min(2 * penalty.rho, MOST_ACTIVE) * model.n_latents
    if isinstance(activation, BatchTopK):
        activation.guess.fill_(_quantile(model, x, float(activation.k)))
    if activation.k:
        return float(activation.k)
    shift = -_quantile(model, x, wanted)
    if isinstance(activation, JumpRelu):
        model.b_enc.copy_(activation.log_threshold.exp() + shift)
    else:
        model.b_enc.fill_(shift)
    if isinstance(activation, Gated):
        activation.magnitude_bias.fill_(shift)
    return wanted


def _quantile(model: "SparseAutoencoder", x: Tensor, wanted: float) -> float:
    """Return the value that, on average over the rows, `wanted` products with the encoder exceed."""
    above = max(1, round(wanted * len(x)))
    kept = torch.empty(0, dtype=x.dtype, device=x.device)
    for part in (x - model.b_dec).split(SLICE_ROWS):
        products = torch.cat([kept, (part @ model.W_enc.T).flatten()])
        kept = products.topk(min(above, products.numel()), sorted=False).values
    return float(kept.min())
