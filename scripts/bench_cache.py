"""How near caching comes to the bare forward pass: decode, round, measure and write included.

    python scripts/bench_cache.py [--quick] [--json FILE] [--backbone NAME] [--layer N] [--source NAME]

The bare pass runs on batches that are decoded already, in the same precision and batch size, before and after each
caching job: a turn's ratio is to their mean, and the median turn counts, as machines drift. `fp32` is the bare pass in
float32.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from saetool import distributed
from saetool.activations import CacheSettings, cache
from saetool.activations.decoding import Decoder
from saetool.activations.writer import Plan
from saetool.images import ImageSettings, ImageSource, open_source
from saetool.vision import Backbone, BackboneSettings, load_backbone

TURNS = 5


def main() -> None:
    """Time the bare pass, the float32 pass and caching; print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="320 images a turn (default: 1,600)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--backbone", default="demo/vits14")
    parser.add_argument("--layer", type=int, default=10)
    parser.add_argument("--source", default="elpv")
    arguments = parser.parse_args()
    source = open_source(ImageSettings(source=arguments.source, limit=320 if arguments.quick else 1600))
    settings = BackboneSettings(name=arguments.backbone, layers=[arguments.layer])
    figures = measure(settings, source, CacheSettings())
    for name, value in figures.items():
        print(f"{name}: {value:,.4g}" if isinstance(value, float) else f"{name}: {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure(settings: BackboneSettings, source: ImageSource, store: CacheSettings) -> dict[str, float | str]:
    """Return images a second of each, their ratios, the share of decoding, the peak memory."""
    backbone = load_backbone(settings, device=distributed.default_device())
    exact = load_backbone(settings.model_copy(update={"precision": "fp32"}), device=distributed.default_device())
    turns: dict[str, list[float]] = {"cache": [], "forward": [], "fp32": [], "vs_forward": [], "vs_fp32": []}
    before, decode_seconds = forward_rate(backbone, source, store, images=128)
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(TURNS):
            start = time.perf_counter()
            cache(backbone, source, None, Path(folder) / str(turn), store)
            caching = len(source) / (time.perf_counter() - start)
            after, decode_seconds = forward_rate(backbone, source, store, images=128)
            single, _ = forward_rate(exact, source, store, images=32)
            bare = (before + after) / 2
            found = (caching, bare, single, caching / bare, caching / single)
            for values, value in zip(turns.values(), found, strict=True):
                values.append(value)
            print(f"turn {turn + 1}: bare {bare:.1f}, caching {caching:.1f} images/s, {caching / bare:.2f}", flush=True)
            before = after
    middle = {name: statistics.median(values) for name, values in turns.items()}
    macos = sys.platform == "darwin"  # where ru_maxrss counts bytes, not KiB
    return {
        "images_per_second": middle["cache"],
        "forward_images_per_second": middle["forward"],
        "fp32_forward_images_per_second": middle["fp32"],
        "cache_vs_forward": middle["vs_forward"],
        "cache_vs_fp32_forward": middle["vs_fp32"],
        "decode_milliseconds": decode_seconds * 1e3,
        "decode_share_of_processors": decode_seconds * middle["cache"] / (os.cpu_count() or 1),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if macos else 2**10),
        "precision": backbone.precision,
        "images": str(len(source)),
    }


def forward_rate(backbone: Backbone, source: ImageSource, store: CacheSettings, images: int) -> tuple[float, float]:
    """Return images a second of the bare pass over decoded batches, and the seconds it takes to decode one image."""
    site = backbone.sites[0]
    plan = Plan(len(source), [{"folder": site.folder, "n_tokens": backbone.tokens_at(site), "d": site.d}], store)
    decoder = Decoder(source, backbone.transform, plan, "fail", threads=1)
    count = min(images, len(source))
    batches = [decoded.batch for decoded in decoder.slices(range(count // store.batch_size))]
    backbone.forward_to(batches[0])  # warm up
    start = time.perf_counter()
    for batch in batches:
        # The result has to arrive before the clock is read: on a GPU the call itself returns at once.
        outputs = [output.cpu() for output in backbone.forward_to(batch)]
        del outputs
    seconds = time.perf_counter() - start
    return len(batches) * store.batch_size / seconds, decoder.seconds / (len(batches) * store.batch_size)


if __name__ == "__main__":
    main()
