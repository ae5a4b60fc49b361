"""An iterator run ahead in a thread gives the same items and ends when nobody listens."""

import threading
import time

import pytest

from saetool.activations.prefetch import prefetch


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
