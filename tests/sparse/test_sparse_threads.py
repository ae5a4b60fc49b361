"""Rows are shared out in order, whoever takes them; and torch's number of threads comes back."""

import threading

import pytest
import torch

from saetool.sparse.threads import operators_on_one_core, share_out

CPU = torch.device("cpu")


@pytest.fixture
def two_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def seen(rows, part):
    threads = set()

    def work(number, some):
        threads.add((number, threading.get_ident()))
        torch.rand(200, 200) @ torch.rand(200, 200)
        return list(some), torch.get_num_threads(), torch.is_grad_enabled()

    return share_out(work, rows, part, CPU), threads


@pytest.mark.parametrize(("rows", "part"), [(0, 5), (1, 5), (5, 5), (64, 1), (103, 10)])
def test_every_row_is_taken_once_and_in_order(two_cores, rows, part):
    found, threads = seen(rows, part)
    assert [row for some, _, _ in found for row in some] == list(range(rows))
    assert all(len(some) <= part for some, _, _ in found)
    assert len(found) == max(1, -(-rows // part))
    assert {number for number, _ in threads} <= {0, 1}
    if len(found) > 1:
        assert {(cores, grad) for _, cores, grad in found} == {(1, False)}
    assert torch.get_num_threads() == 2


def test_shares_keep_all_cores_while_operators_have_one(two_cores):
    with operators_on_one_core():
        assert torch.get_num_threads() == 1
        with operators_on_one_core():
            assert len({number for number, _ in seen(400, 1)[1]}) == 2
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)  # what was before does not stay
    assert len({number for number, _ in seen(400, 1)[1]}) == 1
    with operators_on_one_core():
        pass
    torch.set_num_threads(2)
    assert len({number for number, _ in seen(400, 1)[1]}) == 2


def test_what_a_thread_raises_is_raised_here_and_threads_come_back(two_cores):
    def work(number, some):
        if some.start == 30:
            raise ValueError("row 30")

    with pytest.raises(ValueError, match="row 30"):
        share_out(work, 60, 10, CPU)
    assert torch.get_num_threads() == 2
