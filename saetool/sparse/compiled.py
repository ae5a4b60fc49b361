"""The compiled kernels for torch's tensors, where they serve: float32 on the CPU, with numba (the extra `cpu`) at hand.

Everywhere else plain torch does the same. Both give the same support; values differ in their last bits, as the order
of a sum's terms does.
"""

import os
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saetool.sparse.support import Support
from saetool.sparse.threads import share_out

SWITCH = "SAETOOL_COMPILED"
"""The environment variable that, set to 0, leaves everything to plain torch."""

GROUPS_AT_LEAST = 256
"""Groups of a sampled product a thread: fewer are not worth the hand-over."""


@cache
def kernels() -> ModuleType | None:
    """Return the compiled kernels; None without numba, without a place to keep them, or where they are switched off."""
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        from saetool.sparse import compiled_kernels
    except (ImportError, RuntimeError):  # RuntimeError: no directory for numba's cache can be written
        return None
    return compiled_kernels


def serves(*tensors: Tensor) -> bool:
    """Say whether the compiled kernels can be used on these tensors."""
    return all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors) and kernels() is not None


Found = tuple[Int[Tensor, "entries"], Int[Tensor, "entries"], Float[Tensor, "entries"]]


def above(pre: Tensor, exact: bool, x: Tensor, weight: Tensor, bias: Tensor, cut: Tensor) -> Found:
    """Return rows, latents and outputs x·w + bias of the entries where `pre` is positive.

    pre [rows, n_latents], bfloat16, bounds x·wᵀ + bias − cut from above; bias and cut have [n_latents] entries.
    """
    return _found(_kernels().above(_bits(pre), exact, *_arrays(x, weight, bias, cut)))


def largest(pre: Tensor, exact: bool, x: Tensor, weight: Tensor, bias: Tensor, k: int) -> Found:
    """Return rows, latents and outputs of each row's k largest that are positive; `pre` bounds x·wᵀ + bias."""
    return _found(_kernels().largest(_bits(pre), exact, *_arrays(x, weight, bias), k))


def to_bytes(rows: Float[Tensor, "rows d_in"]) -> tuple[Int[Tensor, "rows d_in"], Float[Tensor, "3 rows"]]:
    """Return rows in int8, and for each its scale, its norm and the norm of what rounding changed."""
    coded, numbers = torch.empty(rows.shape, dtype=torch.int8), torch.empty(3, len(rows))
    _kernels().to_bytes(*_arrays(rows, coded, numbers))
    return coded, numbers


@dataclass(frozen=True)
class Bounding:
    """What turns products of int8 rows into bounds of x·w + bias − cut, in units of the row's scale."""

    factors: Float[Tensor, "rows 3"]
    """What offset, norm and error count of each latent's `numbers`."""
    numbers: Float[Tensor, "3 n_latents"]
    offset: Float[Tensor, "n_latents"]
    share: float
    """Of the proven bounds; 1 for those themselves."""

    def arrays(self, rows: slice) -> tuple:
        """Return what the kernels take, for some of the rows."""
        scale, norm, error = self.numbers.numpy()
        return self.factors[rows].numpy(), scale, self.offset.numpy(), norm, error


@dataclass(frozen=True)
class Narrowing:
    """What bounds x·w + bias more narrowly, from the row as it is and the int8 weight, where only a few are left."""

    spread: Float[Tensor, "rows"]
    """About how far outputs are below their first bounds, in units of the row's scale."""
    coded: Int[Tensor, "n_latents d_in"]
    latents: Float[Tensor, "n_latents 3"]
    """Scale, offset, error."""
    slack: Float[Tensor, "rows 2"]
    """What the error counts, and what rounding adds."""

    def arrays(self, rows: slice) -> list:
        """Return what the kernels take, for some of the rows."""
        return _arrays(self.spread[rows], self.coded, self.latents, self.slack[rows])


def above_bytes(sums: Tensor, bounds: tuple, x: Tensor, weight: Tensor, bias: Tensor, cut: Tensor) -> Found:
    """Do what `above` does in exact mode, from products of int8 rows [rows, n_latents] and `Bounding.arrays`."""
    return _found(_kernels().above_bytes(sums.numpy(), *bounds, *_arrays(x, weight, bias, cut)))


def largest_bytes(sums: Tensor, bounds: tuple, x: Tensor, weight: Tensor, bias: Tensor, k: int) -> Found:
    """Do what `largest` does in exact mode, from products of int8 rows [rows, n_latents].

    `bounds` are `Bounding.arrays` and then `Narrowing.arrays`.
    """
    return _found(_kernels().largest_bytes(sums.numpy(), *bounds, *_arrays(x, weight, bias), k))


def sampled(
    left: Float[Tensor, "groups d_in"],
    offsets: Int[Tensor, "groups_plus_one"],
    right: Float[Tensor, "rows d_in"],
    index: Int[Tensor, "entries"],
) -> Float[Tensor, "entries"]:
    """Return left[g] · right[index[e]] for every entry e, where g is the group whose offsets enclose e."""
    values = torch.empty(index.numel())
    run, arrays = _kernels().sampled, _arrays(left, offsets, right, index, values)
    share_out(lambda number, groups: run(*arrays, groups.start, groups.stop), len(left), GROUPS_AT_LEAST, left.device)
    return values


def decoding_error(
    values: Float[Tensor, "entries"],
    weight: Float[Tensor, "n_latents d_in"],
    bias: Float[Tensor, "d_in"],
    x: Float[Tensor, "batch d_in"],
    support: Support,
) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch d_in"], Float[Tensor, "entries"]]:
    """Return what `kernels.decoding_error` returns."""
    errors, residual, pulls = torch.empty(len(x)), torch.empty_like(x), torch.empty_like(values)
    codes = _arrays(support.latents, values, support.offsets)
    run, arrays = _kernels().decoding_error, _arrays(weight, bias, x, errors, residual, pulls)
    share_out(lambda number, rows: run(*codes, *arrays, rows.start, rows.stop), len(x), GROUPS_AT_LEAST, x.device)
    return errors, residual, pulls


def update(
    weight: Float[Tensor, "n_latents d_in"],
    gradient: tuple[Tensor, Tensor, Tensor, Tensor],
    state: dict[str, Tensor],
    group: dict,
    unit_rows: bool,
    half: Float[Tensor, "n_latents columns"] | None,
    coded: tuple[Int[Tensor, "n_latents d_in"], Float[Tensor, "3 n_latents"]] | None,
) -> None:
    """Take Adam's step for a weight whose gradient is a sum (rows, weights, offsets, table: see `Outer`).

    With `unit_rows` its rows keep norm 1. `half` is its bfloat16 copy with the norms (see `HalfWeight`), `coded` its
    int8 copy and numbers (see `ByteWeight`): the one that is given is renewed too.
    """
    beta1, beta2 = group["betas"]
    steps = float(state["step"]) + 1  # on the CPU: nothing waits
    values = (group["lr"] / (1 - beta1**steps), beta1, beta2, (1 - beta2**steps) ** 0.5, group["eps"])
    numbers = tuple(map(np.float32, values))
    arrays = _arrays(weight, state["exp_avg"], state["exp_avg_sq"])
    terms = tuple(_arrays(*gradient))
    in_half = torch.empty(0, 0, dtype=torch.int16) if half is None else half.view(torch.int16)
    in_bytes = coded or (torch.empty(0, 0, dtype=torch.int8), torch.empty(3, 0))
    copies = (in_half.numpy(), tuple(t.numpy() for t in in_bytes))
    run = _kernels().update

    def part(number: int, rows: range) -> None:
        run(*arrays, terms, numbers, unit_rows, *copies, rows.start, rows.stop)

    share_out(part, len(weight), GROUPS_AT_LEAST, weight.device)
    torch.autograd.graph.increment_version(weight)


def _found(arrays: tuple) -> Found:
    rows, latents, values = map(torch.from_numpy, arrays)
    return rows, latents, values


def _kernels() -> ModuleType:
    found = kernels()
    assert found is not None  # `serves` was asked
    return found


def _bits(pre: Tensor):  # -> numpy array
    return pre.view(torch.int16).numpy()


def _arrays(*tensors: Tensor) -> list:
    return [t.detach().contiguous().numpy() for t in tensors]
