"""sparsify (EleutherAI): `cfg.json` and `sae.safetensors`; TopK, and nothing else the sparse family has.

A folder is named after the hook point: `layers.5` is the output of the sixth block.
"""

from pathlib import Path
from typing import Any

from saetool.errors import RequestError
from saetool.exchange.files import agree, folder_of, latents_in_rows, read_json, read_safetensors, take
from saetool.exchange.plain import Plain
from saetool.exchange.sites import claim_of_hook

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
recognizes = folder_of(CONFIG, WEIGHTS)
_KEYS = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}


def read(path: Path, given: dict[str, Any]) -> Plain:
    """Read an autoencoder; raises RequestError for transcoders and GroupMax."""
    config, name = read_json(path / CONFIG), str(path / WEIGHTS)
    if config.get("transcode") or config.get("skip_connection"):
        raise RequestError(
            f"{path / CONFIG}: a transcoder: it predicts one site from another, which is no autoencoder."
        )
    if config.get("signed"):  # of early versions: the k largest in size, negative ones too
        raise RequestError(f"{path / CONFIG}: signed TopK is not one of the sparse family's.")
    if config.get("activation", "topk") != "topk":
        raise RequestError(f"{path / CONFIG}: activation {config['activation']!r} is not one of the sparse family's.")
    weights, dtype = latents_in_rows(take(read_safetensors(path / WEIGHTS), _KEYS, name))
    claim = claim_of_hook(None, path.name)
    plain = Plain(**weights, activation="topk", k=config.get("k"), claim=claim, facts=config)
    latents = config.get("num_latents") or (config.get("expansion_factor") or 0) * config.get("d_in", 0) or None
    agree(name, d_in=(config.get("d_in"), plain.d_in), num_latents=(latents, plain.n_latents))
    return plain.saying(dtype=dtype, normalization="none", decoder_bias="subtracted from the input")


def write(plain: Plain, facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the files of an autoencoder by name: tensors, and JSON; raises RequestError for all but TopK."""
    if plain.activation != "topk" or not plain.relu:
        raise RequestError(f"sparsify holds TopK autoencoders only, and this one's activation is {plain.activation}.")
    if plain.normalization == "layer_norm":
        raise RequestError("sparsify normalizes nothing, and layer norm divides each row by its own deviation.")
    config = {
        "activation": "topk",
        "expansion_factor": max(1, plain.n_latents // plain.d_in),
        "normalize_decoder": False,
        "num_latents": plain.n_latents,
        "k": plain.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": plain.d_in,
        "saetool": facts,
    }
    return {WEIGHTS: {theirs: getattr(plain, ours) for theirs, ours in _KEYS.items()}, CONFIG: config}
