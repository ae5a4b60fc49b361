"""One shard: a safetensors file with one tensor `tokens` [images, tokens, d], mapped or read in place.

A file is 8 bytes (length of the header, little-endian), a JSON header, and the bytes, row-major and little-endian.
The header is checked against the file's size and against what the manifest says before anything is read.
"""

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch
import xxhash
from jaxtyping import Float
from torch import Tensor

from saetool.artifacts.remote import RemotePath
from saetool.errors import RequestError, WorkError

TENSOR = "tokens"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_CODES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_ALIGNMENT = 8
"""Bytes: a header is filled up with spaces to a multiple, so that tensors begin at one."""
_MOST_TARGETS = 512
"""Places in memory that one call fills; systems take 1,024."""
_LARGEST_HEADER = 1 << 20
"""Our headers have about a hundred bytes; a length beyond this is damage, not a header."""


def shard_name(folder: str, index: int) -> str:
    """Return the name of a folder's file in a store."""
    return f"{folder}/{index:05d}.safetensors"


def shard_bytes(rows: Sequence[Float[Tensor, "images tokens d"]]) -> list[bytes | memoryview]:
    """Return the bytes of a shard's file in pieces, nothing copied: the header, then rows on the CPU, in their order.

    They are those of `safetensors.torch.save`.
    """
    shape = [sum(map(len, rows)), *rows[0].shape[1:]]
    code = next(code for code, dtype in _CODES.items() if dtype == rows[0].dtype)
    views = (part.detach().contiguous().view(-1).view(torch.uint8).numpy().data for part in rows if part.numel())
    return [safetensors_header({TENSOR: (code, shape, math.prod(shape) * rows[0].dtype.itemsize)}), *views]


def safetensors_header(tensors: Mapping[str, tuple[str, Sequence[int], int]]) -> bytes:
    """Return how a safetensors file of tensors {name: (type, shape, bytes)} begins; their bytes follow, in order."""
    entries, end = {}, 0
    for name, (code, shape, size) in tensors.items():
        entries[name] = {"dtype": code, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


@dataclass(frozen=True)
class Shard:
    """A checked shard: where its bytes begin and what they are."""

    path: Path
    begin: int
    shape: tuple[int, int, int]
    dtype: torch.dtype
    written: tuple[int, int] | None = None
    """Size and time of a file on a disk: one that another took the place of is not read."""
    digests: list[int] | None = None
    """Of each image, of a file behind an address: what a server sends later is compared with them."""
    fetched: list[bytes] = field(default_factory=list, repr=False, compare=False)
    """The whole file behind an address, from opening it to the first read, which takes it."""

    @classmethod
    def open(cls, path: Path, shape: tuple[int, int, int], dtype: torch.dtype) -> "Shard":
        """Read the header of the shard at `path`; raises RequestError unless it holds `shape` and `dtype` exactly."""
        if isinstance(path, RemotePath):
            data = _whole(path)
            begin = _begin_of(path, io.BytesIO(data), len(data), shape, dtype)
            return cls(path, begin, shape, dtype, digests=_digests(data, begin, shape[0]), fetched=[data])
        try:
            status = path.stat()
            with path.open("rb") as file:
                begin = _begin_of(path, file, status.st_size, shape, dtype)
        except OSError as error:
            raise RequestError(f"{path}: cannot be read ({error.strerror}).") from None
        return cls(path, begin, shape, dtype, written=_written(status))

    @property
    def image_bytes(self) -> int:
        return self.shape[1] * self.shape[2] * self.dtype.itemsize

    def map(self) -> Float[Tensor, "images tokens d"]:
        """Return the tensor as a view of the file: nothing is read before it is touched, writes stay in memory.

        Behind an address it is fetched whole.
        """
        if math.prod(self.shape) == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        end = self.begin + self.shape[0] * self.image_bytes
        if isinstance(self.path, RemotePath):
            data = bytearray(self._fetch(self.path, 0, self.shape[0]))  # a copy: tensors want to be writable
            return torch.frombuffer(data, dtype=self.dtype).view(self.shape)
        if self.begin % self.dtype.itemsize:  # another writer's file: its header has no padding
            data = torch.from_file(str(self.path), size=end, dtype=torch.uint8)[self.begin :].clone()
            rows = data.view(self.dtype).view(self.shape)
        else:
            # torch's own mapping keeps no file descriptor, so that thousands of shards can be open.
            words = torch.from_file(str(self.path), size=end // self.dtype.itemsize, dtype=self.dtype)
            rows = words[self.begin // self.dtype.itemsize :].view(self.shape)
        self._require_same(self.path.stat())
        return rows

    def read_into(self, out: Float[Tensor, "images tokens d"], start: int) -> None:
        """Read the images from `start` on into `out`, without mapping the file."""
        self.scatter([out.view(torch.uint8).reshape(-1).numpy().data], start)

    def scatter(self, targets: Sequence[memoryview], start: int) -> None:
        """Read the images from `start` on into memory in several places, one after the other, in as few calls as can
        be: a thread that reads holds Python's lock between them."""
        left = list(targets)
        if isinstance(self.path, RemotePath):
            data = memoryview(self._fetch(self.path, start, start + sum(map(len, left)) // self.image_bytes))
            for target in left:
                target[:], data = data[: len(target)], data[len(target) :]
            return
        place = self.begin + start * self.image_bytes
        with self.path.open("rb") as file:
            self._require_same(os.fstat(file.fileno()))
            while left:
                count = os.preadv(file.fileno(), left[:_MOST_TARGETS], place)
                if count <= 0:
                    raise RequestError(f"{self.path}: ends too early; it has changed since it was opened.")
                place += count
                while left and count >= len(left[0]):
                    count -= len(left.pop(0))
                if count:
                    left[0] = left[0][count:]

    def _require_same(self, status: os.stat_result) -> None:
        if self.written != _written(status):
            raise RequestError(f"{self.path}: has changed since it was opened. Open its artifact again.")

    def _fetch(self, path: RemotePath, first: int, stop: int) -> bytes:
        """Return the bytes of images `first` to `stop` of a file behind an address."""
        size = self.image_bytes
        with suppress(IndexError):  # nothing is left, or another thread took it
            return self.fetched.pop()[self.begin + first * size : self.begin + stop * size]
        try:
            found = path.read_range(self.begin + first * size, self.begin + stop * size)
        except OSError as error:
            raise WorkError(f"{path}: cannot be read ({error.strerror}). The same command resumes.") from None
        if len(found) != (stop - first) * size:
            raise RequestError(f"{path}: ends too early; it has changed since it was opened.")
        if self.digests is not None and _digests(found, 0, stop - first) != self.digests[first:stop]:
            raise RequestError(f"{path}: its server sends other bytes than before: it has changed, or the server errs.")
        return found


def _written(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _digests(data: bytes, begin: int, images: int) -> list[int]:
    """Return the digest of each of `images` equal pieces of the bytes from `begin` on."""
    rows, size = memoryview(data)[begin:], (len(data) - begin) // max(images, 1)
    return [xxhash.xxh3_64_intdigest(rows[i * size : (i + 1) * size]) for i in range(images)]


def _whole(path: RemotePath) -> bytes:
    """Return a whole file behind an address, compared with its digest on the way."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise WorkError(f"{path}: cannot be read ({error.strerror}). The same command resumes.") from None


def _begin_of(path: Path, file: BinaryIO, size: int, shape: tuple[int, int, int], dtype: torch.dtype) -> int:
    """Return where the rows of a shard begin; raises RequestError unless it holds `shape` and `dtype` exactly."""
    header, begin = _read_header(path, file, size)
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
    return begin


def _read_header(path: Path, file: BinaryIO, size: int) -> tuple[dict, int]:
    """Return a safetensors header and the place of the first data byte."""
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
        raise RequestError(f"{path}: damaged: not a safetensors file.")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError):
        raise RequestError(f"{path}: damaged: its header is not JSON.") from None
    if not isinstance(header, dict):
        raise RequestError(f"{path}: damaged: its header is not a JSON object.")
    return header, 8 + length
