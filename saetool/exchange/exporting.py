"""From a sealed autoencoder to the files that another tool loads and computes the same from."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from saetool.activations.sites import name_site
from saetool.artifacts import Artifact, artifact_of
from saetool.artifacts.files import built_aside
from saetool.artifacts.sealing import partial_path
from saetool.artifacts.stage import place_beside
from saetool.autoencoders import families
from saetool.errors import RequestError, shown
from saetool.exchange.formats import WRITERS
from saetool.exchange.model import from_model
from saetool.exchange.plain import without_normalization
from saetool.exchange.sites import Claim


def export_autoencoder(
    autoencoder: str | os.PathLike | Artifact, out: str | os.PathLike, format: str
) -> dict[str, str]:
    """Write an autoencoder for another tool (`sae_lens`, `sparsify`, `safetensors`) and say what was converted.

    Normalization is folded into the weights, but for layer norm where the target has it. Training's facts go into the
    target's metadata. Raises RequestError where the target cannot hold it, or `out` is there already.

    >>> rows = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    >>> made = saetool.train(rows, kind="topk", k=4, n_latents=32, tokens=512, batch_size=64, out="runs/export/model")
    >>> sorted(saetool.export_autoencoder(made, "runs/export/for_sparsify", "sparsify"))
    ['normalization']
    """
    if not isinstance(format, str) or format not in WRITERS:
        name = format if isinstance(format, str) else shown(format)
        raise RequestError(f"--format {name}: none of {', '.join(WRITERS)}.")
    artifact = artifact_of(autoencoder, "autoencoder", "export_autoencoder")
    out = place_beside(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(f"{out}: is there already; choose another place (--out).")
    if partial_path(out).exists():
        raise RequestError(
            f"{partial_path(out)}: unfinished work on what is to stand there; choose another place (--out)."
        )
    plain = from_model(families.load(artifact), str(artifact.path))
    if (site := artifact.content["site"]) is not None:
        claim = Claim(site["backbone"], site["layer"] or site["module"], site["tokens"], site["module"])
        plain = replace(plain, claim=claim)
    if plain.normalization != "layer_norm" and format != "safetensors":
        plain = without_normalization(plain)
    if plain.activation == "batch_topk":
        plain = plain.saying(activation="BatchTopK with its inference threshold, as a JumpReLU of one threshold")
    _write(out, WRITERS[format].write(plain, _facts(artifact)))
    return plain.converted


def _facts(artifact: Artifact) -> dict[str, Any]:
    """Return what is known of the training, as JSON types."""
    content = artifact.content
    kept = ("settings", "loss_convention", "tokens", "steps", "final", "held_out", "site", "origin")
    facts = {key: content[key] for key in kept if content.get(key)}
    if content["site"] is not None:
        facts["site_name"] = name_site(content["site"])
    return {**facts, "autoencoder": artifact.id, "training": artifact.config.get("training", {})}


def _write(out: Path, files: dict[str, dict[str, Any]]) -> None:
    """Write all files, or none: they become `out` in one step."""
    from safetensors.torch import save

    with built_aside(out) as building:
        for name, content in files.items():
            if name.endswith(".safetensors"):
                data = save({key: tensor.contiguous() for key, tensor in content.items()})
            else:
                data = (json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()
            (building / name).write_bytes(data)
