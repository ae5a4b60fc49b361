"""Behind the model: slices become shards, and shards files. Each of the two has threads of its own."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from torch import Tensor

from saetool.activations.decoding import DecodedSlice
from saetool.activations.forward import Landed
from saetool.activations.moments import LARGEST, SiteMoments
from saetool.activations.waits import Waits
from saetool.activations.writer import WRITERS, ShardContent, StoreWriter
from saetool.errors import WorkError
from saetool.progress import say
from saetool.vision import Site

_SLICES = 2
"""Slices of outputs that may wait to be kept: enough to hide a write, few enough for a GPU's memory."""


class ShardKeeper:
    """Collects slices, in order, until a shard is whole, and writes it; in threads behind the one that calls `keep`."""

    def __init__(self, writer: StoreWriter, sites: Sequence[Site], waits: Waits):
        self._writer = writer
        self._sites = sites
        self._waits = waits
        self._broken = False
        self._waiting: deque[Future] = deque()
        self._writing: deque[Future] = deque()
        self._collector = ThreadPoolExecutor(1, thread_name_prefix="saetool-keep")
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="saetool-write")
        self._begin()

    @classmethod
    @contextmanager
    def of(cls, writer: StoreWriter, sites: Sequence[Site], waits: Waits) -> "Iterator[ShardKeeper]":
        """Yield a keeper; at the end of the block all that was kept has been written."""
        keeper = cls(writer, sites, waits)
        with keeper._writers, keeper._collector:
            yield keeper
            with waits.behind():
                keeper._drain(keeper._waiting, 0)
            with waits.behind(), waits.disk():
                keeper._drain(keeper._writing, 0)

    def keep(self, decoded: DecodedSlice, finish: Callable[[], Landed]) -> None:
        """Keep a slice, which `finish` hands over; waits while too many are under way, and raises what went wrong."""
        with self._waits.behind():
            self._drain(self._waiting, _SLICES - 1)
        self._waiting.append(self._collector.submit(self._collect, decoded, finish))

    def _drain(self, futures: deque[Future], most: int) -> None:
        while len(futures) > most:
            futures.popleft().result()

    def _begin(self) -> None:
        self._content = ShardContent([], [], {site.folder: SiteMoments.none(site.d) for site in self._sites})
        self._tokens: dict[str, list[Tensor]] = {site.folder: [] for site in self._sites}

    def _collect(self, decoded: DecodedSlice, finish: Callable[[], Landed]) -> None:
        """Measure and keep a slice at every site; write the shard after its last slice.

        After an error nothing more is kept: slices that wait already would be taken for another shard's.
        """
        if self._broken:
            return
        self._broken = True
        self._add(decoded, finish())
        shard = decoded.number // self._writer.plan.slices_per_shard
        if decoded.number == self._writer.plan.slices_of(shard)[-1]:
            with self._waits.disk():
                self._drain(self._writing, WRITERS - 1)
            self._writing.append(self._writers.submit(self._writer.write_shard, shard, self._tokens, self._content))
            self._begin()
        self._broken = False

    def _add(self, decoded: DecodedSlice, landed: Landed) -> None:
        for path, reason in zip(decoded.skipped, decoded.reasons, strict=True):
            say(f"skipped {path['path']}: {reason}")
        for site, (rows, moments) in zip(self._sites, landed, strict=True):
            if not moments.finite:
                raise WorkError(_not_finite(decoded, rows, site, self._writer.plan.settings.dtype))
            self._content.moments[site.folder] = self._content.moments[site.folder].merge(moments)
            self._tokens[site.folder].append(rows)
        self._content.images += decoded.images
        self._content.slices.append(len(decoded.kept))
        self._content.skipped += decoded.skipped
        self._content.reasons += decoded.reasons
        self._content.thumbnails += decoded.thumbnails


def _not_finite(decoded: DecodedSlice, rows: Tensor, site: Site, dtype: str) -> str:
    bad = ~(rows.float().abs() <= LARGEST).flatten(1).all(1)
    image = decoded.images[int(bad.nonzero()[0])]
    hint = " (float16 ends at 65,504: try cache.dtype=bfloat16)" if dtype == "float16" else ""
    return (
        f"{image['path']}: the values at {site.label} are not all finite and below {LARGEST:g}{hint}. Remove the image "
        "or check the weights."
    )
