"""Sums by groups are those of adding one after the other, whoever adds."""

import numpy as np
import torch
from hypothesis import given, strategies as st

from saetool.features import runs

SEEDS = st.integers(0, 2**32 - 1)


def drawn(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ascending cells of 7, some of them empty, and weights of very different size."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 40))
    cell = np.sort(rng.choice([0, 2, 3, 6], n)).astype(np.int64)
    return torch.from_numpy(cell), torch.from_numpy(rng.random(n) * 10.0 ** rng.integers(-12, 12, n))


@given(SEEDS)
def test_weights_of_a_run_are_added_in_their_order_on_any_device(seed):
    cell, weights = drawn(seed)
    wanted = [0.0] * 7
    for place, weight in zip(cell.tolist(), weights.tolist(), strict=True):
        wanted[place] += weight
    assert runs.sums_of_runs(cell, weights, 7).tolist() == wanted
    assert runs.added_by_one_thread_each(cell, weights, 7).tolist() == wanted


@given(SEEDS)
def test_runs_and_their_members_are_told_by_a_change(seed):
    cell, _ = drawn(seed)
    heads = runs.heads_of(cell)
    assert heads.tolist() == [i for i in range(len(cell)) if i == 0 or cell[i] != cell[i - 1]]
    first = {int(c): i for i, c in reversed(list(enumerate(cell)))}
    assert runs.spread_over(heads, heads, len(cell)).tolist() == [first[int(c)] for c in cell]


def test_equal_keys_keep_their_order():
    keys = torch.tensor([5, 1, 5, 1, 0, 5])
    assert runs.order_of(keys).tolist() == [4, 1, 3, 0, 2, 5]
