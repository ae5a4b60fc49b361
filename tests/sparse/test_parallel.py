"""Rows are shared out in order, whoever takes them; and torch's number of threads comes back."""

import threading

import pytest
import torch

from saetool.sparse.backends.cpu.parallel import operators_on_one_core, parallel_rows, parallel_sum


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

    return parallel_rows(work, rows, part), threads


@pytest.mark.parametrize(("rows", "part"), [(0, 5), (1, 5), (5, 5), (64, 1), (103, 10), (8, 3)])
def test_every_row_is_taken_once_and_in_order(two_cores, rows, part):
    found, threads = seen(rows, part)
    assert [row for some, _, _ in found for row in some] == list(range(rows))
    sizes = [len(some) for some, _, _ in found]
    assert max(sizes) <= part
    assert {number for number, _ in threads} <= {0, 1}
    if rows > part:
        assert len(found) % 2 == 0  # as much for each of the two
        assert max(sizes) - min(sizes) <= 1
        assert {(cores, grad) for _, cores, grad in found} == {(1, False)}
    assert torch.get_num_threads() == 2


def test_sums_have_the_same_bits_whatever_the_number_of_threads(two_cores):
    rows = torch.randn(5000, 7, generator=torch.Generator().manual_seed(0))
    with_two = parallel_sum(lambda some: rows[some].sum(0), len(rows))
    torch.set_num_threads(1)
    assert torch.equal(parallel_sum(lambda some: rows[some].sum(0), len(rows)), with_two)
    torch.testing.assert_close(with_two.double(), rows.double().sum(0), rtol=0, atol=1e-3)
    assert torch.equal(parallel_sum(lambda some: rows[:0][some].sum(0), 0), torch.zeros(7))


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
        parallel_rows(work, 60, 10)
    assert torch.get_num_threads() == 2


def test_threads_write_into_tensors_of_inference_mode(two_cores):
    with torch.inference_mode():
        out = torch.zeros(600, 2)

        def work(number, some):
            out[some.start : some.stop] = 1.0

        parallel_rows(work, 600, 100)
    assert out.min() == 1
