"""dictionary_learning: `ae.pt` (a state dict) and `config.json`, whose trainer names the class.

Its loader scales AutoEncoder's decoder columns to norm 1 and the encoder with them, and no other class's; the same is
done here, so that codes are those its users see.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saetool.errors import RequestError
from saetool.exchange.files import FLAT, agree, float32, folder_of, latents_in_rows, read_json, read_torch, take
from saetool.exchange.plain import Activation, Plain, with_unit_decoder, without_decoder_bias_on_input
from saetool.exchange.sites import Claim

CONFIG, WEIGHTS = "config.json", "ae.pt"
recognizes = folder_of(CONFIG, WEIGHTS)
_LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}
_CUT = {"k": "k", "threshold": "threshold"}
_GATES = {"gate_bias": "b_enc", "r_mag": "r_mag", "mag_bias": "b_mag", "decoder_bias": "b_dec"}
_CLASSES: dict[str, tuple[Activation, dict[str, str]]] = {
    "AutoEncoder": ("relu", {**_LINEAR, "bias": "b_dec"}),
    "AutoEncoderNew": ("relu", {**_LINEAR, "decoder.bias": "b_dec"}),
    "GatedAutoEncoder": ("gated", {"encoder.weight": "W_enc", "decoder.weight": "W_dec", **_GATES}),
    "JumpReluAutoEncoder": ("jump_relu", {**FLAT, "threshold": "threshold"}),
    "AutoEncoderTopK": ("topk", {**_LINEAR, "b_dec": "b_dec", **_CUT}),
    "BatchTopKSAE": ("batch_topk", {**_LINEAR, "b_dec": "b_dec", **_CUT}),
    "MatryoshkaBatchTopKSAE": ("batch_topk", {**FLAT, **_CUT, "group_sizes": "group_sizes"}),
}
"""Each class's activation, its tensors and their names here."""


def read(path: Path, given: dict[str, Any]) -> Plain:
    """Read an autoencoder; raises RequestError for classes that the sparse family does not have."""
    trainer = read_json(path / CONFIG).get("trainer")
    kind, name = trainer.get("dict_class") if isinstance(trainer, dict) else None, str(path / WEIGHTS)
    if kind not in _CLASSES or not isinstance(trainer, dict):
        raise RequestError(f"{path / CONFIG}: trainer.dict_class {kind!r} is none of {', '.join(_CLASSES)}.")
    found, (activation, keys) = read_torch(path / WEIGHTS, name), _CLASSES[kind]
    keys = {theirs: ours for theirs, ours in keys.items() if theirs not in _CUT or theirs in found}
    tensors = take(found, keys, name)
    k, threshold = tensors.pop("k", None), tensors.pop("threshold", None)
    groups = tensors.pop("group_sizes", None)
    # A Linear's decoder has its latents in columns; of the others, the encoder.
    weights, dtype = latents_in_rows(tensors, "W_enc" if "Jump" in kind or "Matryoshka" in kind else "W_dec")
    plain = Plain(
        **weights,
        activation=activation,
        k=trainer.get("k") if k is None else int(k),
        threshold=_threshold(activation, threshold, name),
        prefixes=None if groups is None else tuple(groups.cumsum(0).tolist()),
        claim=_claim(trainer),
        facts=trainer,
    )
    agree(name, k=(trainer.get("k"), plain.k), dict_size=(trainer.get("dict_size"), plain.n_latents))
    agree(name, activation_dim=(trainer.get("activation_dim"), plain.d_in))
    plain = plain.saying(dtype=dtype, normalization="none (its trainer folds its own)")
    norms = plain.W_dec.norm(dim=1)
    if kind == "AutoEncoder" and not torch.allclose(norms, torch.ones_like(norms)):
        plain = with_unit_decoder(plain).saying(decoder_norms="folded into the encoder, as its own loader does")
    if kind in ("AutoEncoderNew", "JumpReluAutoEncoder"):
        return without_decoder_bias_on_input(plain)
    return plain.saying(decoder_bias="subtracted from the input")


def _threshold(activation: Activation, threshold: Tensor | None, name: str) -> Tensor | None:
    if activation in ("relu", "gated", "topk"):
        return None  # of topk its k decides; the threshold is kept for another mode
    if threshold is None:
        raise RequestError(f"{name}: lacks 'threshold', without which the batch would decide who is active.")
    # What is not positive is 0 in any case, so a threshold below 0 is none.
    return float32(threshold, "threshold").clamp_min(0)


def _claim(trainer: dict[str, Any]) -> Claim:
    layer, module = trainer.get("layer"), trainer.get("submodule_name")
    return Claim(
        trainer.get("lm_name"),
        layer + 1 if isinstance(layer, int) and (module is None or "resid" in str(module)) else None,
        hook=None if layer is None else f"{module or 'resid_post'} of block {layer} (from 0)",
    )
