"""Copies beside a GPU's work, told by the calls that torch gets: who waits for whom, and what is held until when."""

from contextlib import contextmanager

import pytest
import torch

from saetool.lanes import Lanes


class Stream:
    """Notes what it is asked to wait for."""

    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def wait_stream(self, other):
        self.calls.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event):
        self.calls.append(f"{self.name} waits for the event on {event.on}")


class Event:
    def __init__(self, calls):
        self.calls = calls

    def record(self, stream):
        self.on = stream.name
        self.calls.append(f"event on {stream.name}")

    def synchronize(self):
        self.calls.append("synchronize")


@pytest.fixture
def calls(monkeypatch):
    """Stand in for a GPU; return the calls it gets."""
    calls, names = [], iter(["up", "down", "beside"])
    current = [Stream("computing", calls)]

    @contextmanager
    def stream(chosen):
        before, current[0] = current[0], chosen
        yield
        current[0] = before

    class Copied(torch.Tensor):
        def to(self, device, non_blocking):
            calls.append(f"copy on {current[0].name}, non_blocking={non_blocking}")
            return self

        def record_stream(self, chosen):
            calls.append(f"kept for {chosen.name}")

    class Landing(torch.Tensor):
        def copy_(self, tensor, non_blocking):
            calls.append(f"copy on {current[0].name}, non_blocking={non_blocking}")
            return super().copy_(tensor)

    empty = torch.empty
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(next(names), calls))
    monkeypatch.setattr(torch.cuda, "Event", lambda blocking=False: Event(calls))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[0])
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(
        torch,
        "empty",
        lambda size, dtype, pin_memory: empty(size, dtype=dtype).as_subclass(Landing) if pin_memory else 1,
    )
    calls.append(Copied)
    return calls


def test_computing_waits_for_what_goes_up_and_its_memory_is_kept_for_it(calls):
    copied = calls.pop()
    Lanes(torch.device("cuda")).up(torch.zeros(3).as_subclass(copied))
    assert calls[:2] == ["copy on up, non_blocking=True", "event on up"]
    assert calls[2:] == ["computing waits for the event on up", "kept for computing"]


def test_what_is_sent_ahead_is_waited_for_by_who_takes_it_alone(calls):
    copied = calls.pop()
    lanes = Lanes(torch.device("cuda"))
    first, _ = (lanes.send(torch.zeros(3).as_subclass(copied)) for _ in range(2))
    assert not [call for call in calls if "waits" in call]
    first()
    assert calls[4:] == ["computing waits for the event on up", "kept for computing"]


def test_what_comes_down_waits_for_computing_and_is_read_after_its_event(calls):
    calls.pop()
    landed = Lanes(torch.device("cuda")).down([torch.ones(2), torch.ones(3)])
    copying = ["copy on down, non_blocking=True"] * 2
    assert calls == ["down waits for computing", *copying, "event on down"]
    assert [copy.tolist() for copy in landed()] == [[1, 1], [1, 1, 1]]
    assert calls[-1] == "synchronize"


def test_what_is_handed_over_is_waited_for_and_kept_for_who_takes_it(calls):
    copied = calls.pop()
    lanes = Lanes(torch.device("cuda"))
    taken = lanes.hand_over([torch.zeros(3).as_subclass(copied)])
    with lanes.beside():
        taken()
        lanes.down([torch.ones(1)])
    assert calls[:3] == ["event on computing", "beside waits for the event on computing", "kept for beside"]
    assert calls[3] == "down waits for beside"


def test_without_a_gpu_copies_are_plain():
    lanes = Lanes(torch.device("cpu"))
    rows = torch.arange(4)
    assert torch.equal(lanes.up(rows), rows)
    assert [t.tolist() for t in lanes.down([rows])()] == [[0, 1, 2, 3]]
    taken = lanes.hand_over([rows])
    with lanes.beside():
        assert taken() is None
