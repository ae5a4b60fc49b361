"""The order in which training sees its rows: rounds of permuted blocks, rows permuted inside a round.

An epoch permutes all blocks by (seed, epoch) and cuts them into rounds of about `pool_rows` rows; a round permutes its
rows by (seed, epoch, round). So the order follows from four numbers, whatever the memory, and can be entered anywhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from saetool import seeding
from saetool.errors import RequestError


@dataclass(frozen=True)
class Position:
    """A place in the endless sequence of rows: `offset` rows of this round have been seen."""

    epoch: int = 0
    round: int = 0
    offset: int = 0

    @classmethod
    def from_json(cls, value: dict) -> "Position":
        """Read a recorded position; raises RequestError when it is not one."""
        numbers = [value[key] for key in ("epoch", "round", "offset") if key in value]
        if len(numbers) != 3 or not all(isinstance(n, int) and n >= 0 for n in numbers):
            raise RequestError(f"Not a position of a stream: {value}. Expected whole numbers epoch, round and offset.")
        return cls(*numbers)


class Shuffle:
    """The plan of rounds over blocks of `block_rows[i]` rows each; empty blocks are left out."""

    def __init__(self, block_rows: np.ndarray, pool_rows: int, seed: int):
        self.block_rows = np.asarray(block_rows, dtype=np.int64)
        self.pool_rows = pool_rows
        self.seed = seed
        self._filled = np.flatnonzero(self.block_rows)
        # Two epochs are alive at a time: the one being read and the one being prefetched.
        self.rounds = lru_cache(maxsize=2)(self._rounds)

    def _rounds(self, epoch: int) -> list[np.ndarray]:
        """Return the blocks of each round of an epoch: as many as fit into the pool, at least one."""
        generator = seeding.generator(self.seed, "blocks", epoch)
        return self._cut(self._filled[torch.randperm(len(self._filled), generator=generator).numpy()])

    def in_order(self) -> list[np.ndarray]:
        """Return all blocks in the order of the store, cut as a round's are."""
        return self._cut(self._filled)

    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        ends = np.cumsum(self.block_rows[order])
        rounds, start, begin = [], 0, 0
        while start < len(order):
            stop = max(start + 1, int(np.searchsorted(ends, begin + self.pool_rows, side="right")))
            rounds.append(order[start:stop])
            start, begin = stop, int(ends[stop - 1])
        return rounds

    @property
    def most_rows(self) -> int:
        return min(max(self.pool_rows, int(self.block_rows.max(initial=0))), int(self.block_rows.sum()))

    def size(self, epoch: int, round_: int) -> int:
        return int(self.block_rows[self.rounds(epoch)[round_]].sum())

    def rows(self, epoch: int, round_: int) -> Int64[Tensor, "rows"]:
        """Return the order in which the rows of a round are seen."""
        generator = seeding.generator(self.seed, "rows", epoch, round_)
        return torch.randperm(self.size(epoch, round_), generator=generator)

    def check(self, position: Position) -> None:
        """Raise RequestError when `position` lies outside the plan: it was recorded on other data or settings."""
        rounds = len(self.rounds(position.epoch))
        if position.round >= rounds or position.offset >= self.size(position.epoch, position.round):
            raise RequestError(
                f"{position} does not exist here (epoch {position.epoch} has {rounds} rounds): "
                "it was recorded on other data, another split or another pool_rows."
            )

    def after(self, position: Position, rows: int) -> Position:
        """Return the place `rows` rows after `position`."""
        epoch, round_, offset = position.epoch, position.round, position.offset + rows
        while offset >= (size := self.size(epoch, round_)):
            offset -= size
            round_ += 1
            if round_ == len(self.rounds(epoch)):
                epoch, round_ = epoch + 1, 0
        return Position(epoch, round_, offset)

    def from_(self, position: Position) -> Iterator[tuple[int, int]]:
        """Yield (epoch, round) without end, beginning with the one that holds `position`."""
        epoch, first = position.epoch, position.round
        while True:
            for round_ in range(first, len(self.rounds(epoch))):
                yield epoch, round_
            epoch, first = epoch + 1, 0
