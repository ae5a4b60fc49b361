"""Reading other people's files: nothing in them can run, and what cannot be read ends in one sentence."""

import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from saetool.errors import RequestError, first_line

_COMMON = {"W_enc": "W_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
FLAT = {**_COMMON, "b_enc": "b_enc"}
"""Names of tensors as many tools have them ({theirs: ours}), and those of a gated encoder."""
GATED = {**_COMMON, "b_gate": "b_enc", "r_mag": "r_mag", "b_mag": "b_mag"}


def read_bytes(path: Path) -> bytes:
    """Return all of a file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror}).") from None


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object of a file."""
    return parse_json(read_bytes(path), str(path))


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """Return the JSON object that some bytes are."""
    try:
        value = json.loads(data, parse_constant=lambda name: None)  # a NaN says as much as nothing
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{name}: not JSON ({first_line(error)}).") from None
    if not isinstance(value, dict):
        raise RequestError(f"{name}: a {type(value).__name__} where a JSON object belongs.")
    return value


def read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_safetensors(read_bytes(path))
    except KeyError as error:
        raise RequestError(f"{path}: holds tensors of type {error}, which torch does not have here.") from None
    except SafetensorError as error:
        raise RequestError(f"{path}: truncated, or not safetensors ({first_line(error)}).") from None


def read_torch(source: Path | bytes, name: str, stand_ins: list[Any] | None = None) -> dict[str, Any]:
    """Return the mapping that a torch file holds, tensors and plain values only.

    A pickle that names anything else is refused before it can act; `stand_ins` are inert classes in the place of
    others, as `torch.serialization.safe_globals` takes them.
    """
    try:
        # Mapped where it can be: a file is looked at by several formats before one reads it.
        mapped = isinstance(source, Path) and zipfile.is_zipfile(source)
        data = str(source) if mapped else io.BytesIO(source if isinstance(source, bytes) else source.read_bytes())
        with torch.serialization.safe_globals(stand_ins or []), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickle protocols
            value = torch.load(data, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError as error:
        raise RequestError(f"{name}: cannot be read ({error.strerror}).") from None
    except pickle.UnpicklingError as error:
        raise RequestError(f"{name}: {_why_refused(error)}") from None
    except Exception as error:  # a truncated archive raises whatever the part that is missing makes of it
        raise RequestError(f"{name}: truncated, or no torch file ({first_line(error)}).") from None
    if not isinstance(value, Mapping):
        raise RequestError(f"{name}: holds a {type(value).__name__}, not tensors by name.")
    return dict(value)


def _why_refused(error: pickle.UnpicklingError) -> str:
    text = str(error)
    for mark in ("Unsupported global: GLOBAL ", "Unsupported class "):
        if mark in text:
            what = text.split(mark, 1)[1].split(" ", 1)[0].strip("`'\".")
            return (
                f"its pickle asks for {what}, which could run code, so it is not opened. "
                "Save the state dict alone (torch.save(model.state_dict(), …)) or as safetensors, and import that."
            )
    # torch's own first lines say how to open it all the same.
    reason = text.rpartition("WeightsUnpickler error:")[2].strip().splitlines() or ["no reason given"]
    return f"its pickle is damaged, or asks for more than tensors, so it is not opened ({reason[0]})."


def take(tensors: Mapping[str, Any], keys: Mapping[str, str], name: str, ignored: tuple[str, ...] = ()) -> dict:
    """Return tensors under new names ({theirs: ours}); RequestError where one is missing, or one is left that counts.

    `ignored` are beginnings of names that change no number.
    """
    missing = [key for key in keys if not isinstance(tensors.get(key), Tensor)]
    if missing:
        raise RequestError(f"{name}: lacks {missing[0]!r}; it holds {', '.join(map(str, tensors)) or 'nothing'}.")
    left = [key for key in tensors if key not in keys and not str(key).startswith(ignored or ("\0",))]
    if left:
        raise RequestError(f"{name}: holds {left[0]!r}, which this architecture does not have: another one's weights?")
    return {ours: tensors[theirs] for theirs, ours in keys.items()}


def agree(name: str, **pairs: tuple[Any, Any]) -> None:
    """Raise RequestError where a config contradicts the weights: each pair is (what it says, what they have)."""
    for key, (said, found) in pairs.items():
        said = int(said) if isinstance(said, str) and said.isdecimal() else said
        if said is not None and said != found:
            raise RequestError(f"{name}: its config says {key} {said}, its weights have {found}.")


def float32(tensor: Tensor, key: str) -> Tensor:
    """Return a weight in float32; raises RequestError where that would round it, or it is no floating-point number."""
    if not tensor.is_floating_point():
        raise RequestError(f"{key} is {tensor.dtype}: weights are floating-point numbers.")
    narrow = tensor.detach().float().contiguous()
    if tensor.dtype == torch.float64 and not torch.equal(narrow.double(), tensor):
        raise RequestError(f"{key} is float64 and would be rounded: save it in float32 first.")
    return narrow


def latents_in_rows(tensors: Mapping[str, Tensor], turned: str = "") -> tuple[dict[str, Any], str]:
    """Return weights in float32, as `float32` does each, and what is to be said of their dtype.

    `turned` is the weight that a file keeps with latents in columns.
    """
    weights = {key: float32(tensor, key) for key, tensor in tensors.items()}
    if turned:
        weights[turned] = weights[turned].T.contiguous()
    return weights, f"{tensors['W_enc'].dtype} weights, computed in float32"


def folder_of(*names: str) -> Callable[[Path], bool]:
    """Return what says whether a path is a folder that holds some files: how a format recognizes its own."""
    return lambda path: all((path / name).is_file() for name in names)
