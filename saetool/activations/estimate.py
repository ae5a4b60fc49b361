"""What a caching job will take, before it starts."""

import contextlib
import itertools
import math
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saetool.activations.decoding import DecodedSlice, Decoder
from saetool.activations.forward import Forward, Landed
from saetool.activations.shard_keeper import ShardKeeper
from saetool.activations.waits import Waits
from saetool.activations.writer import WRITERS, Plan, StoreWriter
from saetool.artifacts import Partial
from saetool.errors import RequestError
from saetool.vision import Site

if TYPE_CHECKING:
    from saetool.activations.caching import CachingJob

_THUMBNAIL_BYTES = 8_000
"""Of a picture's, at most, about."""
_DOUBTFUL = 2e8
"""Bytes a second that a disk is not believed without a try."""
_MOST_WRITTEN = 1 << 32
"""Bytes written to try a disk, about; half of what is free on it, if that is less."""
_WRITTEN_SECONDS = 4.0
_TIMED_SLICES, _TIMED_SECONDS = 2, 2.0
"""At least so many slices, and so long, are timed."""


def estimate(job: "CachingJob", place: Path | None = None) -> dict[str, Any]:
    """Return images, rows, bytes a site and in all, memory, and a rate measured on some batches, as JSON types.

    Where the disk that would hold the store, under `place`, may be slower than that, the job's beginning is done there,
    and deleted.
    """
    backbone = job.backbone()
    plan = job.plan(backbone)
    itemsize = plan.dtype.itemsize
    by_site = {site["folder"]: plan.n_images * site["n_tokens"] * site["d"] * itemsize for site in plan.sites}
    thumbnails = plan.n_images * _THUMBNAIL_BYTES if plan.settings.thumbnails else 0
    sites, decoder = job.stored(backbone), job.decoder(backbone, plan)
    forward = Forward(backbone, sites, plan.dtype)
    start, rate = _rates(plan, decoder, forward)
    stored, end = sum(by_site.values()) / max(plan.n_images, 1), 0.0
    if place is not None and rate * stored > _DOUBTFUL:
        most = min(_MOST_WRITTEN, shutil.disk_usage(_standing(place)).free // 2)
        most_images = int(most / stored) - (decoder.slices_ahead + 1) * plan.settings.batch_size
        if most_images > 0:
            start, rate, end = _rates_to_disk(plan, decoder, forward, sites, _standing(place), most_images)
    seconds = start + plan.n_images / rate + end
    # A shard that fills and those being written, at each site; the decoded slices, and one of them as the input.
    memory = int((1 + WRITERS) * plan.slices_per_shard * plan.settings.batch_size * stored)
    pixels = plan.settings.batch_size * math.prod(backbone.transform.pixel_shape)
    memory += (decoder.slices_ahead + 2) * pixels + 4 * pixels
    return {
        "images": plan.n_images,
        **{f"rows at {site['folder']}": plan.n_images * site["n_tokens"] for site in plan.sites},
        **{f"bytes at {folder}": size for folder, size in by_site.items()},
        **({"bytes of thumbnails": thumbnails} if thumbnails else {}),
        "bytes_on_disk": sum(by_site.values()) + thumbnails,
        "shards": plan.n_shards,
        "memory_bytes": memory + sum(p.numel() * p.element_size() for p in backbone.model.parameters()),
        "images_per_second": round(plan.n_images / seconds, 2),
        "seconds": round(seconds, 1),
    }


def _standing(place: Path) -> Path:
    """Return the nearest folder that is there."""
    place = place.absolute()
    while not place.exists():
        place = place.parent
    return place


def require_space(out: Path, needed: int) -> None:
    """Raise RequestError when the disk that would hold `out` has less than `needed` bytes free."""
    place = _standing(out)
    free = shutil.disk_usage(place).free
    if free < needed:
        raise RequestError(
            f"{out}: needs {needed / 1e9:,.2f} GB, the disk at {place} has {free / 1e9:,.2f} GB free. "
            "Choose another place (run=…), fewer images (images.limit) or fewer layers."
        )


def _rates(plan: Plan, decoder: Decoder, forward: Forward) -> tuple[float, float]:
    """Return the seconds until the first slice is there, and then the rate of decoding and the model side by side."""
    finishing: deque[Callable[[], Landed]] = deque()

    def run(decoded: DecodedSlice) -> None:
        finishing.append(forward.launch(decoded))
        if len(finishing) > 1:  # as in the job, a GPU computes while the result before is on its way
            finishing.popleft()()

    with contextlib.closing(decoder.slices(number % plan.n_slices for number in itertools.count())) as slices:
        return _timed(plan, slices, run, decoder.slices_ahead + 1, _TIMED_SECONDS, least=_TIMED_SLICES)


def _rates_to_disk(
    plan: Plan, decoder: Decoder, forward: Forward, sites: list[Site], place: Path, most_images: int
) -> tuple[float, float, float]:
    """Return what `_rates` does, of the job itself with the shards that it writes, and the seconds that end it."""
    slices, untimed = decoder.slices(range(plan.n_slices)), min(decoder.slices_ahead + 1, plan.n_slices - 2)
    with contextlib.closing(slices), tempfile.TemporaryDirectory(prefix=".saetool-dry-run-", dir=place) as folder:
        writer = StoreWriter(Partial(Path(folder), Path(folder)), plan, [])
        with ShardKeeper.of(writer, sites, Waits()) as keeper:

            def keep(decoded: DecodedSlice) -> None:
                keeper.keep(decoded, forward.launch(decoded))

            found = _timed(plan, slices, keep, untimed, _WRITTEN_SECONDS, most_images=most_images)
            kept = time.monotonic()
        return *found, time.monotonic() - kept


def _timed(
    plan: Plan,
    slices: Iterable[DecodedSlice],
    work: Callable[[DecodedSlice], None],
    untimed: int,
    seconds: float,
    least: int = 0,
    most_images: float = math.inf,
) -> tuple[float, float]:
    """Return the seconds until the first slice is there, and then the images a second that are worked on.

    The first `untimed` slices were decoded ahead and tell nothing of the rate. The others are timed for so many
    seconds and at `least` so many slices, up to `most_images`.
    """
    started = begun = now = time.monotonic()
    start, images = 0.0, 0
    for number, decoded in enumerate(slices):
        start = start or time.monotonic() - started
        work(decoded)
        now = time.monotonic()
        if number < untimed:
            begun = now
            continue
        images += len(plan.images_of(decoded.number))
        if (now - begun > seconds and number - untimed + 1 >= least) or images > most_images:
            break
    return start, images / max(now - begun, 1e-9)
