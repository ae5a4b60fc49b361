"""The linear autoencoder: z = W_e x + b_e, x̂ = W_d z + b_d. Its optimum is principal component analysis.

Baldi & Hornik 1989; Bourlard & Kamp 1988. The least mean squared error of width k is the sum of the covariance's
eigenvalues after the k-th; weights are unique only up to an invertible k × k matrix, so compare subspaces.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import model_validator
from scipy.linalg import subspace_angles
from torch import Tensor

from saetool.autoencoders.base import (
    UNKNOWN,
    Autoencoder,
    FamilySettings,
    Loss,
    Normalize,
    Normalizer,
    Stream,
    Training,
)
from saetool.autoencoders.layers import Chain
from saetool.autoencoders.reconstruction import squared_error
from saetool.errors import RequestError
from saetool.seeding import generator as seeded

# Directions whose variance is below this share of the largest one are rounding of a rank-deficient covariance.
RANK_TOLERANCE = 1e-12


@dataclass(frozen=True)
class Spectrum:
    """Principal components in float64: mean [d_in], values [d_in] descending, vectors [d_in, d_in] in columns."""

    mean: Float[Tensor, "d_in"]
    values: Float[Tensor, "d_in"]
    vectors: Float[Tensor, "d_in d_in"]

    def error(self, k: int) -> float:
        """Return the least mean squared error of any affine autoencoder of width `k`: the trailing eigenvalue sum."""
        return float(self.values[k:].sum())

    def angles(self, directions: Float[Tensor, "k d_in"]) -> Float[Tensor, "k"]:
        """Return the principal angles, in radians and descending, between the rows' span and the top k components."""
        span = directions.detach().double().cpu().T.numpy()
        return torch.from_numpy(subspace_angles(span, self.vectors[:, : span.shape[1]].cpu().numpy()))


def principal_components(stream: Stream) -> Spectrum:
    """Return the spectrum of the training rows, from one ordered pass that holds one block and one covariance.

    The covariance is divided by the number of rows, and sums are in float64.
    """
    shift: Tensor | None = None
    rows, total, products = 0, torch.zeros(()), torch.zeros(())
    for block in stream.ordered():
        block = block.double()
        if shift is None:
            # Any fixed point near the rows keeps the sums of squares free of cancellation.
            shift = block.mean(0)
            total, products = torch.zeros_like(shift), shift.new_zeros(shift.numel(), shift.numel())
        centered = block - shift
        rows += block.shape[0]
        total += centered.sum(0)
        products.addmm_(centered.T, centered)
    if shift is None:
        raise RequestError("no training rows to take principal components of: the stream is empty")
    offset = total / rows
    values, vectors = torch.linalg.eigh(products / rows - torch.outer(offset, offset))
    return Spectrum(shift + offset, values.flip(0).clamp_min(0), vectors.flip(1))


class LinearSettings(FamilySettings):
    """A linear autoencoder; `closed_form` needs no training step, `gradient` descends to the same subspace."""

    kind: Literal["linear"] = "linear"
    solver: Literal["closed_form", "gradient"] = "closed_form"
    tied: bool = False
    normalize: Normalize = "none"

    @model_validator(mode="after")
    def _closed_form_is_tied(self) -> "LinearSettings":
        if self.tied and self.solver == "closed_form":
            raise ValueError("tied: the closed form has W_d = W_eᵀ already; tied belongs to solver: gradient")
        return self


class Linear(Autoencoder):
    """z = W_e x + b_e, x̂ = W_d z + b_d, on raw or normalized activations."""

    spectrum: Tensor
    """Covariance eigenvalues of the normalized training rows, descending; zeros before `initialize` or `fit`."""

    def __init__(self, settings: LinearSettings, d_in: int):
        super().__init__()
        self.settings = settings
        self.d_in = d_in
        self.n_latents = settings.width(d_in)
        self.normalizer = Normalizer(d_in, settings.normalize)
        self.encoder = Chain([d_in, self.n_latents], ["identity"])
        self.decoder = Chain([self.n_latents, d_in], ["identity"], own_weights=not settings.tied)
        self.register_buffer("spectrum", torch.zeros(d_in))
        self._draw(seeded(0, "linear"))

    def _draw(self, generator: torch.Generator) -> None:
        self.encoder.reset(generator)
        self.decoder.reset(generator)

    def _decoder_weight(self) -> Float[Tensor, "d_in n_latents"]:
        return self.encoder.weights[0].T if self.settings.tied else self.decoder.weights[0]

    def _decode(self, z: Float[Tensor, "batch n_latents"]) -> Float[Tensor, "batch d_in"]:
        return self.decoder(z, [self._decoder_weight()])

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch n_latents"]:
        """Return W_e x' + b_e of raw activations."""
        return self.encoder(self.normalizer(x.to(self.spectrum)))

    def decode(self, z: Float[Tensor, "batch n_latents"]) -> Float[Tensor, "batch d_in"]:
        """Return the reconstruction in raw units."""
        return self.normalizer.inverse(self._decode(z))

    def loss(self, x: Float[Tensor, "batch d_in"], step: int, generator: torch.Generator) -> Loss:
        """Return the squared error of a batch."""
        x = self.normalizer(x.to(self.spectrum))
        return Loss({"reconstruction": squared_error(self._decode(self.encoder(x)), x)})

    def _spectrum_of(self, stream: Stream) -> Spectrum:
        """Fit the normalizer, then return the spectrum in the model's units and keep its eigenvalues."""
        self.normalizer.fit(stream.statistics())
        raw = principal_components(stream)
        mean = self.normalizer(raw.mean.to(self.spectrum)).to(raw.mean)
        spectrum = Spectrum(mean, raw.values * float(self.normalizer.factor) ** 2, raw.vectors)
        self.spectrum.copy_(spectrum.values)
        return spectrum

    def initialize(self, stream: Stream, generator: torch.Generator, training: Training = UNKNOWN) -> None:
        """Draw the weights, and start the biases where the mean reconstructs itself."""
        self._draw(generator)
        spectrum = self._spectrum_of(stream)
        with torch.no_grad():
            mean = spectrum.mean.to(self.encoder.weights[0])
            self.encoder.biases[0].copy_(-self.encoder.weights[0] @ mean)
            self.decoder.biases[0].copy_(mean)

    @torch.no_grad()
    def fit(self, stream: Stream) -> bool:
        """Set the top principal components, where the settings ask for the closed form.

        Directions without variance get no weight: with n_latents ≥ the rank this is the least squares map
        XXᵀ(XXᵀ)⁺ of centered rows, the projection on their span.
        """
        if self.settings.solver != "closed_form":
            return False
        spectrum = self._spectrum_of(stream)
        rank = int((spectrum.values > RANK_TOLERANCE * spectrum.values[0]).sum())
        kept = min(self.n_latents, rank)
        basis = spectrum.vectors.new_zeros(self.d_in, self.n_latents)
        basis[:, :kept] = spectrum.vectors[:, :kept]
        self.encoder.weights[0].copy_(basis.T)
        self.encoder.biases[0].copy_(-basis.T @ spectrum.mean)
        self.decoder.weights[0].copy_(basis)
        self.decoder.biases[0].copy_(spectrum.mean)
        return True

    def decoder_directions(self) -> Float[Tensor, "n_latents d_in"]:
        """Return the rows W_d,j / factor: what a unit of each latent adds in raw units."""
        return self._decoder_weight().detach().T / self.normalizer.factor

    def encoder_directions(self) -> Float[Tensor, "n_latents d_in"]:
        """Return the rows of W_e, as they act on raw activations."""
        return self.encoder.weights[0].detach() * self.normalizer.factor
