"""The backend of a CPU: candidates by bfloat16 where that is fast, numba's loops over rows and latents in parallel.

Values differ from the reference's in their last bits, as the order of a sum's terms does.
"""

from contextlib import AbstractContextManager

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from saetool.sparse.backends import plain
from saetool.sparse.backends.cpu import kernels
from saetool.sparse.backends.cpu.parallel import operators_on_one_core, parallel_rows, parallel_sum, scratch
from saetool.sparse.backends.cpu.screen import HalfWeight, has_fast_half
from saetool.sparse.backends.plain import SLICE_ROWS, AdamStep
from saetool.sparse.codes import ByLatent, Support, offsets_after
from saetool.sparse.gradients import DeferredGradient
from saetool.sparse.weight import Weight

GROUPS = 512
"""Rows or latents a thread takes at a time: fewer are not worth the hand-over."""

ROWS_IN_CACHE = 256
"""Rows on which a thread makes one operation after the other."""

Entries = tuple[Int[Tensor, "rows"], Int[Tensor, "entries"], Float[Tensor, "computed"]]
"""How many entries each row has, their latents in order, and their outputs, if they are computed already."""


class Cpu:
    """See `Backend`."""

    name = "cpu"

    def center(self, x: Tensor, mean: Tensor | None, factor: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        units, centered = torch.empty(x.shape), torch.empty(x.shape)

        def part(number: int, rows: range) -> None:
            some = slice(rows.start, rows.stop)
            units[some] = x[some] if mean is None else (x[some] - mean).mul_(factor)
            torch.sub(units[some], bias, out=centered[some])

        parallel_rows(part, len(x), ROWS_IN_CACHE)
        return units, centered

    def search(self, x: Tensor, W_enc: Weight, bias, precision, *, cut=None, k=None) -> plain.Done:
        exact, cut = precision == "exact", torch.zeros_like(bias) if cut is None else cut
        if exact and not has_fast_half():
            return plain.Done(*_select_of_products(x, W_enc, bias, cut, k))
        return plain.Done(*_select(x, W_enc, bias, cut, k, exact))

    def keep(self, support: Support, values: Tensor, kept: Tensor) -> tuple[Support, Tensor]:
        return support.where(kept), values[kept]

    def by_latent(self, support: Support) -> ByLatent:
        found = kernels().by_latent(*_arrays(support.rows, support.latents), support.n_latents)
        return ByLatent(*map(torch.from_numpy, found))

    def decode(self, support: Support, values: Tensor, W_dec: Weight) -> Tensor:
        return _weighted_sums(support.offsets, support.latents, values, W_dec.tensor.detach())

    def squared_error(self, support: Support, values, W_dec: Weight, bias, x) -> tuple[Tensor, Tensor, Tensor]:
        errors, residual, slopes = torch.empty(len(x)), torch.empty_like(x), torch.empty_like(values)
        codes = _arrays(support.latents, values, support.offsets)
        run, arrays = kernels().squared_error, _arrays(W_dec.tensor, bias, x, errors, residual, slopes)
        parallel_rows(lambda number, rows: run(*codes, *arrays, rows.start, rows.stop), len(x), GROUPS)
        return errors, residual, slopes

    def sampled_products(self, support: Support, weight: Weight, rows: Tensor) -> Tensor:
        by_latent, found = support.by_latent(self), torch.empty(support.latents.numel())
        run, arrays = kernels().sampled, _arrays(weight.tensor, by_latent.offsets, rows, by_latent.rows, found)
        parallel_rows(lambda number, some: run(*arrays, some.start, some.stop), support.n_latents, GROUPS)
        return by_latent.to_row_order(found)

    def latent_gradient(self, support: Support, weights, table, start: int, stop: int) -> Tensor:
        by_latent = support.by_latent(self)
        offsets, ordered = by_latent.offsets[start : stop + 1], by_latent.to_latent_order(weights)
        return _weighted_sums(offsets, by_latent.rows, ordered, table)

    def latent_sums(self, support: Support, values: Tensor) -> Tensor:
        return values.new_zeros(support.n_latents).index_add_(0, support.latents, values)

    def column_sums(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        if weights is None:
            return parallel_sum(lambda some: rows[some].sum(0), len(rows))
        return parallel_sum(lambda some: weights[some] @ rows[some], len(rows))

    def update(
        self, weight: Weight, gradient: DeferredGradient, moments, step: AdamStep, unit_rows, scales=None
    ) -> None:
        outer = gradient.only_outer
        if outer is None:
            plain.update_in_blocks(self, weight, gradient, moments, step, unit_rows, scales)
            return
        by_latent = outer.support.by_latent(self)
        terms = _arrays(by_latent.rows, by_latent.to_latent_order(outer.weights), by_latent.offsets, outer.table)
        copy = weight.copy.weight if isinstance(weight.copy, HalfWeight) else torch.empty(0, 0, dtype=torch.bfloat16)
        run, arrays = kernels().update, _arrays(weight.tensor, *moments)
        before, after = (scales.before, scales.after) if scales else (torch.empty(0), torch.empty(0))
        rules = (unit_rows, *_arrays(before, after), copy.view(torch.int16).numpy())
        rest = (tuple(terms), tuple(map(np.float32, step.values())), *rules)
        parallel_rows(lambda number, rows: run(*arrays, *rest, rows.start, rows.stop), len(weight.tensor), GROUPS)
        torch.autograd.graph.increment_version(weight.tensor)
        weight.mark_current()

    def step_context(self) -> AbstractContextManager[None]:
        return operators_on_one_core()


def _select(x: Tensor, W_enc: Weight, bias: Tensor, cut: Tensor, k: int | None, exact: bool) -> tuple[Support, Tensor]:
    """Return the outputs above `cut`, or with `k` each row's k largest that are positive.

    A bfloat16 product finds candidates, a slice of rows at a time; in exact mode it is a proven bound of the outputs,
    and these are then computed in float32, for all rows at once: the weight then has the cache for itself.
    """
    half = W_enc.copied(HalfWeight)
    half.set_bias(bias - cut)

    def part(number: int, rows: range) -> Entries:
        extended = half.extend(x[rows.start : rows.stop], exact)
        bits = half.product(extended).view(torch.int16).numpy()
        if k is None:
            return _entries(kernels().above(bits, exact, *_arrays(cut)))
        slack = half.slack(extended) if exact else x.new_zeros(len(rows))
        return _entries(kernels().largest(bits, exact, *_arrays(slack), k))

    counts, latents, values = _joined(parallel_rows(part, len(x), SLICE_ROWS))
    if exact:
        counts, latents, values = _decide(counts, latents, x, W_enc.tensor, bias, cut, k)
    return Support(offsets_after(counts), latents, len(bias)), values


def _select_of_products(x: Tensor, W_enc: Weight, bias: Tensor, cut: Tensor, k: int | None) -> tuple[Support, Tensor]:
    """Return what `_select` does where bfloat16 is not fast: read off a float32 product, a slice of rows at a time."""
    run, weight = kernels(), W_enc.tensor.detach().T
    slices = x.split(SLICE_ROWS)  # the same for any number of threads: a product's last bits depend on its rows

    def one(rows: Tensor) -> Entries:
        product = torch.mm(rows, weight, out=scratch(len(rows), len(bias), torch.float32))
        bits = run.positive_sums(*_arrays(product, bias - cut))
        if k is None:
            return _entries(run.above(bits, False, *_arrays(cut)))
        return _entries(run.largest(bits, False, *_arrays(bias), k))  # no slack is read, and bias stands in its place

    found = parallel_rows(lambda number, some: [one(slices[i]) for i in some], len(slices), 1)
    counts, latents, values = _joined([entries for part in found for entries in part])
    return Support(offsets_after(counts), latents, len(bias)), values


def _decide(
    counts: Tensor, latents: Tensor, x: Tensor, weight: Tensor, bias: Tensor, cut: Tensor, k: int | None
) -> Entries:
    """Return the candidates whose float32 output is above the cut or, with k, each row's k largest above 0."""
    run, arrays, places = kernels().decide, _arrays(x, weight, bias, cut), _arrays(offsets_after(counts), latents)

    def part(number: int, rows: range) -> Entries:
        return _entries(run(*arrays, k or 0, *places, rows.start, rows.stop))

    return _joined(parallel_rows(part, len(x), GROUPS))


def _weighted_sums(offsets: Tensor, index: Tensor, weights: Tensor, table: Tensor) -> Tensor:
    """Return, for group g, Σ over its entries e from offsets[g] to offsets[g + 1] of weights[e] · table[index[e]].

    By torch's `embedding_bag`: two to three times faster than its CSR product (measured).
    """
    first, last = int(offsets[0]), int(offsets[-1])
    if first == last:
        return table.new_zeros(len(offsets) - 1, table.shape[1])
    return functional.embedding_bag(
        index[first:last],
        table,
        offsets - first,
        mode="sum",
        per_sample_weights=weights[first:last],
        include_last_offset=True,
    )


def _joined(parts: list[Entries]) -> Entries:
    """Return what was found in parts of the rows, in order."""
    counts, latents, values = map(torch.cat, zip(*parts, strict=True))
    return counts, latents, values


def _entries(arrays: tuple) -> Entries:
    counts, latents, values = map(torch.from_numpy, arrays)
    return counts, latents, values


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [t.detach().contiguous().numpy() for t in tensors]
