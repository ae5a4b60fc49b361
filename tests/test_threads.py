"""Work in threads gives the same items, in order, and ends when nobody listens."""

import threading
import time

import pytest
import torch

from saetool.threads import ordered, prefetch


@pytest.mark.parametrize("depth", [0, 1, 5])
def test_the_same_items_in_the_same_order(depth):
    assert list(prefetch(range(100), depth)) == list(range(100))


def test_an_error_comes_where_it_happened():
    def items():
        yield 1
        raise ValueError("here")

    seen = []
    with pytest.raises(ValueError, match="here"):
        seen.extend(prefetch(items(), 3))
    got = prefetch(items(), 3)
    assert next(got) == 1
    with pytest.raises(ValueError, match="here"):
        next(got)


def test_no_more_than_asked_is_made_ahead():
    made = []

    def items():
        for i in range(100):
            made.append(i)
            yield i

    got = prefetch(items(), 2)
    next(got)
    time.sleep(0.1)
    assert len(made) <= 1 + 2 + 1  # taken, waiting, and one in the thread's hands
    got.close()


def test_closing_ends_the_thread_and_the_iterator():
    closed = threading.Event()

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    before = threading.active_count()
    got = prefetch(items(), 2)
    next(got)
    got.close()
    assert closed.is_set()
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [1, 3])
def test_items_are_worked_on_side_by_side_and_come_in_order(workers):
    at_work, most = 0, 0
    lock, begun = threading.Lock(), []

    def work(item):
        nonlocal at_work, most
        with lock:
            begun.append(item)
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.002 * (item % 3))
        with lock:
            at_work -= 1
        return item * item

    before = torch.get_num_threads()
    found = ordered(work, range(40), workers)
    assert [next(found) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(begun) <= 5 + 2 * workers + 1
    assert list(found) == [i * i for i in range(5, 40)]
    assert most <= workers
    assert torch.get_num_threads() == before


def test_what_fails_is_raised_in_its_place_and_what_follows_is_left():
    begun = []

    def work(item):
        begun.append(item)
        if item == 3:
            raise ValueError("the third")
        return item

    found = ordered(work, range(1000), 2)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the third"):
        next(found)
    assert len(begun) < 20
