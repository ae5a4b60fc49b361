"""A store as a stream: blocks are read whole into a bounded pool and shuffled there."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import tee

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from saetool import seeding
from saetool.activations.device_pool import Pool, upload
from saetool.activations.shuffle import Shuffle
from saetool.activations.store import SiteStore, runs, smaller_part
from saetool.activations.stream import ShuffledStream, spread
from saetool.errors import RequestError
from saetool.statistics import Statistics
from saetool.threads import prefetch

_READERS, _MOST_READERS = 2, 8
"""Blocks read at a time: one is on its way from the disk while another is copied. For a GPU, half of the cores read."""
_SPREAD_IMAGES = 4096
"""Images that a part of the held-out rows is taken from: opening more costs more than it tells."""
_POOLS = 3
"""One pool is being filled, one is full, one is being emptied."""


class StoreStream(ShuffledStream):
    """Training and held-out rows of a site of a store.

    A block is the training part of one slice. Memory: three pools of `pool_rows` rows (or of one block where that is
    larger) and a few batches, whatever the size of the store; the order never depends on memory. On an accelerator two
    more pools lie there (see `device_pool`), or, with `whole`, all training rows, read once.
    """

    def __init__(
        self,
        site: SiteStore,
        batch_size: int,
        pool_rows: int,
        seed: int,
        held_out: Bool[np.ndarray, "images"] | None = None,
        device: torch.device | None = None,
        whole: bool = False,
    ):
        self.site, self.whole = site, whole
        held_out = np.zeros(site.n_images, dtype=bool) if held_out is None else np.asarray(held_out, dtype=bool)
        if held_out.shape != (site.n_images,):
            raise RequestError(f"The split has {held_out.size} images, the store {site.n_images}.")
        self._train = ~held_out
        self._spread_rows: tuple[int, list[Tensor]] | None = None
        super().__init__(self._rounds_of(self._train, pool_rows, seed), site.d, batch_size, device)

    def _rounds_of(self, images: np.ndarray, pool_rows: int, seed: int) -> Shuffle:
        """Return the rounds in which these images of the store can be read."""
        # Cumulative counts give the images of any slice without a list of them.
        before = np.concatenate([[0], np.cumsum(images)])
        counts = [before[block.stop] - before[block.start] for block in self.site.store.slices]
        return Shuffle(np.array(counts, dtype=np.int64) * self.site.tokens, pool_rows, seed)

    def ordered(self) -> Iterator[Float[Tensor, "rows d_in"]]:
        """Yield every training row once, in order, a run of training images inside a slice at a time."""
        yield from self.site.in_order(self._train)

    def held_out(self, rows: int | None = None) -> Iterator[Float[Tensor, "rows d_in"]]:
        """Yield every held-out row once, in order, in blocks of at most `batch_size`.

        With `rows`, so many at seeded places of evenly spaced held-out images: of as many images as there are, up to
        `_SPREAD_IMAGES`, where those have rows enough.
        """
        images = np.flatnonzero(~self._train)
        waiting, count = [], 0
        if rows is not None and rows < len(images) * self.site.tokens:
            parts = self._kept(images, rows)
        elif self.device is not None:
            for pool in self._on_device(~self._train, self.device):
                yield from pool.split(self.batch_size)
            return
        else:
            parts = self.site.in_order(~self._train)
        for part in parts:
            for piece in part.split(self.batch_size):
                if count + len(piece) > self.batch_size:
                    yield torch.cat(waiting)
                    waiting, count = [], 0
                waiting.append(piece)
                count += len(piece)
        if waiting:
            yield torch.cat(waiting)

    def _kept(self, images: np.ndarray, rows: int) -> Iterable[Tensor]:
        """Return what `_spread` yields, kept for the next time where it is no more than a pool: evaluations along the
        way ask for the same rows."""
        if rows > self._shuffle.pool_rows:
            return self._spread(images, rows)
        if self._spread_rows is None or self._spread_rows[0] != rows:
            self._spread_rows = rows, list(self._spread(images, rows))
        return self._spread_rows[1]

    def _spread(self, images: np.ndarray, rows: int) -> Iterator[Tensor]:
        """Yield `rows` rows of evenly spaced `images`, equally many of each but for one."""
        tokens = self.site.tokens
        chosen = images[spread(len(images), max(min(rows, len(images), _SPREAD_IMAGES), -(-rows // tokens)))]
        generator = seeding.generator(self._shuffle.seed, "held out rows")
        borders = np.linspace(0, rows, len(chosen) + 1).astype(np.int64)
        for image, wanted in zip(chosen.tolist(), np.diff(borders).tolist(), strict=True):
            places = torch.randperm(tokens, generator=generator)[:wanted].sort().values
            yield self.site.rows(image, image + 1)[0, places]

    def _placed(self, rounds: Iterator[tuple[int, int]]) -> Iterator[Pool]:
        if not self.whole or self.device is None:
            yield from super()._placed(rounds)
            return
        rows = self._all_rows(self.device)
        for order in prefetch(self._orders(rounds), self.rounds_ahead):
            yield rows, upload(order, self.device)

    def _all_rows(self, device: torch.device) -> Float[Tensor, "rows d_in"]:
        """Return all training rows on a device, in the order of the store."""
        rows, place = torch.empty(self.n_rows, self.d_in, dtype=self.site.dtype, device=device), 0
        for pool in self._on_device(self._train, device):
            rows[place : place + len(pool)] = pool
            place += len(pool)
        return rows

    def _on_device(self, images: np.ndarray, device: torch.device) -> Iterator[Float[Tensor, "rows d_in"]]:
        """Yield the rows of these images on a device, a pool at a time, in the order of the store."""
        rounds = self._rounds_of(images, self._shuffle.pool_rows, 0)
        groups = rounds.in_order()
        for blocks, pool in zip(groups, prefetch(self._filled(groups, images, rounds), 1), strict=True):
            yield pool[: rounds.block_rows[blocks].sum()].to(device, copy=True)

    def _orders(self, rounds: Iterator[tuple[int, int]]) -> Iterator[Int64[Tensor, "rows"]]:
        """Yield the numbers of the training rows of each round, in the order to see them in."""
        counts = self._shuffle.block_rows
        starts = np.cumsum(counts) - counts
        for epoch, round_ in rounds:
            blocks = self._shuffle.rounds(epoch)[round_]
            rows = np.concatenate([np.arange(int(starts[b]), int(starts[b] + counts[b])) for b in blocks])
            yield torch.from_numpy(rows)[self._shuffle.rows(epoch, round_)]

    def _pools(self, rounds: Iterator[tuple[int, int]]) -> Iterator[Pool]:
        asked, told = tee(rounds)
        groups = (self._shuffle.rounds(epoch)[round_] for epoch, round_ in asked)
        pools = self._filled(groups, self._train, self._shuffle)
        for pool, (epoch, round_) in zip(pools, told, strict=False):
            yield pool, self._shuffle.rows(epoch, round_)

    def _filled(
        self, groups: Iterable[np.ndarray], images: np.ndarray, rounds: Shuffle
    ) -> Iterator[Float[Tensor, "pool d_in"]]:
        """Yield buffers that begin with what each group of blocks holds of these images, one group after the other."""
        buffers: list[Tensor] = []
        pinned = self.device is not None and self.device.type == "cuda"
        number_of_readers = min(_MOST_READERS, max(_READERS, (os.cpu_count() or 1) // 2)) if pinned else _READERS
        # A buffer comes back after two others: its batches have been gathered (they are copies) by the time that the
        # next but one round is asked for.
        with ThreadPoolExecutor(number_of_readers, thread_name_prefix="saetool-read") as readers:
            for number, blocks in enumerate(groups):
                if len(buffers) < _POOLS:
                    size = (rounds.most_rows, self.d_in)
                    buffers.append(torch.empty(size, dtype=self.site.dtype, pin_memory=pinned))
                pool = buffers[number % _POOLS]
                tasks = self._reads(blocks, images)
                list(readers.map(lambda task, pool=pool: self._read(pool[task[0]], task[1]), tasks))
                yield pool

    def _reads(self, blocks: np.ndarray, images: np.ndarray) -> list[tuple[slice, list[tuple[int, int]]]]:
        """Return the rows of the pool that each block of a round fills, and which of its images with."""
        tasks, place = [], 0
        for index in blocks:
            block = self.site.store.slices[index]
            wanted = [(block.start + a, block.start + b) for a, b in runs(images[block.start : block.stop])]
            count = sum(b - a for a, b in wanted) * self.site.tokens
            tasks.append((slice(place, place + count), wanted))
            place += count
        return tasks

    def _read(self, rows: Float[Tensor, "rows d_in"], wanted: list[tuple[int, int]]) -> None:
        self.site.read_runs_into(rows.view(-1, self.site.tokens, self.d_in), wanted)

    @cached_property
    def _statistics(self) -> Statistics:
        if self.device is None or self.device.type == "mps":  # it has no float64
            return self.site.statistics(self._train)
        read, total = smaller_part(self._train), Statistics.none(self.d_in)
        for pool in self._on_device(read, self.device):
            total = total.merge(Statistics.of(pool))
        return total if read is self._train else self.site.statistics().without(total)

    def _rows_at(self, rows: Tensor) -> Tensor:
        images, tokens = np.divmod(rows.numpy(), self.site.tokens)
        images = np.flatnonzero(self._train)[images]
        out = torch.empty(len(rows), self.d_in)
        starts = np.flatnonzero(np.diff(images, prepend=-1))
        for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
            image = int(images[start])
            out[start:stop] = self.site.rows(image, image + 1)[0, torch.from_numpy(tokens[start:stop])].float()
        return out
