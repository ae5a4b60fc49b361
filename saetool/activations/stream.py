"""What models learn from: shuffled batches without end, one ordered pass, held-out rows, moments."""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from saetool import distributed, seeding
from saetool.activations.device_pool import Pool, on_device
from saetool.activations.shuffle import Position, Shuffle
from saetool.errors import RequestError
from saetool.statistics import Statistics
from saetool.threads import prefetch

_WIDEST = ((8, torch.int64), (4, torch.int32), (2, torch.int16))


class ShuffledStream:
    """The part of a stream that needs no knowledge of where rows come from.

    Every process walks the same sequence of global batches of `batch_size` rows and yields its own equal part of each;
    `statistics`, `sample`, `ordered` and `held_out` are the same on every process.
    """

    d_in: int
    batch_size: int
    n_rows: int
    rounds_ahead = 1
    """Rounds read ahead in a thread. Batches are not: gathering one takes less than handing it over."""

    def __init__(self, shuffle: Shuffle, d_in: int, batch_size: int, device: torch.device | None = None):
        """With an accelerator as `device`, pools lie there and batches come from there."""
        self.device = None if device is None or device.type == "cpu" else device
        self.d_in = d_in
        self.batch_size = batch_size
        self.n_rows, self.seed = int(shuffle.block_rows.sum()), shuffle.seed
        self._shuffle = shuffle
        self._position = Position()
        if self.n_rows == 0:
            raise RequestError(
                "No rows to train on: every image is held out, and images that are equal, or of one group, are so "
                "together. Give more of them, or lower training.held_out."
            )

    def batches(self) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Yield shuffled batches of training rows without end, from the current position; every batch is full."""
        for batch, position in self._batches(self._position):
            self._position = position
            yield batch

    def position(self) -> dict:
        """Return a JSON-able record of where `batches` stands: after the last batch that was taken from it."""
        return vars(self._position).copy()

    def seek(self, position: dict) -> None:
        """Continue `batches` exactly where `position` was recorded; takes effect at the next call of `batches`."""
        wanted = Position.from_json(position)
        self._shuffle.check(wanted)
        self._position = wanted

    def statistics(self) -> Statistics:
        """Return the moments of the training rows, computed once."""
        return self._statistics

    def sample(self, rows: int) -> Float[Tensor, "rows d_in"]:
        """Return up to `rows` different training rows in float32, in random order, the same for the same seed."""
        generator = seeding.generator(self._shuffle.seed, "sample")
        if 2 * rows >= self.n_rows:
            chosen = torch.randperm(self.n_rows, generator=generator)[:rows]
        else:  # drawing and dropping repeats needs no memory for the rows not drawn
            chosen = torch.empty(0, dtype=torch.int64)
            while len(chosen) < rows:
                drawn = torch.randint(self.n_rows, (2 * rows,), generator=generator)
                chosen = torch.cat([chosen, drawn]).unique()
            chosen = chosen[torch.randperm(len(chosen), generator=generator)[:rows]]
        ordered, places = chosen.sort()
        sample = torch.empty(len(chosen), self.d_in)
        sample[places] = self._rows_at(ordered)
        return sample

    def _batches(self, position: Position) -> Iterator[tuple[Tensor, Position]]:
        """Yield this process's part of each global batch, and the position after it."""
        part = equal_share(self.batch_size)
        mine = slice(distributed.rank() * part, (distributed.rank() + 1) * part)
        offset, missing = position.offset, self.batch_size
        pieces: list[Tensor] = []  # the beginning of a batch that runs on into the next round
        for pool, order in self._placed(self._shuffle.from_(position)):
            while len(order) - offset >= missing:
                rows = order[offset : offset + missing]
                batch = torch.cat([*pieces, _gather(pool, rows)])[mine] if pieces else _gather(pool, rows[mine])
                offset, missing, pieces = offset + missing, self.batch_size, []
                position = self._shuffle.after(position, self.batch_size)
                yield batch, position
            if offset < len(order):
                pieces.append(_gather(pool, order[offset:]))
                missing -= len(order) - offset
            offset = 0

    def _placed(self, rounds: Iterator[tuple[int, int]]) -> Iterator[Pool]:
        """Yield the pools where batches are gathered from: on the device, where there is one."""
        pools = prefetch(self._pools(rounds), self.rounds_ahead)
        return pools if self.device is None else on_device(pools, self.device)

    def _pools(self, rounds: Iterator[tuple[int, int]]) -> Iterator[Pool]:
        """Yield the rows of each round and the order to see them in."""
        raise NotImplementedError

    @cached_property
    def _statistics(self) -> Statistics:
        raise NotImplementedError

    def _rows_at(self, rows: Int64[Tensor, "rows"]) -> Float[Tensor, "rows d_in"]:
        """Return training rows by their increasing numbers."""
        raise NotImplementedError


def equal_share(batch_size: int) -> int:
    """Return how many of a batch's rows are each process's; RequestError where they are not equally many."""
    if batch_size < 1 or batch_size % distributed.world_size():
        raise RequestError(
            f"training.batch_size {batch_size} cannot be shared equally by {distributed.world_size()} processes."
        )
    return batch_size // distributed.world_size()


def spread(count: int, wanted: int) -> np.ndarray:
    """Return `wanted` different whole numbers below `count`, evenly spaced, increasing."""
    return (np.arange(wanted, dtype=np.int64) * 2 + 1) * count // (2 * wanted)


def _gather(pool: Float[Tensor, "pool d_in"], rows: Int64[Tensor, "rows"]) -> Float[Tensor, "rows d_in"]:
    """Return a copy of some rows, moved in the widest words that divide a row: bf16 alone is several times slower."""
    row_bytes = pool.shape[1] * pool.element_size()
    for size, word in _WIDEST:
        if row_bytes % size == 0 and pool.element_size() <= size:
            return torch.index_select(pool.view(word), 0, rows).view(pool.dtype)
    return torch.index_select(pool, 0, rows)


class TensorStream(ShuffledStream):
    """A stream over rows that are in memory already: for tests, scripts and anything that is not a store."""

    rounds_ahead = 0

    def __init__(
        self,
        train: Float[Tensor, "rows d_in"],
        held_out: Float[Tensor, "held_out d_in"] | None = None,
        batch_size: int = 2048,
        seed: int = 0,
    ):
        self._train = train.contiguous()
        self._held_out = train[:0] if held_out is None else held_out
        shuffle = Shuffle(np.array([len(train)]), pool_rows=len(train), seed=seed)
        super().__init__(shuffle, train.shape[1], batch_size)

    def ordered(self) -> Iterator[Float[Tensor, "rows d_in"]]:
        """Yield every training row once, in order, in blocks of `batch_size`."""
        yield from self._train.split(self.batch_size)

    def held_out(self, rows: int | None = None) -> Iterator[Float[Tensor, "rows d_in"]]:
        """Yield every held-out row once, or `rows` evenly spaced ones, in order, in blocks of at most `batch_size`."""
        chosen = self._held_out
        if rows is not None and rows < len(chosen):
            chosen = chosen[torch.from_numpy(spread(len(chosen), rows)).to(chosen.device)]
        if len(chosen):
            yield from chosen.split(self.batch_size)

    def _pools(self, rounds: Iterator[tuple[int, int]]) -> Iterator[tuple[Tensor, Tensor]]:
        for epoch, round_ in rounds:
            yield self._train, self._shuffle.rows(epoch, round_).to(self._train.device)

    @cached_property
    def _statistics(self) -> Statistics:
        return Statistics.of(self._train)

    def _rows_at(self, rows: Tensor) -> Tensor:
        return self._train[rows.to(self._train.device)].float().cpu()
