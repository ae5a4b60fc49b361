"""OpenAI's sparse_autoencoder: a .pt state dict with `pre_bias`, `latent_bias` and the activation's name in it.

Where the activation is TopK its inputs are layer-normed, each row by itself.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from saetool.errors import RequestError
from saetool.exchange.files import read_torch, take
from saetool.exchange.plain import Plain, all_float32
from saetool.exchange.sites import Claim

_KEYS = {"encoder.weight": "W_enc", "latent_bias": "b_enc", "decoder.weight": "W_dec", "pre_bias": "b_dec"}
_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


def recognizes(path: Path) -> bool:
    """Say whether a file is in this format."""
    if not path.is_file() or path.suffix != ".pt":
        return False
    try:
        return {"pre_bias", "latent_bias"} <= set(read_torch(path, str(path)))
    except RequestError:
        return False


def read(path: Path, given: dict[str, Any]) -> Plain:
    """Read an autoencoder; raises RequestError for activations that the sparse family does not have."""
    state = read_torch(path, str(path))
    kind, of_it = state.pop("activation", "ReLU"), state.pop("activation_state_dict", {})
    if "decoder.weight" not in state and "encoder.weight" in state:  # tied
        state["decoder.weight"] = state["encoder.weight"].T
    tensors = take(state, _KEYS, str(path), ignored=_STATISTICS)
    dtype = tensors["W_enc"].dtype
    weights = all_float32(tensors)
    weights["W_dec"] = weights["W_dec"].T.contiguous()
    if kind == "ReLU":
        plain = Plain(**weights, activation="relu", claim=Claim(given.get("model"))).saying(normalization="none")
    elif kind == "TopK":
        after = of_it.get("postact_fn", "ReLU")
        if after not in ("ReLU", "Identity"):
            raise RequestError(f"{path}: TopK followed by {after!r} is not one of the sparse family's.")
        plain = Plain(
            **weights, activation="topk", k=int(of_it["k"]), relu=after == "ReLU", claim=Claim(given.get("model"))
        )
        plain = replace(plain, normalization="layer_norm").saying(normalization="layer norm, each row's own")
    else:
        raise RequestError(f"{path}: activation {kind!r} is not one of the sparse family's.")
    return plain.saying(dtype=f"{dtype} weights, computed in float32", decoder_bias="subtracted from the input")
