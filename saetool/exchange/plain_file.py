"""saetool's own plain layout, for tools that have none: `autoencoder.safetensors` and `autoencoder.json`.

The tensors are those of `plain.Plain` (one row a latent), the JSON says the activation and its numbers.
"""

from pathlib import Path
from typing import Any

from saetool.errors import RequestError
from saetool.exchange.files import agree, folder_of, latents_in_rows, read_json, read_safetensors
from saetool.exchange.plain import Plain
from saetool.exchange.sites import Claim

CONFIG, WEIGHTS = "autoencoder.json", "autoencoder.safetensors"
recognizes = folder_of(CONFIG, WEIGHTS)
_TENSORS = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold", "r_mag", "b_mag", "mean")
_NUMBERS = ("activation", "k", "relu", "normalization", "factor")


def read(path: Path, given: dict[str, Any]) -> Plain:
    config, tensors = read_json(path / CONFIG), read_safetensors(path / WEIGHTS)
    unknown = [key for key in tensors if key not in _TENSORS]
    numbers = {key: config[key] for key in _NUMBERS if key in config}
    if unknown or not {"W_enc", "b_enc", "W_dec", "b_dec"} <= set(tensors) or "activation" not in numbers:
        raise RequestError(f"{path}: not what saetool writes: {unknown[0] if unknown else 'something'} is amiss.")
    plain = Plain(
        **latents_in_rows(tensors)[0],
        **numbers,
        prefixes=tuple(config["prefixes"]) if config.get("prefixes") else None,
        claim=Claim(**config.get("claim", {})),
        facts=config.get("facts", {}),
    )
    agree(str(path), d_in=(config.get("d_in"), plain.d_in), n_latents=(config.get("n_latents"), plain.n_latents))
    return plain.saying(dtype="float32 weights", normalization=plain.normalization)


def write(plain: Plain, facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the files of an autoencoder by name: tensors, and JSON."""
    tensors = {key: getattr(plain, key) for key in _TENSORS if getattr(plain, key) is not None}
    config = {
        **{key: getattr(plain, key) for key in _NUMBERS},
        "formula": "z = f(W_enc (x' - b_dec) + b_enc); x_hat' = z W_dec + b_dec; x' = (x - mean) factor",
        "d_in": plain.d_in,
        "n_latents": plain.n_latents,
        "prefixes": plain.prefixes,
        "claim": plain.claim.as_json(),
        "facts": facts,
    }
    return {WEIGHTS: tensors, CONFIG: config}
