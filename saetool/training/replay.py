"""Steps of training recorded once as CUDA graphs and then replayed, so that a GPU never waits for Python.

A step has two parts: the search for the batch's entries, and all that follows once their number is known. Each is a
graph. The second is recorded for each `shape` of what was found, of which a training sees a few; a step of a shape that
is new is recorded and replayed at once. A step that does more than the others (dead latents revived, a penalty that
still rises) takes the search from its graph and the rest as it comes. What a graph does is what the same step does
without one, launch by launch, so a training that resumes ends with the same bits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from saetool.autoencoders.base import Step
from saetool.sparse.adam import SparseAdam
from saetool.sparse.backends import AdamStep
from saetool.sparse.weight import Copy, Weight

PLAIN_STEPS = 3
"""Steps taken without recording first: every kernel is compiled by then."""

MOST_SHAPES = 64
"""Shapes with a graph of their own; steps of others are not recorded."""

Body = Callable[[Any], dict[str, Tensor]]
"""All that follows the search: takes what was found, updates the model, and returns the step's scalars."""


@dataclass(frozen=True)
class Recording:
    """A recorded step behind the search: its graph, and its scalars in one tensor."""

    graph: Any
    names: list[str]
    scalars: Tensor


class Recordings:
    """The graphs of one learner's steps, and the memory that they share. Without a GPU all steps are plain."""

    def __init__(self, autoencoder: Any, optimizer: SparseAdam, body: Body, device: torch.device):
        self.autoencoder, self.optimizer, self.body, self.device = autoencoder, optimizer, body, device
        self.plain_steps = 0
        self.batch = torch.empty(0)
        self.numbers = torch.empty(5, device=device)
        self.begun: Any = None
        self.search: Any = None
        self.copies: list[tuple[Weight, Copy]] = []
        self.rest: dict[tuple[int, ...], Recording] = {}
        if device.type == "cuda":
            torch.cuda.empty_cache()  # else moments may lie amidst what the data's statistics took, and keep all of it
        optimizer.begin()

    def step(self, batch: Tensor, step: Step) -> dict[str, Tensor] | None:
        """Take a step and return its scalars; None, with nothing done, where it must be taken otherwise."""
        upcoming = self.optimizer.upcoming()
        if upcoming is None or self.autoencoder.is_dense():
            return None
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            return self._step(batch, upcoming, self.autoencoder.repeats(step))

    def _step(self, batch: Tensor, upcoming: AdamStep, repeats: bool) -> dict[str, Tensor] | None:
        begun = self._begin(batch)
        if begun is None:
            return None
        numbers = begun.search.numbers.tolist()  # the one wait of a step
        shape = begun.search.shape(numbers)
        if shape is None or self.autoencoder.too_dense(numbers[0], len(batch)):
            return None
        room_for_one = shape in self.rest or len(self.rest) < MOST_SHAPES
        if self.search is None or not (repeats and room_for_one):
            self.plain_steps += 1
            return self.body(begun.found(numbers, shape[0]))
        self.numbers.copy_(torch.tensor(upcoming.values(), dtype=torch.float32), non_blocking=True)
        if shape in self.rest:
            self.optimizer.count(self.copies)
        else:
            self.rest[shape] = self._record(numbers, shape[0])
        recording = self.rest[shape]
        recording.graph.replay()
        return dict(zip(recording.names, recording.scalars.clone().unbind(), strict=True))

    def _begin(self, batch: Tensor) -> Any:
        if self.plain_steps < PLAIN_STEPS or self.device.type != "cuda":
            return self.autoencoder.begin(batch)
        if self.search is None or self.batch.shape != batch.shape or self.batch.dtype != batch.dtype:
            self.search = self._record_search(batch)
        self.batch.copy_(batch, non_blocking=True)
        for weight, copy in self.copies:
            # Evaluation may have asked for another copy since, resampling have changed the weight: the search reads
            # this one as the weight is now, and the update renews it.
            weight.copied(type(copy))
        self.search.replay()
        return self.begun

    def _record_search(self, batch: Tensor) -> Any:
        self.rest.clear()
        self.begun = self.search = None
        self.batch = torch.empty(batch.shape, dtype=batch.dtype, device=self.device)
        for _, copy in self.optimizer.copies():
            copy.changed()  # what a search measures of them, the recorded one measures every time
        graph = torch.cuda.CUDAGraph()
        with _recorded_into(graph):
            self.begun = self.autoencoder.begin(self.batch)
        self.copies = self.optimizer.copies()
        return graph

    def _record(self, numbers: list[int], room: int) -> Recording:
        graph = torch.cuda.CUDAGraph()
        self.optimizer.placed = self.numbers
        with _recorded_into(graph, self.search.pool()):
            scalars = self.body(self.begun.found(numbers, room))
            together = torch.stack([value.float() for value in scalars.values()])
        self.optimizer.placed = None
        self.optimizer.zero_grad(set_to_none=True)  # gradients lie in the graphs' memory
        return Recording(graph, list(scalars), together)


@contextmanager
def _recorded_into(graph: Any, pool: Any = None) -> Iterator[None]:
    """Record what is launched. What fails meanwhile is raised, not what its interruption does to the recording."""
    failed: Exception | None = None
    try:
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            try:
                yield
            except Exception as error:
                failed = error
                raise
    except Exception:
        if failed is not None:
            raise failed from None
        raise
