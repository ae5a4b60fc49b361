"""Contractive autoencoders: reconstruction + λ‖J_f(x)‖²_F, J_f the Jacobian of the encoder (Rifai et al. 2011).

One layer has a closed form, Σ_j s'(a_j)² ‖W_j‖². A stack is estimated with Rademacher probes (Hutchinson 1989):
E‖Jv‖² = E‖uᵀJ‖² = ‖J‖²_F, a probe's variance being 2 Σ_{i≠k} (JJᵀ)²_ik for uᵀJ.
"""

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from saetool.autoencoders.base import Loss, Step
from saetool.autoencoders.dense import Dense, LayeredSettings
from saetool.autoencoders.layers import SLOPES
from saetool.seeding import uniform_like


class ContractiveSettings(LayeredSettings):
    """A dense autoencoder whose encoder is held flat. The decoder is tied, or its columns are bounded in norm.

    Otherwise the code would shrink and the decoder undo it: the penalty would buy nothing.
    """

    kind: Literal["contractive"] = "contractive"
    weight: NonNegativeFloat
    """λ, on the squared Frobenius norm of the encoder's Jacobian, averaged over the batch."""
    tied: bool = True
    decoder_norm: PositiveFloat = 1.0
    """Largest norm of a decoder column where not tied."""
    probes: PositiveInt | None = None
    """Rademacher probes an input; null: the closed form for one layer, one probe for a stack."""

    @model_validator(mode="after")
    def _warn_of_relu(self) -> "ContractiveSettings":
        if "relu" in (self.activation, self.code()):
            warnings.warn(
                "contractive with activation: relu: its slope is flat almost everywhere, so the penalty acts on the "
                "weights only and not on where units saturate; sigmoid and tanh feel both",
                stacklevel=2,
            )
        return self


class Contractive(Dense):
    """A mirrored stack of layers with the penalty on its encoder, or on each level's own while pretraining."""

    settings: ContractiveSettings

    def objective(self, h: Float[Tensor, "batch width"], levels: range, generator: torch.Generator) -> Loss:
        """Return reconstruction and penalty; the mean squared norm is a metric of its own."""
        z = self.encode_levels(h, levels)
        loss = self.error(z, h, levels)
        if self.settings.probes is None and len(levels) == 1:
            index = levels[0] - 1
            slope = SLOPES[self.encoder.activations[index]](z)
            norm = slope.square() @ self.encoder.weights[index].square().sum(1)  # Σ_j s'(a_j)² ‖W_j‖²
        else:
            norm = self.estimated_norm(h, levels, self.settings.probes or 1, generator)
        loss.parts["contraction"] = self.settings.weight * norm.mean()
        loss.metrics["jacobian_norm"] = norm.detach().mean()
        return loss

    def estimated_norm(
        self, h: Float[Tensor, "batch width"], levels: range, probes: int, generator: torch.Generator
    ) -> Float[Tensor, "batch"]:
        """Return an unbiased estimate of each row's ‖J‖²_F for the encoder through `levels`, with gradient.

        Probes lie on the narrower side of J: that has the smaller variance.
        """

        def encoder(rows: Tensor) -> Tensor:
            return self.encode_levels(rows, levels)

        narrow_code = self.encoder.biases[levels[-1] - 1].numel() <= h.shape[1]
        if narrow_code:
            z, pull, *_ = torch.func.vjp(encoder, h)
            squares = [pull(_rademacher(z, generator))[0].square().sum(1) for _ in range(probes)]
        else:
            squares = [
                torch.func.jvp(encoder, (h,), (_rademacher(h, generator),))[1].square().sum(1) for _ in range(probes)
            ]
        return torch.stack(squares).mean(0)

    def jacobian(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch n_latents d_in"]:
        """Return the encoder's full Jacobian at raw activations, per raw unit; for small models and for looking."""
        return torch.func.vmap(torch.func.jacrev(lambda row: self.encode(row[None])[0]))(x)

    @torch.no_grad()
    def after_update(
        self, optimizer: torch.optim.Optimizer, step: Step, generator: torch.Generator, losses: Sequence[Loss]
    ) -> None:
        """Shorten the columns of an untied decoder to `decoder_norm`."""
        for weight in (weight for weight in self.decoder.weights if weight.requires_grad):
            weight.copy_(torch.renorm(weight, 2, 1, self.settings.decoder_norm))


def _rademacher(like: Float[Tensor, "batch width"], generator: torch.Generator) -> Float[Tensor, "batch width"]:
    return (uniform_like(like, generator) < 0.5).to(like.dtype) * 2 - 1
