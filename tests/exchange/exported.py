"""Autoencoders of saetool's own with random weights, sealed, for what is written to other tools."""

import json
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file

from saetool.artifacts import Artifact, Stage, digest_json, run_stage
from saetool.autoencoders.families import AutoencoderSettings, build
from saetool.autoencoders.sparse import SparseAutoencoder
from saetool.autoencoders.sparse_activations import BatchTopK, JumpRelu

D_IN, N = 6, 16
KINDS = {
    "relu": {"normalize": "center_scale"},
    "relu_none": {"normalize": "none"},
    "relu_layer_norm": {"normalize": "layer_norm"},
    "topk": {"normalize": "center_scale", "activation": {"kind": "topk", "k": 4}},
    "topk_scale": {"normalize": "scale", "activation": {"kind": "topk", "k": 4}},
    "batch_topk": {"normalize": "center_scale", "activation": {"kind": "batch_topk", "k": 3}},
    "matryoshka": {
        "normalize": "center_scale",
        "activation": {"kind": "batch_topk", "k": 3},
        "matryoshka": [4, 8],
    },
    "jump_relu": {
        "normalize": "center_scale",
        "activation": {"kind": "jump_relu"},
        "penalty": {"kind": "l0", "weight": 1.0},
    },
    "gated": {
        "normalize": "center_scale",
        "activation": {"kind": "gated"},
        "penalty": {"kind": "l1", "weight": 1.0},
    },
}


def random_model(kind: str) -> SparseAutoencoder:
    """Return a model of a kind whose every number is random, normalization included."""
    settings = TypeAdapter(AutoencoderSettings).validate_python({"kind": "sparse", "n_latents": N, **KINDS[kind]})
    model = build(settings, D_IN)
    assert isinstance(model, SparseAutoencoder)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.6)
        model.normalizer.factor.fill_(0.7 if "scale" in settings.normalize else 1.0)
        if settings.normalize == "center_scale":
            model.normalizer.mean.copy_(torch.randn(D_IN, generator=generator))
        if isinstance(model.activation, JumpRelu):
            model.activation.log_threshold.copy_(torch.randn(N, generator=generator) * 0.3 - 0.5)
        if isinstance(model.activation, BatchTopK):
            model.activation.running.fill_(0.4)
    return model.eval()


def sealed(model: SparseAutoencoder, out: Path, site: dict | None = None) -> Artifact:
    """Return a model as a sealed artifact."""
    content = {
        "family": "sparse",
        "settings": model.settings.model_dump(mode="json"),
        "d_in": model.d_in,
        "n_latents": model.n_latents,
        "site": site,
        "loss_convention": model.loss_convention(),
        "held_out": {"seed": 0, "share": 0.1},
        "trained_on": None,
        "tokens": 2048,
        "steps": 1,
        "final": {"fvu": 0.25, "l0": 4.0, "dead_share": 0.125},
    }

    def write(partial) -> dict:
        partial.write_tensors("model.safetensors", model.state_dict())
        return content

    return run_stage(Stage("autoencoder", {"training": {"lr": 0.001}, "seed": 0, "name": out.name}, write), out)


def structure(folder: Path) -> str:
    """Return the digest of an export's structure: its files, tensors with dtype and shape, and its config but metadata.

    This is what a tool needs to open it; the values are compared elsewhere.
    """
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            found[path.name] = {key: [str(t.dtype), list(t.shape)] for key, t in load_file(path).items()}
        else:
            config = json.loads(path.read_text())
            found[path.name] = {
                key: value for key, value in config.items() if key not in ("metadata", "saetool", "facts")
            }
    return digest_json(found)
