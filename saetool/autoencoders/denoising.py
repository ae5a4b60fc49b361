"""Denoising autoencoders: encode a corrupted input, reconstruct the clean one (Vincent et al. 2008, 2010).

With gaussian corruption the optimal reconstruction r gives the score of the smoothed density,
(r(x̃) − x̃) / σ² = ∇ ln p_σ(x̃), p_σ = p * N(0, σ²), at any σ (Vincent 2011; Tweedie's formula); as σ → 0 that
tends to the score of the data's own density (Alain & Bengio 2014).
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor

from saetool.autoencoders.base import Loss
from saetool.autoencoders.corruption import Corruption, SaltAndPepper, corrupt, require_grid
from saetool.autoencoders.dense import Dense, LayeredSettings
from saetool.autoencoders.layers import Activation, require_unit_interval, squared_error
from saetool.errors import RequestError

# Where the codes of a hidden layer lie: what salt and pepper are to it.
RANGES: dict[Activation, tuple[float, float]] = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}


class DenoisingSettings(LayeredSettings):
    """A dense autoencoder with a corruption of its input; pretraining corrupts the codes that a layer is given."""

    kind: Literal["denoising"] = "denoising"
    corruption: Corruption
    residual: bool = False
    """The layers give the correction: x̂ = x̃ + s · layers(x̃), with s = σ for gaussian noise, else 1."""

    @model_validator(mode="after")
    def _legal(self) -> "DenoisingSettings":
        if self.residual and (self.error != "mse" or self.reconstruction() != "identity"):
            raise ValueError(
                "residual: a correction may have any sign and size: it needs error: mse and output: identity"
            )
        if self.pretrain and self.corruption.kind == "patches":
            raise ValueError(
                "pretrain: hidden codes form no grid: use gaussian, masking or salt_pepper, or drop pretrain"
            )
        if self.pretrain and self.corruption.kind == "salt_pepper" and self.activation not in RANGES:
            raise ValueError(
                f"pretrain: codes of activation: {self.activation} have no bounds for salt_pepper: use sigmoid or tanh"
            )
        return self


class Denoising(Dense):
    """A mirrored stack of layers that reconstructs clean inputs from corrupted ones.

    With `residual` it `adds_input`: `decode` returns the correction alone, since it does not see the input.
    """

    settings: DenoisingSettings

    def __init__(self, settings: DenoisingSettings, d_in: int):
        super().__init__(settings, d_in)
        require_grid(settings.corruption, d_in)
        self.corruption = settings.corruption
        self.adds_input = settings.residual
        self.step_size = self.corruption.sigma if self.corruption.kind == "gaussian" else 1.0

    def check(self, x: Float[Tensor, "batch d_in"]) -> None:
        """Raise RequestError where salt and pepper have no bounds, or cross-entropy cannot take these rows."""
        super().check(x)
        if self.corruption.kind == "salt_pepper" and self.corruption.bounds is None:
            require_unit_interval(
                x,
                "corruption: salt_pepper without bounds",
                "give corruption.bounds: [low, high] of the data",
            )

    def objective(self, h: Float[Tensor, "batch width"], levels: range, generator: torch.Generator) -> Loss:
        """Return the error of the clean `h` reconstructed from a corrupted one, with fresh noise."""
        normalizer = self.normalizer if levels[0] == 1 else None
        corrupted = corrupt(self._corruption_at(levels[0]), h, generator, normalizer)
        z = self.encode_levels(corrupted, levels)
        if self.settings.residual and levels[0] == 1:
            corrected = corrupted + self.step_size * self.decode_levels(z, levels)
            return Loss({"reconstruction": squared_error(corrected, h)})
        return self.error(z, h, levels)

    def _corruption_at(self, level: int) -> Corruption:
        """Return the corruption of what `level` is given: salt and pepper take the bounds of hidden codes."""
        if level > 1 and isinstance(self.corruption, SaltAndPepper):
            return self.corruption.model_copy(update={"bounds": RANGES[self.settings.activation]})
        return self.corruption

    def decode(self, z: Float[Tensor, "*batch n_latents"]) -> Float[Tensor, "*batch d_in"]:
        """Return the reconstruction in raw units; with `residual` the correction to add to the input."""
        if not self.settings.residual:
            return super().decode(z)
        return self.step_size * self.decode_levels(z, self.levels) / self.normalizer.factor

    def denoise(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Return the cleaned rows, in raw units: the same as calling the model."""
        return self(x)

    def score(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Return the estimate of ∇ ln p_σ at `x`, per raw unit: factor · (r(x') − x') / σ².

        Raises RequestError for a corruption that is not gaussian.
        """
        if self.corruption.kind != "gaussian":
            raise RequestError(
                f"score: only gaussian corruption estimates a score, and this model's is {self.corruption.kind}"
            )
        shift = (self.denoise(x) - x) * self.normalizer.factor
        return self.normalizer.factor * shift / self.corruption.sigma**2

    def decoder_directions(self) -> Float[Tensor, "n_latents d_in"] | None:
        """Return the columns of a linear decoder in raw units (of the correction, with `residual`)."""
        directions = super().decoder_directions()
        return directions if directions is None or not self.settings.residual else directions * self.step_size
