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

from saetool.sparse.threads import share_out

SWITCH = "SAETOOL_COMPILED"
"""The environment variable that, set to 0, leaves everything to plain torch."""

COLUMNS = 32
"""Rows of int8 are filled up with zeros to a multiple of so many."""

GROUPS = 512
"""Rows or latents a thread takes at a time: fewer are not worth the hand-over."""


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
    """Say whether the compiled kernels can be used on these tensors, of float32 numbers or int64 places."""
    served = (torch.float32, torch.int64)
    return all(t.device.type == "cpu" and t.dtype in served for t in tensors) and kernels() is not None


Found = tuple[Int[Tensor, "rows"], Int[Tensor, "entries"], Float[Tensor, "entries"]]
"""How many entries each row has, their latents in order, and their outputs."""


@dataclass(frozen=True)
class Narrowing:
    """What bounds x·w + bias − cut more narrowly, by int16 rows and two int8 numbers a weight, where few are left."""

    coded: Int[Tensor, "2 n_latents columns"]
    latents: Float[Tensor, "n_latents 5"]
    """Scale, bias − cut, error of one and of both int8 numbers, what adding bias and cut may lose."""
    slack: Float[Tensor, "rows 2"]
    """What the error counts, and what rounding adds."""
    spread: Float[Tensor, "rows"]
    """About how far outputs are below their first bounds."""

    def arrays(self) -> tuple:
        """Return what the kernels take."""
        return tuple(_arrays(self.coded, self.latents, self.slack, self.spread))

    def of(self, rows: slice) -> "Narrowing":
        """Return that of some rows."""
        return Narrowing(self.coded, self.latents, self.slack[rows], self.spread[rows])


@dataclass(frozen=True)
class Bounds:
    """Bounds of outputs from above, in bfloat16."""

    pre: Float[Tensor, "rows n_latents"]
    exact: bool
    """Whether outputs will be computed in float32, and decide; else what stands here is taken for them."""
    slack: Float[Tensor, "rows"]
    """How far the bounds are above outputs, at most, before they are rounded."""

    def above(self, cut: Float[Tensor, "n_latents"]) -> Found:
        """Return the entries that may be above their latent's cut, from bounds of x·wᵀ + bias − cut.

        No outputs, if these are to be exact: see `decide`.
        """
        return _found(_kernels().above(self._bits(), self.exact, *_arrays(cut)))

    def largest(self, k: int) -> Found:
        """Return the entries that may be among each row's k largest and positive, from bounds of x·wᵀ + bias.

        No outputs, if these are to be exact: see `decide`.
        """
        return _found(_kernels().largest(self._bits(), self.exact, *_arrays(self.slack), k))

    def _bits(self) -> np.ndarray:
        return self.pre.view(torch.int16).numpy()


@dataclass(frozen=True)
class Bounding:
    """Rows and latents in int8, and what makes bounds of their products; they do the same as `Bounds`, for some rows,
    the first of which is a multiple of the tile's."""

    weight: "CodedWeight"
    coded: Int[Tensor, "rows_and_more columns"]
    factors: Float[Tensor, "rows_and_more 3"]
    offset: Float[Tensor, "padded"]
    blocks: int
    narrowing: Narrowing
    exact: bool

    def above(self, rows: range, x: Float[Tensor, "rows d_in"], cut: Float[Tensor, "n_latents"]) -> Found:
        """Return the entries that may be above their latent's cut; outputs, unless these are to be exact."""
        return _found(_kernels().above_by_bytes(*self.arrays(rows), *_arrays(x, cut)))

    def largest(self, rows: range, x: Float[Tensor, "rows d_in"], k: int) -> Found:
        """Return the entries that may be among each row's k largest and positive; outputs, unless exact."""
        return _found(_kernels().largest_by_bytes(*self.arrays(rows), *_arrays(x), k))

    def bounds(self, rows: range) -> tuple[Float[Tensor, "rows padded"], Int[Tensor, "rows blocks"]]:
        """Return the bounds that these begin with, and the largest of each strided block as bits, at least 0."""
        product, blocks, _, _ = self.arrays(rows)
        out = np.zeros((len(product[0]), len(self.offset)), np.int16)
        maxima = np.zeros((len(out), blocks), np.int16)
        _kernels().bounds(*product, out, maxima, blocks)
        pre, most = torch.from_numpy(out).view(torch.bfloat16), torch.from_numpy(maxima)
        return pre[: len(rows)], most[: len(rows)]

    def arrays(self, rows: range) -> tuple:
        """Return what the kernels take: the product's, the number of blocks, the narrowing, whether exact."""
        here = slice(rows.start, rows.start + up_to_multiple(len(rows), tile()))
        weight = self.weight
        product = _arrays(self.coded[here], self.factors[here], weight.panels, weight.numbers, self.offset)
        return tuple(product), self.blocks, self.narrowing.of(slice(rows.start, rows.stop)).arrays(), self.exact


def decide(
    candidates: Found,
    x: Float[Tensor, "rows d_in"],
    weight: Float[Tensor, "n_latents d_in"],
    bias: Float[Tensor, "n_latents"],
    cut: Float[Tensor, "n_latents"],
    k: int | None,
) -> Found:
    """Return the candidates whose output x·w + bias is above the cut or, with k, each row's k largest above 0.

    Outputs are computed in float32. All rows at once: the weight then has the cache for itself.
    """
    counts, latents, _ = candidates
    offsets = torch.zeros(len(counts) + 1, dtype=torch.int64)
    torch.cumsum(counts, 0, out=offsets[1:])
    run, arrays, places = _kernels().decide, _arrays(x, weight, bias, cut), _arrays(offsets, latents)

    def part(number: int, rows: range) -> Found:
        return _found(run(*arrays, k or 0, *places, rows.start, rows.stop))

    return joined(share_out(part, len(x), GROUPS, x.device))


def joined(parts: list[Found]) -> Found:
    """Return what was found in parts of the rows, in order."""
    if len(parts) == 1:
        return parts[0]
    counts, latents, values = map(torch.cat, zip(*parts, strict=True))
    return counts, latents, values


@cache
def has_byte_unit() -> bool:
    """Say whether there are compiled kernels, and numba compiles them for a CPU that adds byte products."""
    if kernels() is None:
        return False
    import llvmlite.binding
    from numba.core import config

    features, name = (getattr(config, key, None) for key in ("CPU_FEATURES", "CPU_NAME"))  # as the environment says
    if features is not None or name is not None:
        return "+avx512vnni" in (features or "")
    return llvmlite.binding.get_host_cpu_features().get("avx512vnni", False)


def shorts(columns: int) -> int:
    """Return the largest number in rows of int16."""
    return min(int(_kernels().MOST), _kernels().SHORTS // up_to_multiple(columns, COLUMNS))


def panel() -> int:
    """Return how many latents the int8 product computes together."""
    return _kernels().PANEL


def tile() -> int:
    """Return how many rows the int8 product computes together."""
    return _kernels().TILE


Coded = tuple[Int[Tensor, "rows columns"], Float[Tensor, "3 rows"]]
"""Rows in int8, their inputs filled up with zeros; each row's scale, norm and the norm of what rounding changed."""


def to_bytes(rows: Float[Tensor, "rows d_in"]) -> Coded:
    """Return rows in int8, filled up with rows of zeros to whole tiles of the int8 product."""
    count = up_to_multiple(len(rows), tile())
    coded = torch.zeros(count, up_to_multiple(rows.shape[1], COLUMNS), dtype=torch.int8)
    numbers = torch.zeros(3, count)
    run, arrays = _kernels().to_bytes, _arrays(rows, coded, numbers)
    share_out(lambda number, some: run(*arrays, some.start, some.stop), len(rows), GROUPS, rows.device)
    return coded, numbers


@dataclass(frozen=True)
class CodedWeight:
    """A weight in int8: row by row, and in panels for the product."""

    rows: Int[Tensor, "2 n_latents columns"]
    """The weight rounded to int8, in units of each latent's scale, and what that leaves, in finer units."""
    numbers: Float[Tensor, "4 padded"]
    """Each latent's scale, norm, and the norms of what one and both int8 numbers leave; zeros up to whole panels."""
    panels: Int[Tensor, "panels words side"]
    """The first int8 numbers, 128 higher, four inputs to a word: see `compiled_kernels`."""

    @classmethod
    def empty(cls, n_latents: int, d_in: int) -> "CodedWeight":
        """Return one that stands for zeros."""
        words, side = up_to_multiple(d_in, COLUMNS) // 4, _kernels().PANEL
        n_panels = up_to_multiple(n_latents, side) // side
        return cls(
            torch.zeros(2, n_latents, 4 * words, dtype=torch.int8),
            torch.zeros(4, n_panels * side),
            torch.zeros(n_panels, words, side, dtype=torch.int32),
        )

    def refresh(self, weight: Float[Tensor, "n_latents d_in"], start: int, stop: int) -> None:
        """Copy the rows `start` to `stop`."""
        _kernels().latents_to_bytes(*_arrays(weight), self.arrays(), start, stop)

    def arrays(self) -> tuple:
        """Return what the kernels take."""
        return tuple(_arrays(self.rows, self.numbers, self.panels))


def up_to_multiple(number: int, of: int) -> int:
    """Return the next multiple."""
    return -(-number // of) * of


def by_latent(
    rows: Int[Tensor, "entries"], latents: Int[Tensor, "entries"], n_latents: int
) -> tuple[Int[Tensor, "entries"], Int[Tensor, "entries"], Int[Tensor, "n_latents_plus_one"]]:
    """Return the entries' places, their rows and the latents' offsets, in latent order."""
    order, there, offsets = map(torch.from_numpy, _kernels().by_latent(*_arrays(rows, latents), n_latents))
    return order, there, offsets


def sampled(
    left: Float[Tensor, "groups d_in"],
    offsets: Int[Tensor, "groups_plus_one"],
    right: Float[Tensor, "rows d_in"],
    index: Int[Tensor, "entries"],
) -> Float[Tensor, "entries"]:
    """Return left[g] · right[index[e]] for every entry e, where g is the group whose offsets enclose e."""
    values = torch.empty(index.numel())
    run, arrays = _kernels().sampled, _arrays(left, offsets, right, index, values)
    share_out(lambda number, groups: run(*arrays, groups.start, groups.stop), len(left), GROUPS, left.device)
    return values


def decoding_error(
    values: Float[Tensor, "entries"],
    weight: Float[Tensor, "n_latents d_in"],
    bias: Float[Tensor, "d_in"],
    x: Float[Tensor, "batch d_in"],
    latents: Int[Tensor, "entries"],
    offsets: Int[Tensor, "batch_plus_one"],
) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch d_in"], Float[Tensor, "entries"]]:
    """Return what `kernels.decoding_error` returns."""
    errors, residual, pulls = torch.empty(len(x)), torch.empty_like(x), torch.empty_like(values)
    codes = _arrays(latents, values, offsets)
    run, arrays = _kernels().decoding_error, _arrays(weight, bias, x, errors, residual, pulls)
    share_out(lambda number, rows: run(*codes, *arrays, rows.start, rows.stop), len(x), GROUPS, x.device)
    return errors, residual, pulls


NO_COPY = CodedWeight(
    torch.empty(2, 0, 0, dtype=torch.int8), torch.empty(4, 0), torch.empty(0, 0, 1, dtype=torch.int32)
)


def update(
    weight: Float[Tensor, "n_latents d_in"],
    gradient: tuple[Tensor, Tensor, Tensor, Tensor],
    state: dict[str, Tensor],
    group: dict,
    unit_rows: bool,
    half: Float[Tensor, "n_latents columns"] | None,
    coded: CodedWeight | None,
) -> None:
    """Take Adam's step for a weight whose gradient is a sum (rows, weights, offsets, table: see `Outer`).

    With `unit_rows` its rows keep norm 1. `half` is its bfloat16 copy with the norms (see `HalfWeight`), `coded` its
    int8 copy: the one that is given is renewed too.
    """
    beta1, beta2 = group["betas"]
    steps = float(state["step"]) + 1  # on the CPU: nothing waits
    values = (group["lr"] / (1 - beta1**steps), beta1, beta2, (1 - beta2**steps) ** 0.5, group["eps"])
    numbers = tuple(map(np.float32, values))
    arrays = _arrays(weight, state["exp_avg"], state["exp_avg_sq"])
    terms = tuple(_arrays(*gradient))
    in_half = torch.empty(0, 0, dtype=torch.int16) if half is None else half.view(torch.int16)
    copies = (in_half.numpy(), (coded or NO_COPY).arrays())
    run = _kernels().update

    def part(number: int, rows: range) -> None:
        run(*arrays, terms, numbers, unit_rows, *copies, rows.start, rows.stop)

    share_out(part, len(weight), GROUPS, weight.device)
    torch.autograd.graph.increment_version(weight)


def _found(arrays: tuple) -> Found:
    rows, latents, values = map(torch.from_numpy, arrays)
    return rows, latents, values


def _kernels() -> ModuleType:
    found = kernels()
    assert found is not None  # `serves` was asked
    return found


def _arrays(*tensors: Tensor) -> list:
    return [t.detach().contiguous().numpy() for t in tensors]
