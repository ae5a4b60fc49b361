"""One shard: a safetensors file with one tensor `tokens` [images, tokens, d], mapped or read in place.

A file is 8 bytes (length of the header, little-endian), a JSON header, and the bytes, row-major and little-endian.
The header is checked against the file's size and against what the manifest says before anything is read.
"""

import io
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from jaxtyping import Float
from torch import Tensor

from saetool.artifacts.remote import RemotePath
from saetool.errors import RequestError, WorkError

TENSOR = "tokens"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_CODES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_LARGEST_HEADER = 1 << 20
"""Our headers have about a hundred bytes; a length beyond this is damage, not a header."""
_FETCHED_HEADER = 4096
"""Of a file behind an address: ours fit many times."""


@dataclass(frozen=True)
class Shard:
    """A checked shard: where its bytes begin and what they are."""

    path: Path
    begin: int
    shape: tuple[int, int, int]
    dtype: torch.dtype

    @classmethod
    def open(cls, path: Path, shape: tuple[int, int, int], dtype: torch.dtype) -> "Shard":
        """Read the header of the shard at `path`; raises RequestError unless it holds `shape` and `dtype` exactly."""
        header, begin, size = _read_header(path)
        try:
            entry = header[TENSOR]
            found = tuple(int(n) for n in entry["shape"]), _CODES[entry["dtype"]], tuple(entry["data_offsets"])
        except (TypeError, KeyError, ValueError):
            raise RequestError(f"{path}: damaged: its header does not describe a tensor {TENSOR!r}.") from None
        length = math.prod(shape) * dtype.itemsize
        if found != (tuple(shape), dtype, (0, length)) or size != begin + length:
            raise RequestError(
                f"{path}: damaged: holds {found[1]} {list(found[0])} in {size} bytes; "
                f"the manifest says {dtype} {list(shape)} ({begin + length} bytes). `saetool verify` tells more."
            )
        return cls(path, begin, shape, dtype)

    def map(self) -> Float[Tensor, "images tokens d"]:
        """Return the tensor as a view of the file: nothing is read before it is touched, writes stay in memory.

        Behind an address it is fetched whole.
        """
        if math.prod(self.shape) == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        end = self.begin + math.prod(self.shape) * self.dtype.itemsize
        if isinstance(self.path, RemotePath):
            data = bytearray(self._fetch(self.path, self.begin, end))  # a copy: tensors want to be writable
            return torch.frombuffer(data, dtype=self.dtype).view(self.shape)
        if self.begin % self.dtype.itemsize:  # another writer's file: its header has no padding
            data = torch.from_file(str(self.path), size=end, dtype=torch.uint8)[self.begin :].clone()
            return data.view(self.dtype).view(self.shape)
        # torch's own mapping keeps no file descriptor, so that thousands of shards can be open.
        words = torch.from_file(str(self.path), size=end // self.dtype.itemsize, dtype=self.dtype)
        return words[self.begin // self.dtype.itemsize :].view(self.shape)

    def read_into(self, out: Float[Tensor, "images tokens d"], start: int) -> None:
        """Read the images from `start` on into `out`, without mapping the file."""
        image_bytes = self.shape[1] * self.shape[2] * self.dtype.itemsize
        target = out.view(torch.uint8).reshape(-1).numpy().data
        place = self.begin + start * image_bytes
        if isinstance(self.path, RemotePath):
            target[:] = self._fetch(self.path, place, place + len(target))
            return
        with self.path.open("rb") as file:
            while len(target):
                count = os.preadv(file.fileno(), [target], place)
                if count <= 0:
                    raise RequestError(f"{self.path}: ends too early; it has changed since it was opened.")
                target, place = target[count:], place + count

    @staticmethod
    def _fetch(path: RemotePath, start: int, stop: int) -> bytes:
        """Return bytes `start` to `stop` of a file behind an address."""
        try:
            found = path.read_range(start, stop)
        except OSError as error:
            raise WorkError(f"{path}: cannot be read ({error.strerror}). The same command resumes.") from None
        if len(found) != stop - start:
            raise RequestError(f"{path}: ends too early; it has changed since it was opened.")
        return found


def _read_header(path: Path) -> tuple[dict, int, int]:
    """Return a safetensors header, the place of the first data byte, and the file's size."""
    try:
        size = path.stat().st_size
        with _beginning(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
                raise RequestError(f"{path}: damaged: not a safetensors file.")
            header = json.loads(file.read(length))
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError):
        raise RequestError(f"{path}: damaged: its header is not JSON.") from None
    if not isinstance(header, dict):
        raise RequestError(f"{path}: damaged: its header is not a JSON object.")
    return header, 8 + length, size


def _beginning(path: Path | RemotePath) -> BinaryIO:
    """Open a file at its beginning; behind an address, fetch what a header takes."""
    if isinstance(path, RemotePath):
        return io.BytesIO(path.read_range(0, min(path.stat().st_size, _FETCHED_HEADER)))
    return path.open("rb")
