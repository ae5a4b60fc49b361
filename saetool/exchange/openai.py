"""OpenAI's sparse_autoencoder: a .pt state dict with `pre_bias`, `latent_bias` and the activation's name in it.

Where the activation is TopK its inputs are layer-normed, each row by itself.
"""

from pathlib import Path
from typing import Any

from saetool.errors import RequestError
from saetool.exchange.files import latents_in_rows, read_torch, take
from saetool.exchange.plain import Plain

_KEYS = {"encoder.weight": "W_enc", "latent_bias": "b_enc", "decoder.weight": "W_dec", "pre_bias": "b_dec"}
_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")


def recognizes(path: Path) -> bool:
    return path.is_file() and path.suffix == ".pt" and {"pre_bias", "latent_bias"} <= set(read_torch(path, str(path)))


def read(path: Path, given: dict[str, Any]) -> Plain:
    """Read an autoencoder; raises RequestError for activations that the sparse family does not have."""
    state = read_torch(path, str(path))
    kind, of_it = state.pop("activation", "ReLU"), state.pop("activation_state_dict", {})
    if "decoder.weight" not in state and "encoder.weight" in state:  # tied
        state["decoder.weight"] = state["encoder.weight"].T
    weights, dtype = latents_in_rows(take(state, _KEYS, str(path), ignored=_STATISTICS), "W_dec")
    if kind == "ReLU":
        plain = Plain(**weights, activation="relu").saying(normalization="none")
    elif kind == "TopK":
        after = of_it.get("postact_fn", "ReLU")
        if after not in ("ReLU", "Identity"):
            raise RequestError(f"{path}: TopK followed by {after!r} is not one of the sparse family's.")
        numbers: dict[str, Any] = {"k": int(of_it["k"]), "relu": after == "ReLU", "normalization": "layer_norm"}
        plain = Plain(**weights, activation="topk", **numbers).saying(normalization="layer norm, each row's own")
    else:
        raise RequestError(f"{path}: activation {kind!r} is not one of the sparse family's.")
    return plain.saying(dtype=dtype, decoder_bias="subtracted from the input")
