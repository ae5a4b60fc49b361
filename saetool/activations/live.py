"""A stream straight from the model, for those whose disk is smaller than their data: nothing is cached.

Training walks rounds like a store's: an epoch permutes the slices of the source by (seed, epoch) and cuts them into
rounds of about `pool_rows` rows; a round's images are decoded and run ahead, in the background, into a pool whose rows
are permuted by (seed, epoch, round, process). The slices of a streamed dataset keep its own order. Which images are
held out is known only once they have been read, so rounds shrink by the held-out share. Three things are bounded where
a store is exact: moments and samples come from the first rows of the first round, held-out numbers from the first
held-out images of a seeded order, and every process runs its own share of each round's slices.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saetool import distributed, seeding
from saetool.activations.caching import caching_stage, times_of
from saetool.activations.decoding import Decoder
from saetool.activations.settings import CacheSettings
from saetool.activations.shard import DTYPES
from saetool.activations.shuffle import Position
from saetool.activations.split import group_key, is_held_out
from saetool.activations.stream import equal_share, spread
from saetool.activations.writer import Plan
from saetool.artifacts import Artifact
from saetool.errors import RequestError, WorkError
from saetool.images import ImageSettings, ImageSource
from saetool.images.settings import Grouping
from saetool.statistics import Statistics
from saetool.threads import prefetch
from saetool.vision import Backbone, BackboneSettings, Site, load_backbone
from saetool.vision.weights import resolve_precision

MOMENT_ROWS = 65_536
"""Rows from which moments and samples are taken: a mean is then known to 0.4 % of a standard deviation."""
_BATCHES_AHEAD = 4


class StreamRequest(Protocol):
    """The part of the training settings that a stream depends on."""

    @property
    def batch_size(self) -> int: ...
    @property
    def pool_rows(self) -> int: ...
    @property
    def held_out(self) -> float: ...
    @property
    def layer(self) -> int | str | None: ...


@dataclass(frozen=True)
class Images:
    """Images and the model that looks at them: a slice is `cache.batch_size` images in the source's order."""

    backbone: Backbone
    site: Site
    source: ImageSource
    cache: CacheSettings
    on_error: Literal["fail", "skip"] = "fail"
    group: Grouping | None = None
    """Which images are held out as one; of duplicates in two groups, one may be held out and the other not."""

    @property
    def tokens(self) -> int:
        return self.backbone.tokens_at(self.site)

    @cached_property
    def plan(self) -> Plan:
        site = {**self.backbone.describe_site(self.site), "n_tokens": self.tokens}
        return Plan(len(self.source), [site], self.cache)

    def rows(self, slices: Iterable[int], wanted: Callable[[str], bool]) -> Iterator[Float[Tensor, "rows d"]]:
        """Yield the tokens of the slices' images whose digest, or group, is `wanted`, a full forward batch at a time.

        Tokens come in the stored dtype, on the CPU. Raises WorkError at values that are not finite.
        """
        decoder = Decoder(self.source, self.backbone.transform, self.plan, self.on_error)
        waiting: list[Tensor] = []
        for decoded in decoder.slices(slices):
            places = self.plan.images_of(decoded.number)
            kept = zip(decoded.kept, decoded.images, strict=True)
            waiting += [decoded.pixels[place] for place, row in kept if wanted(self._key(row, places[place]))]
            while len(waiting) >= self.cache.batch_size:
                yield self._forward(waiting[: self.cache.batch_size])
                waiting = waiting[self.cache.batch_size :]
        if waiting:
            yield self._forward(waiting)

    def _key(self, row: Mapping[str, Any], place: int) -> str:
        key = None if self.group is None else group_key(row, place, self.group, len(self.source))
        return row["digest"] if key is None else key

    def _forward(self, images: list[Tensor]) -> Tensor:
        missing = self.cache.batch_size - len(images)
        pixels = torch.stack([*images, *[torch.zeros_like(images[0])] * missing])
        (tokens,) = self.backbone.forward_to(self.backbone.inputs(pixels), [self.site])
        rows = tokens[: len(images)].flatten(0, 1).to(DTYPES[self.cache.dtype]).cpu()
        if not torch.isfinite(rows).all():
            raise WorkError(f"the values at {self.site.label} are not all finite as {self.cache.dtype}")
        return rows


class LiveStream:
    """Rows as the model makes them; implements `autoencoders.base.Stream`.

    `batch_size` rows over all processes together. Memory: three pools of this process's share of `pool_rows` rows, and
    at most `pool_rows` held-out rows, kept once they have been made.
    """

    def __init__(self, images: Images, batch_size: int, pool_rows: int, seed: int, held_out: float):
        self._part = equal_share(batch_size)
        self.images = images
        self.d_in = images.site.d
        self.batch_size = batch_size
        self.n_rows = round(len(images.source) * images.tokens * (1 - held_out))
        self.pool_rows = pool_rows
        self.seed = seed
        self.share = held_out
        self._position = Position()

    def batches(self) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Yield this process's part of shuffled batches of training rows, without end; every batch is full."""
        for batch, position in prefetch(self._batches(self._position), _BATCHES_AHEAD):
            self._position = position
            yield batch

    def position(self) -> dict:
        """Return where `batches` stands in every process; all of them must ask."""
        return {"processes": distributed.all_gather(vars(self._position).copy())}

    def seek(self, position: dict) -> None:
        """Continue `batches` where `position` was recorded, by as many processes."""
        places = position.get("processes", [])
        if len(places) != distributed.world_size():
            raise RequestError(
                f"live training was begun by {len(places)} processes and can only go on with as many; "
                f"there are {distributed.world_size()} now."
            )
        self._position = Position.from_json(places[distributed.rank()])

    def statistics(self) -> Statistics:
        return self._statistics

    def sample(self, rows: int) -> Float[Tensor, "rows d_in"]:
        """Return up to `rows` of the first training rows in float32, in random order."""
        first = self._first_rows
        order = torch.randperm(len(first), generator=seeding.generator(self.seed, "sample"))[:rows]
        return first[order].float()

    def ordered(self) -> Iterator[Float[Tensor, "rows d_in"]]:
        """Yield every training row once, in the source's order: a whole pass of the model."""
        yield from self._train_rows(range(self.images.plan.n_slices))

    def held_out(self, rows: int | None = None) -> Iterator[Float[Tensor, "rows d_in"]]:
        """Yield the held-out rows, at most about `pool_rows` of them, in blocks of at most `batch_size`.

        With `rows`, so many of them, evenly spaced.
        """
        blocks = self._held_out_blocks
        count = sum(map(len, blocks))
        if rows is not None and rows < count:
            chosen = torch.from_numpy(spread(count, rows))
            starts = np.cumsum([0, *map(len, blocks)]).tolist()
            places = [chosen[(chosen >= a) & (chosen < b)] - a for a, b in pairwise(starts)]
            blocks = [block[place] for block, place in zip(blocks, places, strict=True) if len(place)]
        for block in blocks:
            yield from block.split(self.batch_size)

    @cached_property
    def _statistics(self) -> Statistics:
        return Statistics.of(self._first_rows)

    @cached_property
    def _first_rows(self) -> Tensor:
        """The first training rows of the first epoch; the same in every process."""
        taken = _take(self._train_rows(self._slices(0)), min(MOMENT_ROWS, self.pool_rows))
        if not taken:
            raise RequestError("No rows to train on: every image is held out or skipped.")
        return torch.cat(taken)

    @cached_property
    def _held_out_blocks(self) -> list[Tensor]:
        if self.share == 0:
            return []
        return _take(self.images.rows(self._permuted("held out slices"), self._is_held_out), self.pool_rows)

    def _is_held_out(self, key: str) -> bool:
        return is_held_out(key, self.seed, self.share)

    def _train_rows(self, slices: Iterable[int]) -> Iterator[Tensor]:
        return self.images.rows(slices, lambda key: not self._is_held_out(key))

    def _slices(self, epoch: int) -> Sequence[int]:
        return self._permuted("blocks", epoch)

    def _permuted(self, *key: str | int) -> Sequence[int]:
        """Return all slices in a seeded order; those of a stream in its own, since going back reads it again."""
        n = self.images.plan.n_slices
        if self.images.source.sequential:
            return range(n)
        return torch.randperm(n, generator=seeding.generator(self.seed, *key)).tolist()

    def _pools(self, start: Position) -> Iterator[tuple[Position, Tensor]]:
        """Yield (place of its first row, permuted rows) of this process's share of each round."""
        processes, rank = distributed.world_size(), distributed.rank()
        slice_rows = self.images.cache.batch_size * self.images.tokens
        width = max(processes, self.pool_rows // slice_rows)
        epoch, first = start.epoch, start.round
        while True:
            slices, filled = self._slices(epoch), False
            for round_ in range(first, -(-len(slices) // width)):
                mine = slices[round_ * width : (round_ + 1) * width][rank::processes]
                rows = list(self._train_rows(mine))
                if rows:
                    filled, pool = True, torch.cat(rows)
                    draw = seeding.generator(self.seed, "rows", epoch, round_, rank)
                    yield Position(epoch, round_), pool[torch.randperm(len(pool), generator=draw)]
            if first == 0 and not filled:
                raise RequestError("No rows to train on: too few images for so many processes, or all are held out.")
            epoch, first = epoch + 1, 0

    def _batches(self, start: Position) -> Iterator[tuple[Tensor, Position]]:
        """Yield batches and the position after each; a batch may run on into the next round."""
        offset = start.offset
        rest = torch.empty(0, self.d_in, dtype=DTYPES[self.images.cache.dtype])
        for place, pool in prefetch(self._pools(start), 1):
            missing = self._part - len(rest)
            while len(pool) - offset >= missing:
                rows = pool[offset : offset + missing]
                batch = torch.cat([rest, rows]) if len(rest) else rows
                offset, missing, rest = offset + missing, self._part, rest[:0]
                yield batch, replace(place, offset=offset)
            rest = torch.cat([rest, pool[offset:]])
            offset = 0


@dataclass
class LiveSource:
    """What a training stage knows of rows that do not exist yet: the model and the images, nothing loaded."""

    backbone: BackboneSettings
    source: ImageSource
    images: ImageSettings
    cache: CacheSettings
    inputs: tuple[Artifact, ...] = ()

    def __post_init__(self) -> None:
        """Raise RequestError where the images are decoded as live training does not."""
        self._site: dict[str, Any] | None = None
        if self.images.decode != "pillow":
            raise RequestError("images.decode: gpu is for caching; `activations: live` decodes by pillow.")

    @property
    def listing(self) -> str:
        """The digest of the source's list of files."""
        return self.source.listing()

    def times(self) -> str | None:
        """Return when the images' files were last written."""
        return times_of(self.source)

    def config(self) -> dict[str, Any]:
        """Return what determines the rows: what a store of them would be asked for."""
        cached = caching_stage(self.backbone, self.source, self.images, self.cache).config
        live = {**cached, "cache": self.cache.model_dump(mode="json", include={"dtype", "batch_size"})}
        return {"live": live, **({"group": self.images.group.rule()} if self.images.group else {})}

    def check(self, settings: StreamRequest) -> None:
        """Raise RequestError where several layers are read and none is chosen, or images have no such column."""
        column = self.images.group.column if self.images.group else None
        columns = [label.name for label in self.source.label_columns]
        if column is not None and column not in columns:
            known = ", ".join(columns) or "none"
            raise RequestError(f"images.group: the images have no label column {column!r}. Columns: {known}.")
        layers = self.backbone.layers
        if settings.layer is None and len(layers) != 1:
            raise RequestError(f"training.layer is not given; backbone.layers has {list(layers)}: name one.")

    def size(self, settings: Any) -> tuple[int, int]:
        """Refuse: before the model is loaded nobody knows how many rows an image is, and how wide."""
        raise RequestError(
            "autoencoder and training cannot be auto with activations: live, whose rows are not counted yet: give "
            "settings, or cache the activations (activations: null)."
        )

    def site(self, settings: StreamRequest) -> dict[str, Any] | None:
        """Return the site's description, once the model has been loaded."""
        return self._site

    def open(self, settings: StreamRequest, seed: int, device: torch.device) -> LiveStream:
        """Load the model on the device and return its stream."""
        precision = resolve_precision(self.backbone, device)
        backbone = load_backbone(self.backbone.model_copy(update={"precision": precision}), seed, device)
        site = backbone.sites[0] if settings.layer is None else backbone.site(settings.layer)
        self._site = backbone.describe_site(site)
        images = Images(backbone, site, self.source, self.cache, self.images.on_error, self.images.group)
        return LiveStream(images, settings.batch_size, settings.pool_rows, seed, settings.held_out)


def _take(blocks: Iterator[Tensor], rows: int) -> list[Tensor]:
    """Return the first blocks that hold about `rows` rows together."""
    taken: list[Tensor] = []
    for block in blocks:
        taken.append(block)
        rows -= len(block)
        if rows <= 0:
            break
    return taken
