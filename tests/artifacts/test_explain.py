"""What the machine refuses is said in a sentence, whichever library it refused."""

import errno
import os
import resource
import signal
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from saetool.artifacts import Partial, Stage, run_stage
from saetool.artifacts.files import explain
from saetool.errors import RequestError, WorkError


def failing(error: BaseException) -> Stage:
    def build(partial: Partial) -> dict:
        raise error

    return Stage("activations", {}, build)


@contextmanager
def small_files():
    """Let no file grow beyond 4,000 bytes: a refusal that needs no file system of its own.

    Not as a fixture: what pytest itself writes to a file between setup and teardown would be refused too.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


ROWS = torch.zeros(2000)
WRITERS = {
    "safetensors": lambda partial: save_file({"x": ROWS}, partial.scratch("x")),
    "numpy": lambda partial: np.savez(partial.scratch("x.npz"), x=ROWS.numpy()),
    "bytes": lambda partial: partial.write_bytes("x", bytes(8000)),
    "tensors": lambda partial: partial.write_tensors("x", {"x": ROWS}),
    "arrow": lambda partial: _write_table(partial),
}


def _write_table(partial: Partial) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    with parquet.ParquetWriter(partial.file("x.parquet"), pa.schema([("x", pa.float64())])) as writer:
        writer.write_table(pa.table({"x": np.random.default_rng(0).random(4000)}))


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_says_that_a_file_may_not_grow(tmp_path, writer):
    def build(partial: Partial) -> dict:
        WRITERS[writer](partial)
        return {}

    with pytest.raises(WorkError, match=r"larger than a file may be here.*resumes"), small_files():
        run_stage(Stage("activations", {}, build), tmp_path / "a")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on the disk"),
        (OSError(errno.EDQUOT, "Quota exceeded"), "no space left on the disk"),
        (MemoryError(), "out of memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), "out of memory"),
        (OSError(errno.EIO, "Input/output error", "/x/y"), "/x/y: cannot be read or written"),
        (PermissionError(errno.EACCES, "Permission denied", "/elsewhere/input"), "/elsewhere/input: cannot be opened"),
    ],
)
def test_a_refusal_of_the_machine_is_no_bug(tmp_path, error, words):
    with pytest.raises(WorkError, match=words):
        run_stage(failing(error), tmp_path / "a")


@pytest.mark.parametrize("allocate", [lambda: torch.empty(1 << 50), lambda: np.ones(1 << 50)])
def test_more_memory_than_there_is_ends_in_words(tmp_path, allocate):
    def build(partial: Partial) -> dict:
        allocate()
        return {}

    with pytest.raises(WorkError, match=r"out of memory.*batch_size"):
        run_stage(Stage("activations", {}, build), tmp_path / "a")


def test_what_cannot_be_written_is_told_from_what_cannot_be_read(tmp_path):
    def words(name) -> str:
        return str(explain(PermissionError(errno.EACCES, "Permission denied", str(name)), tmp_path / "a"))

    for name in ("a.partial/x", "a.lock", "a/manifest.json", "."):
        assert "cannot be written" in words(tmp_path / name)
    assert "cannot be opened" in words(tmp_path / "other" / "x")


def test_a_mistake_of_ours_stays_one(tmp_path):
    for error in (RuntimeError("shape"), OSError("odd"), KeyError("x")):
        assert explain(error, tmp_path) is None
        with pytest.raises(type(error)):
            run_stage(failing(error), tmp_path / "a")


def test_names_no_file_can_have_are_refused(tmp_path):
    with pytest.raises(RequestError, match="a name that no manifest can hold"):
        run_stage(failing(KeyError()), tmp_path / "a\0b")
    with pytest.raises(RequestError, match="longer than the file system takes"):
        run_stage(failing(KeyError()), tmp_path / ("a" * 300))
    assert os.listdir(tmp_path) == []
