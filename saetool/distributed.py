"""Rank, world size and collectives. Without `torchrun` there is one process and every call is the trivial case."""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from saetool.errors import WorkError

_PATIENCE = timedelta(days=1)
"""How long a process waits for the others. The main one alone ranks, evaluates and writes the report: on a large store
that takes longer than PyTorch's 10 or 30 minutes. A process that dies is noticed at once, by `torchrun` and by gloo."""


def start() -> None:
    """Join the process group that `torchrun` announced; do nothing in a single process or when already joined."""
    if "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # Its functions keep the group of the moment as their default: imported later (an optimizer does it) they would
        # hold ours for good, and gloo's threads would run on while the interpreter ends, which may abort the process.
        importlib.import_module("torch.distributed.nn.functional")
        # Both backends: files' names and counts travel as CPU tensors, gradients on the device.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)


def stop() -> None:
    """Leave the process group, if there is one, and end its threads."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Return this process's number, 0 when alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes, 1 when alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Say whether this process is the one that seals, prints and writes shared files."""
    return rank() == 0


@contextmanager
def _peers() -> Iterator[None]:
    """Say in words that a collective failed: nearly always because another process of the job has ended."""
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WorkError(
            f"process {rank()} of {world_size()} lost another one of the job, whose own message says why ({reason}). "
            "Run the same command again: it resumes."
        ) from error


def barrier() -> None:
    """Wait until every process has come here; like every collective, WorkError says that another process is lost."""
    if world_size() > 1:
        with _peers():
            dist.barrier()


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum `tensor` over all processes in place and return it."""
    if world_size() > 1:
        with _peers():
            dist.all_reduce(tensor)
    return tensor


def all_reduce_mean(tensor: torch.Tensor) -> torch.Tensor:
    """Average `tensor` over all processes in place and return it."""
    if world_size() > 1:
        all_reduce_sum(tensor)
        tensor /= world_size()
    return tensor


def broadcast(tensor: torch.Tensor) -> torch.Tensor:
    """Overwrite `tensor` with the main process's, in place, and return it."""
    if world_size() > 1:
        with _peers():
            dist.broadcast(tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor, src=0)
    return tensor


def all_gather(value: object) -> list:
    """Return every process's `value` (any small object made of JSON types), in rank order."""
    if world_size() == 1:
        return [value]
    gathered: list = [None] * world_size()
    with _peers():
        dist.all_gather_object(gathered, value)
    return gathered


def cores() -> int:
    """Return how many processor cores this process may count on: its own, shared with the job's others beside it."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, allowed // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def where(device: torch.device) -> str:
    """Say in words what runs where: `2 processes on cpu (1 thread each)`."""
    processes, threads = world_size(), torch.get_num_threads()
    words = f"{processes} process{'es' if processes > 1 else ''} on "
    if device.type == "cuda":
        return words + torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return words + device.type
    each = " each" if processes > 1 else ""
    return words + f"cpu ({threads} thread{'s' if threads > 1 else ''}{each})"


def default_device() -> torch.device:
    """Return this process's GPU where there is one (CUDA, then MPS), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")
