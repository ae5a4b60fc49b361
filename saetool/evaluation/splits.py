"""One label's training and held-out images, and small independent pieces of work side by side."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool
from threadpoolctl import threadpool_limits

from saetool import seeding

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Split:
    """A label's classes, and the class of every training and of every held-out image."""

    classes: list[str]
    train: np.ndarray
    test: np.ndarray
    test_groups: np.ndarray | None = None
    """The number of each held-out image's group, of images that depend on each other; None: each is alone."""

    def members(self, labels: np.ndarray) -> Bool[np.ndarray, "classes images"]:
        return np.array(self.classes)[:, None] == labels[None, :]

    def shuffled(self, seed: int, times: int) -> list["Split"]:
        """Return the split with labels permuted among training and among held-out images, several times."""
        generator = seeding.generator(seed, "alignment")

        def permuted(labels: np.ndarray) -> np.ndarray:
            return labels[torch.randperm(len(labels), generator=generator).numpy()]

        return [replace(self, train=permuted(self.train), test=permuted(self.test)) for _ in range(times)]


MAX_WORKERS = 8
"""Each may hold a copy of the features; beyond this, more would wait for Python's lock."""


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return work(item) for every item, in order, one item a core and each on one core.

    Numpy and scikit-learn leave Python's lock in their loops, and small products are twice as fast on one core as on
    two (measured at 2,364 × 2,363); so results do not depend on the number of cores either.
    """
    with threadpool_limits(1), ThreadPoolExecutor(min(MAX_WORKERS, torch.get_num_threads())) as pool:
        return list(pool.map(work, items))
