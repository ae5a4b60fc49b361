"""What a caching job will take, before it starts."""

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saetool.activations.decoding import Decoder
from saetool.activations.writer import Plan
from saetool.errors import RequestError
from saetool.vision import Backbone

if TYPE_CHECKING:
    from saetool.activations.caching import CachingJob

_TIMED_SLICES = 2


def estimate(job: "CachingJob") -> dict[str, Any]:
    """Return images, rows, bytes a site and in all, memory, and a rate measured on two batches, as JSON types."""
    backbone = job.backbone()
    plan = job.plan(backbone)
    itemsize = plan.dtype.itemsize
    by_site = {site["folder"]: plan.n_images * site["n_tokens"] * site["d"] * itemsize for site in plan.sites}
    rate = _images_per_second(job, backbone, plan)
    image = backbone.transform.geometry.crop
    shard = plan.slices_per_shard * plan.settings.batch_size
    # Two shards (one filling, one being written) at each site, and the decoded slices.
    memory = 2 * shard * sum(by_site.values()) // max(plan.n_images, 1)
    memory += 4 * plan.settings.batch_size * 3 * image[0] * image[1] * 4
    return {
        "images": plan.n_images,
        **{f"rows at {site['folder']}": plan.n_images * site["n_tokens"] for site in plan.sites},
        **{f"bytes at {folder}": size for folder, size in by_site.items()},
        "bytes_on_disk": sum(by_site.values()),
        "shards": plan.n_shards,
        "memory_bytes": memory + sum(p.numel() * p.element_size() for p in backbone.model.parameters()),
        "images_per_second": round(rate, 2),
        "seconds": round(plan.n_images / rate, 1),
    }


def require_space(out: Path, needed: int) -> None:
    """Raise RequestError when the disk that would hold `out` has less than `needed` bytes free."""
    place = out.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise RequestError(
            f"{out}: needs {needed / 1e9:,.2f} GB, the disk at {place} has {free / 1e9:,.2f} GB free. "
            "Choose another place (run=…), fewer images (images.limit) or fewer layers."
        )


def _images_per_second(job: "CachingJob", backbone: Backbone, plan: Plan) -> float:
    decoder = Decoder(job.source, backbone.transform, plan, job.on_error)
    numbers = [min(i, plan.n_slices - 1) for i in range(_TIMED_SLICES + 1)]
    start, images = time.monotonic(), 0
    for i, decoded in enumerate(decoder.slices(numbers)):
        # The result has to arrive before the clock is read: on a GPU the call itself returns at once.
        [output.float().sum().item() for output in backbone.forward_to(decoded.batch, job.stored(backbone))]
        if i == 0:
            start = time.monotonic()  # the first batch warms up
        else:
            images += len(plan.images_of(decoded.number))
    return images / max(time.monotonic() - start, 1e-9)
