"""An artifact under construction: the directory NAME.partial, its journal, and atomic writers."""

import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saetool import distributed
from saetool.artifacts.files import sync_directory, sync_file, write_atomic
from saetool.artifacts.manifest import MANIFEST, canonical, digest_bytes, digest_file
from saetool.errors import WorkError
from saetool.progress import say

if TYPE_CHECKING:
    import pyarrow
    from torch import Tensor

SCRATCH = ".scratch"
"""Folder of a partial directory that never becomes part of the artifact; no file of an artifact begins with a dot."""


class DamagedRecord(WorkError):
    """An entry of the journal is not what was written."""


class Partial:
    """The place where a stage builds. A killed stage finds its files and records again and goes on.

    The journal keeps one small file an entry, safe for several processes. Everything outside the folder `.scratch/`
    becomes part of the artifact.
    """

    def __init__(self, path: Path, out: Path):
        self.path = path
        self.out = out
        self.logs: set[str] = set(self.unit_of("logs") or ())
        self.notes: dict[str, Any] = self.unit_of("notes") or {}

    def record(self, key: str, value: Any) -> Any:
        """Keep a JSON value under `key` (which may hold slashes), durably; return it as it will be read again."""
        data = canonical(value)
        self._write(f"{SCRATCH}/journal/{key}", digest_bytes(data).encode() + b"\n", data)
        return json.loads(data)

    def record_of(self, key: str) -> Any:
        """Return the value recorded under `key`, or None; raises DamagedRecord where it is not what was written."""
        path = self.path / SCRATCH / "journal" / key
        try:
            digest, _, data = path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        if digest != digest_bytes(data).encode():
            raise DamagedRecord(f"{path}: damaged. Give --force (force=True) to begin {self.out.name} anew.")
        return json.loads(data)

    def unit_of(self, key: str) -> Any:
        """Return what is recorded of work that can be made again, or None; a damaged entry counts as none."""
        try:
            return self.record_of(key)
        except DamagedRecord:
            say(f"{self.path / SCRATCH / 'journal' / key}: damaged; what it stands for is made again.")
            return None

    def settle(self) -> None:
        """Make durable that records are there: before something that an older one names is deleted."""
        sync_directory(self.path / SCRATCH / "journal")

    def forget(self, key: str) -> None:
        (self.path / SCRATCH / "journal" / key).unlink(missing_ok=True)

    def note(self, key: str, value: Any) -> None:
        """Say something in the manifest's notes, outside the id: a rate, a time, a place."""
        self.notes[key] = value
        self.record("notes", self.notes)

    def say_where(self, line: str) -> None:
        """Say in one line what runs where, and keep it in the notes."""
        say(f"{self.out}: {line}")
        if distributed.is_main():
            self.note("where", line)

    def file(self, name: str) -> Path:
        """Return the path for a file that the caller writes itself; its digest is taken when the artifact is sealed."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def scratch(self, name: str) -> Path:
        """Return the path of a file that is deleted when the artifact is sealed."""
        return self.file(f"{SCRATCH}/work/{name}")

    def checkpoint(self, name: str) -> Path:
        """Return the path of a file that goes on where a killed start stopped, deleted when the artifact is sealed."""
        return self.file(f"{SCRATCH}/checkpoint/{name}")

    def write_bytes(self, name: str, *pieces: bytes | memoryview) -> None:
        """Write a file atomically, of pieces one after the other, and remember its digest."""
        self._write(name, *pieces)
        size = sum(memoryview(piece).nbytes for piece in pieces)
        self.record(f"files/{name}", {"bytes": size, "digest": digest_bytes(*pieces)})

    def is_whole(self, name: str) -> bool:
        """Say whether a file that `write_bytes` wrote, perhaps in an earlier start, still has those bytes."""
        record, path = self.unit_of(f"files/{name}"), self.path / name
        if record is None or not path.is_file():
            return False
        if digest_file(path) == record["digest"]:
            return True
        say(f"{path}: damaged; it is made again.")
        return False

    def write_manifest(self, data: bytes) -> None:
        """Write the manifest, the last file of all."""
        self._write(MANIFEST, data)

    def _write(self, name: str, *pieces: bytes | memoryview) -> None:
        write_atomic(self.path / name, pieces, self.path / SCRATCH / "new" / name)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file, indented, keys sorted."""
        text = json.dumps(value, sort_keys=True, ensure_ascii=False, indent=1, allow_nan=False)
        self.write_bytes(name, (text + "\n").encode())

    def write_tensors(self, name: str, tensors: "dict[str, Tensor]") -> None:
        """Write a safetensors file."""
        from safetensors.torch import save

        contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        self.write_bytes(name, save(contiguous))

    def write_table(self, name: str, table: "pyarrow.Table") -> None:
        """Write a Parquet file, the same bytes for the same table."""
        import pyarrow.parquet as parquet

        buffer = io.BytesIO()
        parquet.write_table(table, buffer, compression="zstd", store_schema=False)
        self.write_bytes(name, buffer.getvalue())

    def write_log(self, name: str, data: bytes) -> None:
        """Write a whole file that is a log: outside the id, checked by verify only."""
        self._declare_log(name)
        self.write_bytes(name, data)

    def append_log(self, name: str, entry: dict) -> None:
        """Append one line of JSON to a log: a file outside the id, checked by verify only."""
        self._declare_log(name)
        with (self.path / name).open("ab") as file:
            file.write(canonical(entry) + b"\n")

    def log_size(self, name: str) -> int:
        """Return a log's length in bytes after making it durable, 0 when there is none; a checkpoint keeps it."""
        path = self.path / name
        if not path.exists():
            return 0
        sync_file(path)
        return path.stat().st_size

    def cut_log(self, name: str, size: int) -> None:
        """Cut a log back to its length at a checkpoint."""
        self._declare_log(name)
        if (self.path / name).exists():
            os.truncate(self.path / name, size)

    def _declare_log(self, name: str) -> None:
        if name not in self.logs:
            self.logs.add(name)
            self.record("logs", sorted(self.logs))

    def holds_work(self) -> bool:
        """Say whether anything is in it that would have to be made again; a request that failed at once leaves none."""
        scratch = [self.path / SCRATCH / name for name in ("work", "checkpoint")]
        return bool(self.product_names()) or any(path.is_file() for at in scratch for path in at.rglob("*"))

    def product_names(self) -> list[str]:
        """Return the names of the files that make up the artifact, sorted."""
        names = []
        for folder, folders, files in os.walk(self.path):
            here = Path(folder).relative_to(self.path)
            if here == Path("."):
                folders[:] = [name for name in folders if name != SCRATCH]
            names += [(here / name).as_posix() for name in files]
        return sorted(name for name in names if name != MANIFEST)
