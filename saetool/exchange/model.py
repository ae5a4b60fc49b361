"""From a plain autoencoder to one of the sparse family and back: the one place that knows the model's own names."""

from typing import Any

import torch
from pydantic import ValidationError

from saetool.autoencoders.base import Autoencoder
from saetool.autoencoders.sparse import SparseAutoencoder
from saetool.autoencoders.sparse_activations import BatchTopK, Gated, JumpRelu
from saetool.autoencoders.sparse_settings import SparseSettings
from saetool.errors import RequestError
from saetool.exchange.plain import Plain

_WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")
_GATES = {"r_mag": "log_scale", "b_mag": "magnitude_bias"}
_LEAST = torch.finfo(torch.float32).smallest_normal * torch.finfo(torch.float32).eps
"""The smallest positive float32. Thresholds are kept as logarithms, and nothing lies between 0 and this."""
_PENALTIES = {"jump_relu": {"kind": "l0", "weight": 0.0}, "gated": {"kind": "l1", "weight": 0.0}}
"""What training them needs; nobody knows what theirs would be here."""


def settings_of(plain: Plain) -> SparseSettings:
    """Return the sparse family's settings for a plain autoencoder."""
    activation: dict[str, object] = {"kind": plain.activation if plain.relu else "signed_topk"}
    if plain.activation in ("topk", "batch_topk"):
        activation["k"] = plain.k
    settings = {
        "kind": "sparse",
        "n_latents": plain.n_latents,
        "normalize": plain.normalization,
        "activation": activation,
        "penalty": _PENALTIES.get(plain.activation, {"kind": "none"}),
        "matryoshka": tuple(size for size in plain.prefixes or () if size < plain.n_latents) or None,
    }
    try:
        return SparseSettings.model_validate(settings)
    except ValidationError as error:
        raise RequestError(f"not one of the sparse family: {error.errors()[0]['msg']}") from None


@torch.no_grad()
def to_model(plain: Plain) -> SparseAutoencoder:
    """Return the model of a plain autoencoder, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):  # what it draws is overwritten
        model = SparseAutoencoder(settings_of(plain), plain.d_in)
    for name in _WEIGHTS:
        getattr(model, name).copy_(getattr(plain, name))
    if plain.mean is not None:
        model.normalizer.mean.copy_(plain.mean)
    model.normalizer.factor.fill_(plain.factor)
    activation = model.activation
    if isinstance(activation, Gated):
        for ours, name in _GATES.items():
            getattr(activation, name).copy_(getattr(plain, ours))
    if isinstance(activation, JumpRelu):
        assert plain.threshold is not None
        activation.log_threshold.copy_(plain.threshold.double().clamp_min(_LEAST).log())
    if isinstance(activation, BatchTopK):
        assert plain.threshold is not None
        activation.running.copy_(plain.threshold)  # before the first update the threshold is this
    return model.eval()


@torch.no_grad()
def from_model(model: Autoencoder, name: str) -> Plain:
    """Return the plain form of a model; raises RequestError for what it cannot hold."""
    if not isinstance(model, SparseAutoencoder):
        raise RequestError(f"{name}: not one of the sparse family, and no other format holds anything else.")
    settings, activation = model.settings, model.activation
    kind = settings.activation.kind
    if kind not in ("relu", "topk", "signed_topk", "batch_topk", "jump_relu", "gated"):
        raise RequestError(f"{name}: activation {kind} is in no other format.")
    extra: dict[str, Any] = {}
    if isinstance(activation, Gated):
        extra = {ours: getattr(activation, theirs).detach().clone() for ours, theirs in _GATES.items()}
    if isinstance(activation, JumpRelu):
        extra = {"threshold": activation.log_threshold.detach().exp()}
    if isinstance(activation, BatchTopK):
        extra = {"threshold": activation.threshold().detach().clone()}
    weights: dict[str, Any] = {name: getattr(model, name).detach().clone() for name in _WEIGHTS}
    scaled = settings.normalize in ("scale", "center_scale")
    return Plain(
        **weights,
        **extra,
        activation="topk" if kind == "signed_topk" else kind,
        k=getattr(settings.activation, "k", None),
        relu=kind != "signed_topk",
        normalization=settings.normalize,
        mean=model.normalizer.mean.clone() if scaled else None,
        factor=float(model.normalizer.factor) if scaled else 1.0,
        prefixes=None if model.prefixes is None else tuple(model.prefixes),
    )
