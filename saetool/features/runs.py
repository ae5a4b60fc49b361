"""Sorting and adding up by groups: the same order and the same bits on every device."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def order_of(keys: Int[Tensor, "elements"]) -> Int[Tensor, "elements"]:
    """Return the order of rising keys, equal ones in the order in which they come."""
    if keys.device.type == "cpu":  # twice as fast there as torch's on one thread
        return torch.from_numpy(np.argsort(keys.numpy(), kind="stable"))
    return keys.sort(stable=True).indices


def sums_of_runs(
    cell: Int[Tensor, "elements"], weights: Float[Tensor, "elements"], cells: int
) -> Float[Tensor, "cells"]:
    """Return the sum of the weights of each of `cells` cells, float64; `cell` ascends.

    A cell's weights are added one after the other, in the order in which they come: a GPU's atomic additions would
    come in any order.
    """
    if cell.device.type != "cpu":
        return added_by_one_thread_each(cell, weights, cells)
    return torch.bincount(cell, weights=weights.double(), minlength=cells).double()


def added_by_one_thread_each(
    cell: Int[Tensor, "elements"], weights: Float[Tensor, "elements"], cells: int
) -> Float[Tensor, "cells"]:
    """Return what `sums_of_runs` does, in the way that is fast on a GPU."""
    ends = torch.searchsorted(cell, torch.arange(cells + 1, device=cell.device))
    # A matrix is added up by one thread a column and cell; a vector by many, in another order.
    twice = weights.double()[:, None].expand(-1, 2).contiguous()
    return torch.segment_reduce(twice, "sum", lengths=ends.diff(), axis=0, unsafe=True, initial=0)[:, 0].contiguous()


def counts_of(cell: Int[Tensor, "elements"], amounts: Int[Tensor, "elements"], cells: int) -> Int[Tensor, "cells"]:
    """Return the sum of whole amounts of each of `cells` cells, int64; exact, so in any order."""
    return torch.zeros(cells, dtype=torch.int64, device=cell.device).scatter_add_(0, cell, amounts.long())


def heads_of(*columns: Tensor) -> Int[Tensor, "heads"]:
    """Return the positions at which any of the columns differs from the element before; the first one's too."""
    new = torch.ones(len(columns[0]), dtype=torch.bool, device=columns[0].device)
    if len(new):
        new[1:] = columns[0][1:] != columns[0][:-1]
        for column in columns[1:]:
            new[1:] |= column[1:] != column[:-1]
    return new.nonzero().squeeze(1)


def spread_over(heads: Int[Tensor, "heads"], values: Int[Tensor, "heads"], elements: int) -> Int[Tensor, "elements"]:
    """Return, for every element, the value of the run that it is in; runs start at `heads`."""
    lengths = torch.cat([heads, heads.new_tensor([elements])]).diff()
    return torch.repeat_interleave(values, lengths, output_size=elements)
