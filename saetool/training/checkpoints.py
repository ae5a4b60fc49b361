"""Checkpoints: NAME.partial/checkpoint/ holds tensors in safetensors and the rest in JSON. Nothing is pickled.

step-00001000.safetensors    weights, moments, generator state
latest.json                  {"tensors": its name, "rest": {...}}: written last, so it never names half a file
"""

import json
import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from saetool.artifacts import Partial
from saetool.artifacts.files import sync_directory, sync_file, write_atomic
from saetool.errors import WorkError

LATEST = "latest.json"


def save(partial: Partial, step: int, tensors: dict[str, Tensor], rest: dict) -> None:
    """Replace the checkpoint, atomically and durably."""
    folder = _folder(partial)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.safetensors"
    temporary = path.with_name(path.name + ".tmp")
    # safetensors refuses views and shared memory; a model has few of either, so only those are copied.
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary)
    sync_file(temporary)
    os.replace(temporary, path)
    sync_directory(folder)
    write_atomic(folder / LATEST, json.dumps({"tensors": path.name, "rest": rest}).encode())
    sync_directory(folder)
    for old in folder.glob("step-*"):
        if old != path:
            old.unlink()


def load(partial: Partial) -> tuple[dict[str, Tensor], dict] | None:
    """Return the last checkpoint's tensors (on the CPU) and rest, or None when there is none."""
    folder = _folder(partial)
    record = _record(folder)
    if record is None:
        return None
    try:
        return load_file(folder / record["tensors"]), record["rest"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise WorkError(
            f"{folder}: the checkpoint cannot be read ({error}). Delete {partial.path} to train from the start."
        ) from None


def position(partial: Partial) -> dict | None:
    """Return where the stream stood at the last checkpoint, or None when there is none."""
    record = _record(_folder(partial))
    return None if record is None else record["rest"]["position"]


def _record(folder: Path) -> dict | None:
    path = folder / LATEST
    return json.loads(path.read_bytes()) if path.exists() else None


def _folder(partial: Partial) -> Path:
    return partial.path / "checkpoint"
