"""overcomplete: a state dict (.pt, .pth or .safetensors) with a linear encoder, and what its constructor was given.

The file holds no sizes of the activation: `class` (SAE, TopKSAE, BatchTopKSAE, JumpSAE), `top_k`, the dictionary's
`normalization`, `running_threshold` and `delta` are given as key=value. In evaluation its dictionary is normalized and
multiplied once; a relaxed archetypal one is W·C + Λ.
"""

import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saetool.errors import RequestError
from saetool.exchange.files import agree, float32, read_safetensors, read_torch
from saetool.exchange.plain import Plain, without_decoder_bias_on_input

KEYS = ("class", "top_k", "normalization", "running_threshold", "delta", "input_shape", "nb_concepts")
"""What can be given."""
_CLASSES = ("SAE", "TopKSAE", "BatchTopKSAE", "JumpSAE")
_MLP = ("encoder.final_block.0.weight", "encoder.final_block.0.bias")
_OWN = ("encoder.weight", "encoder.bias")
_TINY = 1e-8
"""What it adds to a norm before dividing."""


def recognizes(path: Path) -> bool:
    return path.is_file() and path.suffix in (".pt", ".pth", ".safetensors") and _is_state(_state(path))


def _is_state(tensors: dict[str, Any]) -> bool:
    return "dictionary._weights" in tensors or "dictionary.C" in tensors


def _state(path: Path) -> dict[str, Any]:
    return read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path, str(path))


def read(path: Path, given: dict[str, Any]) -> Plain:
    """Read an autoencoder; raises RequestError for encoders that are not linear, and where `top_k` is not given."""
    held = _state(path)
    if not _is_state(held):
        raise RequestError(f"{path}: holds no dictionary of overcomplete (dictionary._weights, dictionary.C).")
    # Before anything is computed: in a half type its own arithmetic would round.
    floats = {key: value for key, value in held.items() if isinstance(value, Tensor) and value.is_floating_point()}
    tensors = held | {key: float32(value, key) for key, value in floats.items()}
    W_dec = _dictionary(tensors, given, str(path))
    n, d = W_dec.shape
    W_enc, b_enc = _encoder(tensors, W_dec, str(path))
    agree(str(path), input_shape=(given.get("input_shape"), d), nb_concepts=(given.get("nb_concepts"), n))
    plain = Plain(
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec,
        b_dec=torch.zeros(d),
        **_activation(tensors, given, path, n),
        facts={key: given[key] for key in KEYS if key in given},
    )
    said = "archetypal, W·C + Λ" if "dictionary.C" in tensors else given.get("normalization", "l2")
    plain = plain.saying(dtype="float32", normalization="none", dictionary=f"{said}, times its multiplier")
    return without_decoder_bias_on_input(plain)


def _dictionary(tensors: dict[str, Any], given: dict[str, Any], name: str) -> Float[Tensor, "n_latents d_in"]:
    """Return the dictionary as its evaluation mode fuses it."""
    multiplier = torch.exp(tensors.get("dictionary.multiplier", torch.zeros(())))
    if "dictionary.C" in tensors:
        points, mixing, relax = (tensors[f"dictionary.{key}"] for key in ("C", "W", "Relax"))
        mixing = mixing.relu()
        mixing = mixing / (mixing.sum(-1, keepdim=True) + _TINY)
        delta = float(given.get("delta", 1.0))
        relax = relax * torch.clamp(delta / relax.norm(dim=-1, keepdim=True), max=1)
        return float32((mixing @ points + relax) * multiplier, "dictionary")
    weights = tensors["dictionary._weights"]
    kind = given.get("normalization", "l2")
    match kind:
        case "l1" | "l2":
            weights = weights / (weights.norm(p=int(kind[1]), dim=1, keepdim=True) + _TINY)
        case "max_l1" | "max_l2":
            weights = weights / weights.norm(p=int(kind[-1]), dim=1, keepdim=True).amax(0, keepdim=True)
        case "identity":
            pass
        case _:
            raise RequestError(f"{name}: normalization {kind!r} is none of l2, max_l2, l1, max_l1, identity.")
    return float32(weights * multiplier, "dictionary")


def _encoder(tensors: dict[str, Any], W_dec: Tensor, name: str) -> tuple[Tensor, Tensor]:
    # A tied encoder holds the dictionary a second time.
    own = [key for key in tensors if key.startswith("encoder.") and not key.startswith("encoder.tied_to.")]
    for weight, bias in (_MLP, _OWN):
        if weight in tensors and set(own) <= {weight, bias}:
            W_enc = float32(tensors[weight], weight)
            return W_enc, float32(tensors.get(bias, torch.zeros(len(W_enc))), bias)
    if set(own) <= {_OWN[1]}:  # tied: the dictionary encodes
        return W_dec, float32(tensors.get(_OWN[1], torch.zeros(len(W_dec))), _OWN[1])
    raise RequestError(f"{name}: its encoder is not linear ({own[0]} …): the sparse family cannot hold it.")


def _activation(tensors: dict[str, Any], given: dict[str, Any], path: Path, n: int) -> dict[str, Any]:
    kind = given.get("class", "JumpSAE" if "thresholds" in tensors else None)
    kind = str(kind).removeprefix("RA")
    if kind not in _CLASSES:
        raise RequestError(f"{path}: the file does not say its class: give class= one of {', '.join(_CLASSES)}.")
    if ("thresholds" in tensors) != (kind == "JumpSAE"):
        raise RequestError(f"{path}: has {'' if 'thresholds' in tensors else 'no '}thresholds, so it is no {kind}.")
    if kind == "SAE":
        return {"activation": "relu"}
    if kind == "JumpSAE":
        return {"activation": "jump_relu", "threshold": _at_least(tensors["thresholds"].exp())}
    if "top_k" not in given:
        raise RequestError(f"{path}: the file does not say how many are active: give top_k=.")
    if kind == "TopKSAE":
        return {"activation": "topk", "k": int(given["top_k"])}
    if "running_threshold" not in given:
        raise RequestError(
            f"{path}: BatchTopKSAE keeps its running threshold outside the state dict: give running_threshold=."
        )
    # Its k is of a whole batch and only trained with: a threshold decides here.
    theta = _at_least(torch.tensor(float(given["running_threshold"])))
    return {"activation": "batch_topk", "k": min(n, int(given["top_k"])), "threshold": theta}


def _at_least(threshold: Tensor) -> Tensor:
    """Return the threshold that `above` needs where theirs is `at or above`: the float before."""
    return torch.nextafter(threshold.float(), torch.tensor(-math.inf))
