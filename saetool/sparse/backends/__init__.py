"""What makes the sparse step fast, behind one seam: `backend_for(tensor)` is the only place that chooses.

    reference    plain torch, any device and dtype: the specification that the others are held to
    cpu          float32 on a CPU with numba (the extra `cpu`): compiled loops, candidates from a bfloat16 product
    cuda         float32 on an NVIDIA GPU of compute capability ≥ 8.0 with Triton

`SAETOOL_BACKEND=reference|cpu|cuda` overrides the choice, where that backend can run at all.
"""

import os
import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saetool.errors import RequestError
from saetool.sparse.backends.cuda import interpreted
from saetool.sparse.backends.plain import AdamStep, Scales
from saetool.sparse.codes import ByLatent, Support
from saetool.sparse.gradients import DeferredGradient
from saetool.sparse.weight import Weight

SWITCH = "SAETOOL_BACKEND"
NAMES = ("reference", "cpu", "cuda")

SPARSE_BELOW = {"cpu": 0.1, "cuda": 0.01}
"""Share of active latents above which the dense step is faster (measured on a CPU; on a GPU an estimate from the times
of the parts); elsewhere it always is."""

Precision = Literal["exact", "bf16"]
"""exact: who is active, and the outputs, are those of the float32 formula; bf16: those of a bfloat16 product."""

Found = tuple[Support, Float[Tensor, "entries"]]
"""A support, and the encoder's outputs on it."""


class Search(Protocol):
    """A search for a batch's entries, as far as it goes without waiting for the device.

    What is found depends on the batch in its size alone: computations on a found support with `room` repeat the same
    launches on the same shapes whenever `shape` says the same.
    """

    @property
    def numbers(self) -> Int[Tensor, "numbers"]:
        """How many entries there are, and what else must be known to go on."""
        ...

    def shape(self, numbers: list[int]) -> tuple[int, ...] | None:
        """Return what the shapes of what follows depend on, the room for entries first; None: on everything."""
        ...

    def found(self, numbers: list[int], room: int | None = None) -> Found:
        """Return the entries and the outputs on them, with room for so many."""
        ...


def finish(search: Search) -> Found:
    """Return what a search finds; on a GPU this waits, once."""
    return search.found(search.numbers.tolist())


class Backend(Protocol):
    """The functions that a sparse step is made of. Rows are a batch's, [batch, d_in]; weights are [n_latents, d_in]."""

    name: str

    def center(self, x: Tensor, mean: Tensor | None, factor: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return x' = (x − mean) · factor (x itself without a mean) and x' − bias, both in the bias's dtype."""
        ...

    def search(
        self,
        x: Tensor,
        W_enc: Weight,
        bias: Tensor,
        precision: Precision,
        *,
        cut: Tensor | None = None,
        k: int | None = None,
    ) -> Search:
        """Search for every output x·Wᵀ + b above its latent's `cut` [n_latents]; or for each row's `k` largest positive
        ones, of equals the lowest latents: others on the support found have the output 0 then."""
        ...

    def keep(self, support: Support, values: Tensor, kept: Bool[Tensor, "entries"]) -> Found:
        """Return the entries that are kept; the others may stay, with value 0."""
        ...

    def by_latent(self, support: Support) -> ByLatent:
        """Return the entries in latent order, rows ascending in a latent."""
        ...

    def decode(self, support: Support, values: Tensor, W_dec: Weight) -> Float[Tensor, "batch d_in"]:
        """Return Σ over each row's entries of value · decoder[latent]."""
        ...

    def squared_error(
        self, support: Support, values: Tensor, W_dec: Weight, bias: Tensor, x: Tensor
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch d_in"], Float[Tensor, "entries"]]:
        """Return ‖r‖² of each row, r = x − bias − decoded, and the slope decoder[latent] · r of each entry."""
        ...

    def sampled_products(self, support: Support, weight: Weight, rows: Tensor) -> Float[Tensor, "entries"]:
        """Return weight[latent] · rows[row] of every entry."""
        ...

    def latent_gradient(
        self, support: Support, weights: Tensor, table: Tensor, start: int, stop: int
    ) -> Float[Tensor, "block d_in"]:
        """Return, for the latents `start` to `stop`, Σ over the latent's entries of weight · table[row]."""
        ...

    def latent_sums(self, support: Support, values: Tensor) -> Float[Tensor, "n_latents"]:
        """Return the sum of the entries' values, latent by latent."""
        ...

    def column_sums(self, rows: Float[Tensor, "n d_in"], weights: Tensor | None = None) -> Float[Tensor, "d_in"]:
        """Return Σ weights[i] · rows[i], with weights 1 where none are given."""
        ...

    def update(
        self,
        weight: Weight,
        gradient: DeferredGradient,
        moments: tuple[Tensor, Tensor],
        step: AdamStep,
        unit_rows: bool,
        scales: Scales | None = None,
    ) -> None:
        """Take Adam's step in place and renew the weight's copy. With `unit_rows` rows end at norm 1, and, unless
        there are `scales`, the part of the gradient along a row is left out."""
        ...

    def step_context(self) -> AbstractContextManager[None]:
        """Return what a step runs in."""
        ...


@dataclass(frozen=True)
class Choice:
    """The backend for a kind of device, and why it is not a faster one."""

    name: str
    because: str | None = None


def backend_for(*tensors: Tensor) -> Backend:
    """Return the backend that serves all these tensors, which lie on one device.

    Compiled backends serve float32 (and the whole numbers of a support); everything else is the reference's.
    """
    plain = any(t.is_floating_point() and t.dtype != torch.float32 for t in tensors)
    return _named("reference" if plain else choice(tensors[0].device).name)


def choice(device: torch.device) -> Choice:
    """Say which backend serves float32 on a device, and what would bring a faster one."""
    return _choice(device.type, device.index, os.environ.get(SWITCH))


@cache
def _choice(kind: str, index: int | None, wanted: str | None) -> Choice:
    if wanted is not None and wanted not in NAMES:
        raise RequestError(f"{SWITCH} is {wanted!r}; it can be {', '.join(NAMES)}.")
    best = kind if kind in ("cpu", "cuda") else None
    if wanted == "cuda" and interpreted():
        best = "cuda"  # on CPU tensors: the kernels' tests
    missing = _missing(best, index) if best else None
    if wanted == best and missing:
        raise RequestError(f"{SWITCH} is {wanted!r}, but {missing}.")
    if best is None or wanted == "reference" or missing:
        return Choice("reference", missing)
    return Choice(best)


def _missing(name: str, index: int | None) -> str | None:
    """Return what a backend lacks here, in words; None where it can run."""
    if name == "cpu":
        from saetool.sparse.backends.cpu import missing

        return missing()
    from saetool.sparse.backends.cuda import missing

    return missing(index)


@cache
def _named(name: str) -> Backend:
    if name == "cpu":
        from saetool.sparse.backends.cpu.backend import Cpu

        return Cpu()
    if name == "cuda":
        from saetool.sparse.backends.cuda.launch import Cuda

        return Cuda()
    from saetool.sparse.backends.reference import Reference

    return Reference()


def default_precision(device: torch.device) -> Precision:
    """Return what `codes: auto` means on a device: bfloat16 codes on a GPU, exact everywhere else."""
    return "bf16" if choice(device).name == "cuda" else "exact"


def sparse_below(device: torch.device) -> float:
    """Return the share of active latents above which a dense step is faster on a device; 0: it always is."""
    return SPARSE_BELOW.get(device.type, 0.0)


def describe(device: torch.device) -> str:
    """Say in a few words which backend serves a device, and what would bring a faster one."""
    chosen = choice(device)
    return f"sparse backend {chosen.name}" + (f" ({chosen.because})" if chosen.because else "")


def compiled_dense(function: Callable, device: torch.device) -> Callable:
    """Return a dense computation as `torch.compile` makes it on a GPU with Triton; elsewhere as it is.

    What was compiled is kept by code object, only a few for each: the models of a large sweep share their code, and the
    ninth would silently not be compiled. Each function so gets a code object of its own.
    """
    if choice(device).name != "cuda" or device.type != "cuda":
        return function

    def call(*arguments: Tensor | bool) -> object:
        return function(*arguments)

    own = types.FunctionType(call.__code__.replace(), call.__globals__, call.__name__, None, call.__closure__)
    return torch.compile(own)


def kth_largest(values: Float[Tensor, "n"], k: int) -> Float[Tensor, ""]:
    """Return the k-th largest value; on a GPU by sorting, as torch looks for it with one block of threads only."""
    if values.device.type == "cuda":
        return values.sort(descending=True).values[k - 1]
    return values.kthvalue(values.numel() - k + 1).values


def count_later(mask: Bool[Tensor, "n"]) -> Callable[[], int] | None:
    """Ask a GPU how many marks a mask has; the answer waits for what was launched before, not since. None elsewhere."""
    if mask.device.type != "cuda":
        return None
    answer, asked = torch.empty((), dtype=torch.int64, pin_memory=True), torch.cuda.Event()
    answer.copy_(mask.sum(), non_blocking=True)
    asked.record(torch.cuda.current_stream(mask.device))

    def read() -> int:
        asked.synchronize()
        return int(answer)

    return read


def marked(mask: Bool[Tensor, "n"], count: Callable[[], int] | None) -> Int[Tensor, "marks"]:
    """Return the places of a mask's marks; where their number was asked for (`count_later`), without waiting."""
    if count is None:
        return mask.nonzero().squeeze(1)
    return torch.nonzero_static(mask, size=count()).squeeze(1)
