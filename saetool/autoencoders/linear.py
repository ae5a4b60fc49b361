"""The linear autoencoder: z = W_enc x + b_enc, x̂ = W_decᵀ z + b_dec. Its optimum is principal component analysis.

Baldi & Hornik 1989; Bourlard & Kamp 1988. The least mean squared error of width k is the sum of the covariance's
eigenvalues after the k-th; weights are unique only up to an invertible k × k matrix, so compare subspaces.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import model_validator
from scipy.linalg import subspace_angles
from torch import Tensor, nn

from saetool.autoencoders.base import (
    UNKNOWN,
    Autoencoder,
    FamilySettings,
    Loss,
    Normalize,
    Normalizer,
    Step,
    Stream,
    Training,
    of_width,
)
from saetool.autoencoders.layers import squared_error
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

    def under(self, normalizer: Normalizer) -> "Spectrum":
        """Return the spectrum of the same rows as a normalizer maps them."""
        mean = normalizer(self.mean.to(normalizer.mean)).to(self.mean)
        return Spectrum(mean, self.values * float(normalizer.factor) ** 2, self.vectors)

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
            raise ValueError("tied: the closed form has W_dec = W_enc already; tied belongs to solver: gradient")
        return self


class Linear(Autoencoder):
    """z = W_enc x + b_enc, x̂ = W_decᵀ z + b_dec, on raw or normalized activations."""

    spectrum: Tensor
    """Covariance eigenvalues of the normalized training rows, descending; zeros before `initialize` or `fit`."""

    def __init__(self, settings: LinearSettings, d_in: int):
        super().__init__()
        self.settings = settings
        self.d_in = d_in
        self.n_latents = settings.width(d_in)
        self.normalizer = Normalizer(d_in, settings.normalize)
        self.W_enc = nn.Parameter(torch.empty(self.n_latents, d_in))
        self.b_enc = nn.Parameter(torch.empty(self.n_latents))
        if not settings.tied:
            self.W_dec = nn.Parameter(torch.empty(self.n_latents, d_in))
        self.b_dec = nn.Parameter(torch.empty(d_in))
        self.register_buffer("spectrum", torch.zeros(d_in))
        self._draw(seeded(0, "linear"))

    @torch.no_grad()
    def _draw(self, generator: torch.Generator) -> None:
        """Draw the weights (Glorot & Bengio 2010), and zero the biases."""
        nn.init.xavier_uniform_(self.W_enc, generator=generator)
        if not self.settings.tied:
            drawn = torch.empty_like(self.W_dec.T, memory_format=torch.contiguous_format)
            self.W_dec.copy_(nn.init.xavier_uniform_(drawn, generator=generator).T)
        self.b_enc.zero_()
        self.b_dec.zero_()

    def _encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        return nn.functional.linear(x, self.W_enc, self.b_enc)

    def _decoder(self) -> Float[Tensor, "n_latents d_in"]:
        return self.W_enc if self.settings.tied else self.W_dec

    def _decode(self, z: Float[Tensor, "*batch n_latents"]) -> Float[Tensor, "*batch d_in"]:
        return nn.functional.linear(z, self._decoder().T, self.b_dec)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        """Return W_enc x' + b_enc of raw activations."""
        return self._encode(self.normalizer(of_width(x, self.d_in, "activations").to(self.spectrum)))

    def decode(self, z: Float[Tensor, "*batch n_latents"]) -> Float[Tensor, "*batch d_in"]:
        return self.normalizer.inverse(self._decode(of_width(z, self.n_latents, "codes").to(self.spectrum)))

    def loss(self, x: Float[Tensor, "batch d_in"], step: Step, generator: torch.Generator) -> Loss:
        """Return the squared error of a batch."""
        x = self.normalizer(x.to(self.spectrum))
        return Loss({"reconstruction": squared_error(self._decode(self._encode(x)), x)})

    def _spectrum_of(self, stream: Stream) -> Spectrum:
        """Fit the normalizer, then return the spectrum in the model's units and keep its eigenvalues."""
        self.normalizer.fit(stream.statistics())
        spectrum = principal_components(stream).under(self.normalizer)
        self.spectrum.copy_(spectrum.values)
        return spectrum

    def initialize(self, stream: Stream, generator: torch.Generator, training: Training = UNKNOWN) -> None:
        """Draw the weights, and start the biases where the mean reconstructs itself."""
        self._draw(generator)
        spectrum = self._spectrum_of(stream)
        with torch.no_grad():
            mean = spectrum.mean.to(self.W_enc)
            self.b_enc.copy_(-self.W_enc @ mean)
            self.b_dec.copy_(mean)

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
        self.W_enc.copy_(basis.T)
        self.b_enc.copy_(-basis.T @ spectrum.mean)
        self.W_dec.copy_(basis.T)
        self.b_dec.copy_(spectrum.mean)
        return True

    def decoder_directions(self) -> Float[Tensor, "n_latents d_in"]:
        """Return the rows W_dec,j / factor: what a unit of each latent adds in raw units."""
        return self._decoder().detach() / self.normalizer.factor

    def encoder_directions(self) -> Float[Tensor, "n_latents d_in"]:
        """Return the rows of W_enc, as they act on raw activations."""
        return self.W_enc.detach() * self.normalizer.factor
