"""ViT-Prisma: `config.json` beside one .pt of weights; or an older .pt that holds its config object too.

The object's classes are replaced by inert ones that take attributes and do nothing else. `hook_point` names the site,
`cls_token_only` and `use_patches_only` the tokens.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from saetool.errors import RequestError
from saetool.exchange.files import FLAT, GATED, agree, latents_in_rows, read_json, read_torch, take
from saetool.exchange.plain import Plain
from saetool.exchange.sites import claim_of_hook
from saetool.vision.settings import Tokens

CONFIG = "config.json"
BESIDE = (CONFIG,)
"""Files beside the one of weights that count too."""
_KEYS = {"standard": FLAT, "gated": GATED}
_CLASSES = ("sae.config.VisionModelSAERunnerConfig", "configs.HookedViTConfig.HookedViTConfig")
"""Of the config that an older file holds, below `vit_prisma`."""


class _Inert:
    """Stands for a config class of ViT-Prisma: its attributes, none of its code."""


def recognizes(path: Path) -> bool:
    """Say whether a file, or a folder with one file of weights, is in this format."""
    config, tensors = _parts(_weights(path))
    return "hook_point_layer" in config and "W_enc" in tensors


def read(path: Path, given: dict[str, Any]) -> Plain:
    """Read an autoencoder; raises RequestError for architectures that the sparse family does not have."""
    weights = _weights(path)
    config, tensors = _parts(weights)
    name, architecture = str(weights), config.get("architecture", "standard")
    if architecture not in _KEYS:
        raise RequestError(f"{name}: architecture {architecture!r} is none of {', '.join(_KEYS)}.")
    function = config.get("activation_fn_str", "relu")
    if function not in ("relu", "topk") or (function == "topk" and architecture == "gated"):
        raise RequestError(f"{name}: activation {function!r} is not one of the sparse family's.")
    # A gated one carries b_enc without using it.
    taken = take(tensors, _KEYS[architecture], name, ignored=("b_enc",) if architecture == "gated" else ())
    weights, dtype = latents_in_rows(taken, "W_enc")
    plain = Plain(
        **weights,
        activation="gated" if architecture == "gated" else function,
        k=(config.get("activation_fn_kwargs") or {}).get("k") if function == "topk" else None,
        claim=claim_of_hook(config.get("model_name"), _hook(config), _tokens(config)),
        facts={key: value for key, value in config.items() if isinstance(value, str | int | float | bool)},
    )
    agree(name, d_in=(config.get("d_in"), plain.d_in), d_sae=(config.get("d_sae"), plain.n_latents))
    plain = plain.saying(dtype=dtype, decoder_bias="subtracted from the input")
    kind = config.get("normalize_activations") or "none"
    if kind == "layer_norm":
        return replace(plain, normalization="layer_norm").saying(normalization="layer norm, each row's own")
    if kind not in ("none", "None"):
        raise RequestError(f"{name}: normalize_activations {kind!r} is not one that can be represented.")
    return plain.saying(normalization="none")


def _weights(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(path.glob("*.pt")) if path.is_dir() else []
    if len(found) != 1:
        raise RequestError(f"{path}: holds {len(found)} files .pt; name the one to read.")
    return found[0]


def _parts(weights: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return config and tensors, from one file or two."""
    held = read_torch(weights, str(weights), [(_Inert, f"vit_prisma.{name}") for name in _CLASSES])
    inside = vars(held["cfg"]) if isinstance(held.get("cfg"), _Inert) else None
    beside = weights.parent / CONFIG
    config = read_json(beside) if beside.is_file() else inside
    if config is None:
        raise RequestError(f"{weights}: has no config, neither inside nor beside it ({CONFIG}).")
    return config, dict(held.get("state_dict", held))


def _hook(config: dict[str, Any]) -> str:
    kind = config.get("layer_subtype") or config.get("hook_point_type")
    if kind is None and config.get("hook_point"):
        return str(config["hook_point"])
    return f"blocks.{config.get('hook_point_layer')}.{kind or 'hook_mlp_out'}"


def _tokens(config: dict[str, Any]) -> Tokens:
    if config.get("cls_token_only"):
        return "cls"
    return "patches" if config.get("use_patches_only") else "all"
