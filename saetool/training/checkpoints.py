"""Checkpoints: NAME.partial/.scratch/checkpoint/ holds tensors in safetensors and the rest in JSON. Nothing is pickled.

step-00001000.safetensors    weights, moments, generator state
journal entry `checkpoint`   {"tensors": its name, "digest": of its bytes, "rest": {...}}: written last, so it never
                             names half a file
"""

import os

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from saetool.artifacts import Partial, digest_file
from saetool.artifacts.files import sync_directory, sync_file
from saetool.errors import WorkError

RECORD = "checkpoint"


def save(partial: Partial, step: int, tensors: dict[str, Tensor], rest: dict) -> None:
    """Replace the checkpoint, atomically and durably."""
    path = partial.checkpoint(f"step-{step:08d}.safetensors")
    temporary = path.with_name(path.name + ".tmp")
    # safetensors refuses views and shared memory; a model has few of either, so only those are copied.
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary)
    sync_file(temporary)
    digest = digest_file(temporary)
    os.replace(temporary, path)
    sync_directory(path.parent)
    partial.record(RECORD, {"tensors": path.name, "digest": digest, "rest": rest})
    partial.settle()
    for old in path.parent.glob("step-*"):
        if old != path:
            old.unlink()


def load(partial: Partial) -> tuple[dict[str, Tensor], dict] | None:
    """Return the last checkpoint's tensors (on the CPU) and rest, or None when there is none.

    Raises WorkError where it is not what was written.
    """
    record = partial.record_of(RECORD)
    if record is None:
        return None
    path = partial.checkpoint(record["tensors"])
    try:
        if digest_file(path) == record["digest"]:
            return load_file(path), record["rest"]
        problem = "its bytes have changed"
    except (OSError, SafetensorError) as error:
        problem = str(error)
    raise WorkError(
        f"{path}: the checkpoint is damaged ({problem}). Give --force (force=True) to train "
        f"{partial.out.name} from the start."
    )
