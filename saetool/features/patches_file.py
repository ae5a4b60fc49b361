"""patches.safetensors, written from the pass's raw parts without holding it in memory.

A safetensors file is the header's length (8 bytes), the header (JSON) and the tensors' bytes, one after the other.
"""

import json
import shutil
from pathlib import Path

from saetool.features.spill import Spill

_DTYPES = {"latents": "I32", "values": "F32"}
_ALIGNMENT = 8


def write_patches(path: Path, spill: Spill, shape: tuple[int, int, int]) -> None:
    """Write the strongest latents of every token: `latents` int32 and `values` float32 [images, tokens, k]."""
    size = shape[0] * shape[1] * shape[2] * 4
    header = {
        name: {"dtype": dtype, "shape": list(shape), "data_offsets": [i * size, (i + 1) * size]}
        for i, (name, dtype) in enumerate(_DTYPES.items())
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little"))
        out.write(text)
        for name in _DTYPES:
            for part in spill.strongest(name):
                with part.open("rb") as source:
                    shutil.copyfileobj(source, out, 1 << 22)
