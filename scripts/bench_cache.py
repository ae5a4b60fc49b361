"""How near caching comes to the least that it could take: the bare forward pass, or decoding, or writing alone.

    python scripts/bench_cache.py [--quick] [--json FILE] [--backbone NAME] [--layer N] [--source NAME] [--images N]

Limits are measured before and after each caching job (of a single turn, before it), and the median turn counts, as
machines drift. `forward` is the bare pass over pixels that are decoded (and on a GPU already there), in the same
precision and batch size; `decode` is all decoding, no model; `write` is making shards durable. `cache` is the whole
call, `progress` what its progress line says at the end, `steady` the rate without start and end, which a large store
does not notice. `--source 256x256` makes JPEGs of that size: a GPU gets them unless told otherwise, and a ViT-B/16 of
random weights; a CPU gets the demo's model and pictures.
"""

import argparse
import io
import json
import os
import re
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from saetool import distributed
from saetool.activations import CacheSettings, cache
from saetool.activations.caching import CachingJob
from saetool.activations.decoding import DecodedSlice
from saetool.activations.estimate import estimate
from saetool.activations.forward import Forward
from saetool.activations.writer import WRITERS, Plan
from saetool.artifacts import Partial
from saetool.images import ImageSettings, ImageSource, open_source
from saetool.images.picture import read_picture
from saetool.vision import Backbone, BackboneSettings, load_backbone

DISTINCT = 256
"""Pictures that are made; the others are links to them: what counts is decoding, not the disk they come from."""
QUALITY = 90
BARE = 64
"""Pictures that bare Pillow decodes."""


def main() -> None:
    """Time the limits and caching; print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    parser.add_argument("--quick", action="store_true", help="a fifth of the images")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--backbone", default="timm/vit_base_patch16_224" if gpu else "demo/vits14")
    parser.add_argument("--layer", type=int, default=11 if gpu else 10)
    parser.add_argument("--source", default="256x256" if gpu else "elpv", help="WIDTHxHEIGHT makes JPEGs of that size")
    parser.add_argument("--images", type=int, default=20_480 if gpu else 1_600)
    parser.add_argument("--batch", type=int, default=256 if gpu else 32)
    parser.add_argument("--decode", choices=["pillow", "gpu"], default="pillow")
    parser.add_argument("--disk", action="store_true", help="also write by fewer and by more threads, and bare files")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--compiled", action="store_true", help="also time the model's blocks as torch.compile makes them"
    )
    given = parser.parse_args()
    images = given.images // 5 if given.quick else given.images
    settings = BackboneSettings(
        name=given.backbone, layers=[given.layer], pretrained=given.backbone.startswith("demo/")
    )
    with tempfile.TemporaryDirectory(prefix="saetool-bench-") as folder:
        source = ImageSettings(source=pictures(given.source, images, Path(folder)), limit=images, decode=given.decode)
        store = CacheSettings(batch_size=given.batch, shard_mb=256 if gpu else 64)
        figures = measure(settings, source, store, Path(folder), given.turns, given.disk)
        if given.compiled:
            figures |= ways_of_the_forward_pass(settings, given.batch)
    for name, value in figures.items():
        print(f"{name}: {value:,.4g}" if isinstance(value, float) else f"{name}: {value}")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


def pictures(source: str, images: int, folder: Path) -> str:
    """Return a source by its name; make a folder of JPEGs where a size is given instead."""
    size = re.fullmatch(r"(\d+)x(\d+)", source)
    if size is None:
        return source
    width, height = int(size[1]), int(size[2])
    place = folder / "pictures"
    place.mkdir()
    with ThreadPoolExecutor(distributed.cores()) as pool:
        made = list(pool.map(lambda seed: jpeg(seed, width, height), range(min(DISTINCT, images))))
    for i in range(images):
        path = place / f"{i:06d}.jpg"
        if i < len(made):
            path.write_bytes(made[i])
        else:
            os.link(place / f"{i % len(made):06d}.jpg", path)
    return str(place)


def jpeg(seed: int, width: int, height: int) -> bytes:
    """Return a JPEG of coarse blobs and fine noise, about as large as a photograph's."""
    draw = np.random.default_rng(seed)
    coarse = Image.fromarray(draw.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = np.clip(pixels + draw.integers(-12, 13, pixels.shape, dtype=np.int16), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "jpeg", quality=QUALITY)
    return file.getvalue()


def measure(
    settings: BackboneSettings, images: ImageSettings, store: CacheSettings, folder: Path, turns: int, disk: bool
) -> dict[str, float | str]:
    """Return the rates in images a second, caching's share of the lowest limit, processor time, the peak memory."""
    backbone = load_backbone(settings, device=distributed.default_device())
    source = open_source(images)
    job = CachingJob(lambda: backbone, lambda b: b.sites, source, store, "fail", decode=images.decode)
    plan = job.plan(backbone)
    found: dict[str, list[float]] = {}
    before = limits(job, backbone, plan, folder)
    for turn in range(turns):
        began, busy = time.perf_counter(), processor_seconds()
        with launches() as times, seconds_in(CachingJob, "_fill") as filling:
            made = cache(backbone, images, None, folder / "store", store, force=True)
        rate = len(source) / (time.perf_counter() - began)
        spent = (processor_seconds() - busy) / len(source)
        first = min(job.decoder(backbone, plan).slices_ahead, len(times) - 2)  # those were decoded ahead
        steady = (len(times) - 1 - first) * store.batch_size / (times[-1] - times[first])
        after = limits(job, backbone, plan, folder) if turns > 1 else before
        bare = {name: (before[name] + after[name]) / 2 for name in before}
        least = min(bare[name] for name in ("forward", "decode", "write"))
        row = {**bare, "cache": rate, "progress": len(source) / filling[0], "steady": steady}
        row |= {"steady_vs_forward": steady / bare["forward"], "steady_vs_limit": steady / least}
        for name, value in {**row, "processor_milliseconds": spent * 1e3}.items():
            found.setdefault(name, []).append(value)
        print(f"turn {turn + 1}: " + ", ".join(f"{name} {value:,.4g}" for name, value in row.items()), flush=True)
        before = after
    figures: dict[str, float | str] = {name: statistics.median(values) for name, values in found.items()}
    figures |= {
        f"{name}_difference": value for name, value in made.content.get("decoded", {}).get("difference", {}).items()
    }
    if backbone.precision != "fp32":
        figures |= beside_float32(settings, plan, float(figures["steady"]))
    predicted = estimate(job, folder)["images_per_second"]
    figures |= {"dry_run": predicted, "dry_run_vs_progress": predicted / float(figures["progress"])}
    if disk:
        figures |= beside_the_disk(job, backbone, plan, folder)
    figures |= beside_pillow(source, backbone, float(figures["decode_milliseconds"]))
    scale = 2**20 if sys.platform == "darwin" else 2**10  # where ru_maxrss counts bytes, not KiB
    memory = {"peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale}
    where = {"precision": backbone.precision, "device": distributed.where(backbone.device), "images": str(len(source))}
    return (
        figures | memory | where | {"cores": str(distributed.cores()), "workers": job.decoder(backbone, plan).workers}
    )


def beside_float32(settings: BackboneSettings, plan: Plan, rate: float) -> dict[str, float]:
    """Return images a second of the bare pass in float32, and caching's rate over it."""
    exact = load_backbone(settings.model_copy(update={"precision": "fp32"}), device=distributed.default_device())
    shape = (plan.settings.batch_size, *exact.transform.pixel_shape)
    prepared = exact.inputs(torch.zeros(shape, dtype=torch.uint8))
    forward = len(prepared) / seconds_of(lambda: exact.forward_to(prepared), exact.device)
    return {"fp32_forward": forward, "steady_vs_fp32_forward": rate / forward}


@contextmanager
def launches() -> Iterator[list[float]]:
    """Yield a list that gets the time of every slice that is handed to the model while the block runs."""
    times: list[float] = []
    launch = Forward.launch

    def noted(self: Forward, decoded: DecodedSlice) -> Callable:
        times.append(time.perf_counter())
        return launch(self, decoded)

    with patch.object(Forward, "launch", noted):
        yield times


@contextmanager
def seconds_in(owner: type, name: str) -> Iterator[list[float]]:
    """Yield a list that gets the seconds of every call of a method while the block runs."""
    seconds: list[float] = []
    method = getattr(owner, name)

    def timed(*given: object) -> object:
        began = time.perf_counter()
        try:
            return method(*given)
        finally:
            seconds.append(time.perf_counter() - began)

    with patch.object(owner, name, timed):
        yield seconds


def processor_seconds() -> float:
    """Return the processor time of this process and of those it has waited for."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, kinds))


def limits(job: CachingJob, backbone: Backbone, plan: Plan, folder: Path) -> dict[str, float]:
    """Return images a second of decoding, of the bare forward pass and of writing, each alone."""
    slices = range(plan.n_slices)
    slices = slices[: max(2, 4_096 // plan.settings.batch_size)] if backbone.device.type == "cuda" else slices[:10]
    decoder = job.decoder(backbone, plan)
    times, pixels = [], torch.empty(0)
    for decoded in decoder.slices(slices):
        pixels = decoded.pixels
        times.append(time.perf_counter())
    images = sum(len(plan.images_of(number)) for number in slices)
    first = min(decoder.slices_ahead, len(times) - 2)
    decode = (len(times) - 1 - first) * plan.settings.batch_size / (times[-1] - times[first])
    prepared = backbone.inputs(pixels)
    forward = len(pixels) / seconds_of(lambda: backbone.forward_to(prepared), backbone.device)
    write, gigabytes = written(job, backbone, plan, folder)
    return {
        "decode": decode,
        "forward": forward,
        "write": write,
        "write_gigabytes": gigabytes,
        "decode_milliseconds": decoder.seconds / images * 1e3,
    }


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that `work` takes, once warm, on average over at least a second."""
    work()
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began, count = time.perf_counter(), 0
    while count < 2 or time.perf_counter() - began < 1:
        for _ in range(5 if device.type == "cuda" else 1):
            work()
            count += 1
        wait()
    return (time.perf_counter() - began) / count


def written(
    job: CachingJob, backbone: Backbone, plan: Plan, folder: Path, writers: int = WRITERS
) -> tuple[float, float]:
    """Return images and gigabytes a second of making shards durable, as many at a time as the job does."""
    from saetool.activations.shard import shard_bytes

    site = backbone.sites[0]
    images = plan.slices_per_shard * plan.settings.batch_size
    rows = torch.zeros(images, backbone.tokens_at(site), site.d, dtype=plan.dtype)
    partial, count = Partial(folder / "written", folder / "written"), 8
    began = time.perf_counter()
    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(lambda i: partial.write_bytes(f"{i}.safetensors", *shard_bytes([rows])), range(count)))
    seconds = time.perf_counter() - began
    shutil.rmtree(folder / "written")
    return count * images / seconds, count * rows.nbytes / seconds / 1e9


def beside_the_disk(job: CachingJob, backbone: Backbone, plan: Plan, folder: Path) -> dict[str, float]:
    """Return gigabytes a second that reach the disk through more writers, and as bare files, four side by side."""
    found = {f"write_gigabytes_by_{writers}": written(job, backbone, plan, folder, writers)[1] for writers in (1, 2, 8)}
    data = memoryview(bytes(plan.slices_per_shard * plan.settings.batch_size * plan.image_bytes))

    def bare(i: int) -> None:
        with (folder / f"bare-{i}").open("wb", buffering=0) as file:
            file.write(data)
            os.fsync(file.fileno())

    began = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(bare, range(8)))
    seconds = time.perf_counter() - began
    for i in range(8):
        (folder / f"bare-{i}").unlink()
    return {**found, "disk_gigabytes": 8 * len(data) / seconds / 1e9}


def beside_pillow(source: ImageSource, backbone: Backbone, ours: float) -> dict[str, float]:
    """Return the processor time an image of decoding, resizing and cutting with Pillow alone, and ours over it."""
    transform = backbone.transform
    method = Image.Resampling[transform.interpolation.upper()]
    contents = [Path(str(source.root), source.path(i)).read_bytes() for i in range(min(BARE, len(source)))]
    read_picture(contents[0], "warm")
    began = time.process_time()
    for content in contents:
        image = Image.open(io.BytesIO(content)).convert("RGB")
        image = image.resize(transform.geometry.resized(*image.size), method)
        left, top = transform.geometry.crop_corner(*image.size)
        height, width = transform.geometry.crop
        np.asarray(image.crop((left, top, left + width, top + height)))
    bare = (time.process_time() - began) / len(contents) * 1e3
    return {"pillow_milliseconds": bare, "decode_vs_pillow": ours / bare}


def ways_of_the_forward_pass(settings: BackboneSettings, batch: int) -> dict[str, float]:
    """Return images a second through the model's blocks alone as they are, and compiled, and what compiling takes."""
    backbone = load_backbone(settings, device=distributed.default_device())
    site = backbone.sites[0]
    blocks = [backbone.model.get_submodule(path) for path in backbone.blocks[:-1]]
    tokens = backbone.prefix_tokens + backbone.tokens_at(site)
    x = torch.randn(batch, tokens, site.d, device=backbone.device, dtype=backbone.dtype)

    def through(modules: list) -> torch.Tensor:
        out = x
        for module in modules:
            out = module(out)
        return out

    with torch.no_grad():
        eager = len(x) / seconds_of(lambda: through(blocks), backbone.device)
        compiled = [torch.compile(block) for block in blocks]
        began = time.perf_counter()
        through(compiled)
        start = time.perf_counter() - began
        fast = len(x) / seconds_of(lambda: through(compiled), backbone.device)
    return {"blocks": eager, "blocks_compiled": fast, "compile_seconds": start}


if __name__ == "__main__":
    main()
