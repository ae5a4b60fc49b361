"""SAELens: `cfg.json` and `sae_weights.safetensors` (read: versions 5, 6; written: 6).

Its W_enc is [d_in, d_sae]. Versions before 6 name things otherwise and keep the activation in `activation_fn_str`.
A checkpoint of a training may stand unfolded beside `activation_scaler.json`, the factor of the expected norm.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saetool.errors import RequestError
from saetool.exchange.files import FLAT, GATED, agree, folder_of, latents_in_rows, read_json, read_safetensors, take
from saetool.exchange.plain import Activation, Plain, with_unit_decoder, without_decoder_bias_on_input
from saetool.exchange.sites import claim_of_hook

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
recognizes = folder_of(CONFIG, WEIGHTS)
_ARCHITECTURES: dict[str, tuple[Activation, dict[str, str]]] = {
    "standard": ("relu", FLAT),
    "topk": ("topk", FLAT),
    "jumprelu": ("jump_relu", {**FLAT, "threshold": "threshold"}),
    "gated": ("gated", GATED),
    "batchtopk": ("batch_topk", {**FLAT, "topk_threshold": "threshold"}),
    "matryoshka_batchtopk": ("batch_topk", {**FLAT, "topk_threshold": "threshold"}),
}
"""Each architecture's activation, its tensors and their names here; the BatchTopK ones are those of a training, for
inference it writes them as JumpReLU."""
_NOT_FACTS = ("metadata", "device", "dtype", "model_from_pretrained_kwargs")


def read(path: Path, given: dict[str, Any]) -> Plain:
    """Read an autoencoder; raises RequestError for architectures and options that the sparse family does not have."""
    config = _config(path)
    architecture = config["architecture"]
    name = str(path / WEIGHTS)
    if architecture not in _ARCHITECTURES:
        raise RequestError(f"{path / CONFIG}: architecture {architecture!r} is none of {', '.join(_ARCHITECTURES)}.")
    activation, keys = _ARCHITECTURES[architecture]
    found = read_safetensors(path / WEIGHTS)
    scale = found.pop("scaling_factor", None)  # versions 3 to 5; all ones where it was not fine-tuned
    tensors = take(found, keys, name)
    if scale is not None and not torch.equal(scale, torch.ones_like(scale)):
        raise RequestError(f"{name}: fine-tuned with a scaling_factor, which is not read.")
    # Its own inference rounds a BatchTopK threshold, kept in float64, in the same way.
    threshold = {"threshold": tensors.pop("threshold").float()} if "threshold" in tensors else {}
    weights, dtype = latents_in_rows(tensors, "W_enc")
    plain = Plain(
        **weights,
        **threshold,
        activation=activation,
        k=_k(config),
        prefixes=tuple(config.get("matryoshka_widths") or ()) or None,
        claim=claim_of_hook(config.get("model_name"), config.get("hook_name")),
        facts={key: value for key, value in config.items() if key not in _NOT_FACTS},
    )
    agree(name, d_in=(config.get("d_in"), plain.d_in), d_sae=(config.get("d_sae"), plain.n_latents))
    plain = _normalized(plain.saying(dtype=dtype), config, path)
    if config.get("rescale_acts_by_decoder_norm"):
        plain = with_unit_decoder(plain).saying(decoder_norms="folded into W_enc and b_enc (rescale_acts)")
    if not config.get("apply_b_dec_to_input", True):
        return without_decoder_bias_on_input(plain)
    return plain.saying(decoder_bias="subtracted from the input (apply_b_dec_to_input)")


def _config(path: Path) -> dict[str, Any]:
    """Return the config in the names of version 6, its metadata beside the rest."""
    there = read_json(path / CONFIG)
    old = {"hook_point": "hook_name", "activation_fn": "activation_fn_str"}
    config = {old.get(str(key), str(key)): value for key, value in {**(there.get("metadata") or {}), **there}.items()}
    config.setdefault("architecture", "standard")
    function = config.get("activation_fn_str", "relu")
    if function == "topk" and config["architecture"] in ("standard", "topk"):
        config["architecture"] = "topk"
        config.setdefault("k", (config.get("activation_fn_kwargs") or {}).get("k"))
        config["rescale_acts_by_decoder_norm"] = False
    elif function == "topk" and config["architecture"] in ("jumprelu", "gated"):
        raise RequestError(
            f"{path / CONFIG}: {config['architecture']} with a top-k for its ReLU is none of the sparse family's."
        )
    elif function not in ("relu", "topk"):
        raise RequestError(f"{path / CONFIG}: activation {function!r} is not one of the sparse family's.")
    if config["architecture"] in ("topk", "batchtopk", "matryoshka_batchtopk"):
        config.setdefault("rescale_acts_by_decoder_norm", config["architecture"] != "topk")
    if config.get("reshape_activations", "none") != "none" or "hook_z" in str(config.get("hook_name")):
        raise RequestError(f"{path / CONFIG}: reads attention heads (hook_z), which are no site here.")
    if config.get("finetuning_scaling_factor"):
        raise RequestError(f"{path / CONFIG}: fine-tuned with a scaling_factor, which is not read.")
    return config


def _k(config: dict[str, Any]) -> int | None:
    k = config.get("k")
    # One that is not whole only says how it was trained: a threshold decides at inference.
    return None if k is None else max(1, round(float(k)))


def _normalized(plain: Plain, config: dict[str, Any], path: Path) -> Plain:
    kind = config.get("normalize_activations") or "none"
    if kind is True:  # before version 3
        kind = "expected_average_only_in"
    match kind:
        case "none":
            return plain.saying(normalization="none")
        case "layer_norm":
            return replace(plain, normalization="layer_norm").saying(normalization="layer norm, each row's own")
        case "expected_average_only_in":
            if not (path / SCALER).is_file():
                raise RequestError(
                    f"{path / CONFIG}: was trained on activations scaled to an expected norm, and the factor is not in "
                    f"the file ({SCALER} would hold it). Fold it in SAELens (fold_activation_norm_scaling_factor)."
                )
            factor = float(read_json(path / SCALER).get("scaling_factor") or 1.0)
            said = f"expected norm: x · {factor:.6g}"
            return replace(plain, normalization="scale", factor=factor).saying(normalization=said)
    raise RequestError(f"{path / CONFIG}: normalize_activations {kind!r} is not one that can be represented.")


def write(plain: Plain, facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the files of an autoencoder by name: tensors, and JSON."""
    theirs = {"relu": "standard", "jump_relu": "jumprelu", "batch_topk": "jumprelu"}
    architecture = theirs.get(plain.activation, plain.activation)
    if not plain.relu:
        raise RequestError("SAELens holds no TopK that keeps negative values.")
    tensors: dict[str, Tensor] = {name: getattr(plain, ours) for name, ours in _ARCHITECTURES[architecture][1].items()}
    tensors["W_enc"] = plain.W_enc.T.contiguous()
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].expand_as(plain.b_enc).clone()
    config = {
        "architecture": architecture,
        "d_in": plain.d_in,
        "d_sae": plain.n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "layer_norm" if plain.normalization == "layer_norm" else "none",
        "reshape_activations": "none",
        **({"k": plain.k, "rescale_acts_by_decoder_norm": False} if architecture == "topk" else {}),
        "metadata": {
            "sae_lens_version": "6.0.0",
            "model_name": plain.claim.model,
            "hook_name": plain.claim.hook,
            "saetool": facts,
        },
    }
    return {WEIGHTS: tensors, CONFIG: config}
