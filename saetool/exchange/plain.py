"""A sparse autoencoder in the form that every format is read into and written from.

    z = f(W_enc (x' − b_dec) + b_enc),  x_hat' = W_dec z + b_dec,  x' = normalized x

Readers build one, say in `converted` what they changed on the way, and never approximate: what this form cannot hold is
refused. All weights are float32 and hold one row a latent.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from saetool.errors import RequestError
from saetool.exchange.sites import Claim

Activation = Literal["relu", "topk", "batch_topk", "jump_relu", "gated"]
Normalization = Literal["none", "scale", "center_scale", "layer_norm"]


@dataclass(frozen=True, kw_only=True)
class Plain:
    """The numbers of one autoencoder, where it says it belongs, and what was done to its file's numbers."""

    W_enc: Float[Tensor, "n_latents d_in"]
    b_enc: Float[Tensor, "n_latents"]
    W_dec: Float[Tensor, "n_latents d_in"]
    b_dec: Float[Tensor, "d_in"]
    activation: Activation
    k: int | None = None
    """Of topk and batch_topk."""
    relu: bool = True
    """Of topk: whether negative ones among the k largest become 0."""
    threshold: Tensor | None = None
    """Of jump_relu [n_latents], of batch_topk []: a latent is active above it."""
    r_mag: Float[Tensor, "n_latents"] | None = None
    b_mag: Float[Tensor, "n_latents"] | None = None
    """Of gated: 1[a > 0] · max(exp(r_mag) (a − b_enc) + b_mag, 0)."""
    normalization: Normalization = "none"
    mean: Float[Tensor, "d_in"] | None = None
    factor: float = 1.0
    """Of scale and center_scale: x' = (x − mean) · factor."""
    prefixes: tuple[int, ...] | None = None
    """Sizes of Matryoshka prefixes; they change nothing but training."""
    claim: Claim = field(default_factory=Claim)
    """What the file says of the site."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the file says of its training, as JSON types."""
    converted: dict[str, str] = field(default_factory=dict)
    """By what changes numbers: how it was carried over."""

    @property
    def d_in(self) -> int:
        return self.W_enc.shape[1]

    @property
    def n_latents(self) -> int:
        return self.W_enc.shape[0]

    def saying(self, **converted: str) -> "Plain":
        """Return the same with more said of what was converted."""
        said = {key.replace("_", " "): words for key, words in converted.items()}
        return replace(self, converted={**self.converted, **said})

    def says_activation(self) -> str:
        """Say in words which latents are active: the activation with its k or thresholds."""
        match self.activation:
            case "topk":
                return f"TopK, k {self.k}" + ("" if self.relu else ", negative values kept")
            case "batch_topk":
                return f"BatchTopK, threshold {float(self.threshold or 0):.6g} (k {self.k} in training)"
            case "jump_relu" if self.threshold is not None:
                low, high = (float(bound) for bound in self.threshold.aminmax())
                return f"JumpReLU, thresholds {low:.6g} to {high:.6g}"
        return {"relu": "ReLU", "gated": "gated"}[self.activation]

    def check(self, name: str) -> "Plain":
        """Return it; raises RequestError, naming the source, where shapes or values cannot be right."""
        n, d = self.n_latents, self.d_in
        shapes = {"W_enc": (n, d), "b_enc": (n,), "W_dec": (n, d), "b_dec": (d,), "r_mag": (n,), "b_mag": (n,)}
        shapes |= {"mean": (d,), "threshold": () if self.activation == "batch_topk" else (n,)}
        for key, shape in shapes.items():
            tensor = getattr(self, key)
            if tensor is not None and tuple(tensor.shape) != shape:
                raise RequestError(f"{name}: {key} has shape {list(tensor.shape)} where {list(shape)} belongs.")
            if tensor is not None and not tensor.isfinite().all():
                raise RequestError(f"{name}: {key} is not finite everywhere.")
        if self.activation in ("topk", "batch_topk") and not (self.k and 0 < self.k <= n):
            raise RequestError(f"{name}: k is {self.k}, and there are {n} latents.")
        return self


def without_decoder_bias_on_input(plain: Plain) -> Plain:
    """Return the same for a file whose encoder sees x and not x − b_dec: b_enc + W_enc b_dec takes its place."""
    if not plain.b_dec.any():
        return plain.saying(decoder_bias="not subtracted from the input, and zero")
    shift = plain.W_enc.double() @ plain.b_dec.double()
    changed = {"b_enc": (plain.b_enc.double() + shift).float()}
    if plain.r_mag is not None and plain.b_mag is not None:  # the magnitude is a function of a − b_enc
        changed["b_mag"] = (plain.b_mag.double() + plain.r_mag.double().exp() * shift).float()
    said = "not subtracted from the input: W_enc b_dec was added to b_enc"
    return replace(plain, **changed).saying(decoder_bias=said)


def with_unit_decoder(plain: Plain) -> Plain:
    """Return the same function of x with decoder rows of norm 1 and codes that take their norms.

    A threshold or a k is one on the codes as they become.
    """
    norms = plain.W_dec.double().norm(dim=1).clamp_min(1e-12)
    scaled = {"W_enc": plain.W_enc.double() * norms[:, None], "b_enc": plain.b_enc.double() * norms}
    scaled["W_dec"] = plain.W_dec.double() / norms[:, None]
    if plain.b_mag is not None:
        scaled["b_mag"] = plain.b_mag.double() * norms
    return replace(plain, **{key: tensor.float() for key, tensor in scaled.items()})


def without_normalization(plain: Plain) -> Plain:
    """Return the same function of raw x, mean and scale folded into the weights; layer norm cannot be.

    W_enc' = factor · W_enc, W_dec' = W_dec / factor, b_dec' = b_dec / factor + mean.
    """
    if plain.normalization == "none":
        return plain
    if plain.normalization == "layer_norm":
        raise RequestError("layer norm divides each row by its own deviation, which no weight can hold.")
    mean = torch.zeros(plain.d_in) if plain.mean is None else plain.mean
    return replace(
        plain,
        W_enc=(plain.W_enc.double() * plain.factor).float(),
        W_dec=(plain.W_dec.double() / plain.factor).float(),
        b_dec=(plain.b_dec.double() / plain.factor + mean.double()).float(),
        normalization="none",
        mean=None,
        factor=1.0,
    ).saying(normalization=f"{plain.normalization} (factor {plain.factor:.6g}) folded into W_enc, W_dec and b_dec")
