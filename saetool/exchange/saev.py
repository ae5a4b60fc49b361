"""saev: one file, a line of JSON and then a torch archive (0.1.0 without a schema; schemas 2 to 5 since).

0.1.0 subtracts b_dec from the input and is ReLU only; later ones do not. Their TopK keeps negative values, and their
BatchTopK cuts at a running threshold, where the file has one.
"""

from pathlib import Path
from typing import Any

from saetool.errors import RequestError
from saetool.exchange.files import FLAT, agree, latents_in_rows, parse_json, read_bytes, read_torch, take
from saetool.exchange.plain import Plain, without_decoder_bias_on_input

_THRESHOLD = "activation.threshold"
_SCHEMAS = (2, 3, 4, 5)
_LONGEST_HEADER = 1 << 20


def recognizes(path: Path) -> bool:
    """Say whether a file is in this format: JSON, then after a line break a torch archive."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if file.read(1) != b"{":
            return False
        file.seek(0)
        line = file.readline(_LONGEST_HEADER)
        return line.endswith(b"\n") and file.read(2) == b"PK"


def read(path: Path, given: dict[str, Any]) -> Plain:
    """Read an autoencoder; raises RequestError for schema 1, of which there are two that no file tells apart."""
    line, _, archive = read_bytes(path).partition(b"\n")
    header = parse_json(line, f"{path}, first line")
    first = "schema" not in header
    if not first and header["schema"] not in _SCHEMAS:
        raise RequestError(
            f"{path}: schema {header['schema']!r} of saev; read are 0.1.0's (without a schema) and "
            f"{', '.join(map(str, _SCHEMAS))}. Load it in saev and dump it again."
        )
    config = header if first else header.get("cfg") or {}
    chosen = {} if first else config.get("activation") or {}
    kind, parameters = chosen.get("cls", "Relu"), chosen.get("params") or {}
    tensors = read_torch(archive, str(path))
    threshold = tensors.pop(_THRESHOLD, None)
    weights, _ = latents_in_rows(take(tensors, FLAT, str(path)), "W_enc")
    plain = Plain(
        **weights,
        **_activation(kind, parameters, threshold, path),
        facts={**config, **{key: header[key] for key in ("lib", "commit", "schema") if key in header}},
    )
    d_in, n = config.get("d_vit", config.get("d_model")), config.get("d_sae")
    if n is None and d_in and config.get("exp_factor"):
        n = d_in * config["exp_factor"]
    agree(str(path), d_in=(d_in, plain.d_in), d_sae=(n, plain.n_latents))
    plain = plain.saying(dtype="float32 weights", normalization="none")
    if first:
        return plain.saying(decoder_bias="subtracted from the input")
    return without_decoder_bias_on_input(plain)


def _activation(kind: str, parameters: dict[str, Any], threshold: Any, path: Path) -> dict[str, Any]:
    if kind == "Relu":
        return {"activation": "relu"}
    if kind == "TopK":
        return {"activation": "topk", "k": parameters.get("top_k", 32), "relu": False}
    if kind == "BatchTopK" and threshold is not None:
        # One below 0 is none: what is not positive is 0 in any case.
        return {"activation": "batch_topk", "k": parameters.get("top_k", 32), "threshold": threshold.clamp_min(0)}
    if kind == "BatchTopK":
        raise RequestError(f"{path}: BatchTopK without a threshold: which latents are active depends on the batch.")
    raise RequestError(f"{path}: activation {kind!r} of saev is not one of the sparse family's.")
