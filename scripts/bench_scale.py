"""Does it grow as it should? Every stage over 1×, 4× and 16× images: time linear, memory flat.

    python scripts/bench_scale.py [--quick] [--json FILE] [--images N]

Images are random pictures, the model a tiny ViT with random weights (196 patches of width 64), so that what is measured
is saetool and not a forward pass. Each stage runs in a process of its own. Seconds count its work without Python's
start; CPU seconds are those of all its threads and workers, and say more where other work runs beside it. Memory is the
largest resident size (peak), and of it what belongs to the process (own, sampled, Linux): mapped files count as
resident while nobody else needs the memory. Training is one epoch of each size; evaluation is the part that `saetool
run` makes: held-out numbers and baselines.

Printed for each stage: seconds, CPU seconds, images a second, both memories; then how seconds and CPU seconds an image
grow from 1× to 16× (1 is linear; below 1, a fixed part is spread over more images), and how much own memory grows from
4× to 16×, when fixed buffers are full, for each byte that the store grows (0 is flat; holding the store would be 1).
There are few latents, so that the index's block of them (at most 96 MiB) stays small beside that. Whether one decoded
batch more waits (19 MB) is chance: of what --quick's store grows by (77 MB) that is a quarter.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

STAGES = {
    "activations": "cache",
    "autoencoder": "train",
    "features": "index",
    "evaluation": "evaluate",
    "report": "report",
}
FACTORS = (1, 4, 16)
TOKENS, D, PIXELS = 196, 64, 224
STORE_MB = TOKENS * D * 2 / 1e6
"""Of an image, in bfloat16."""
GATES = {"seconds_an_image": 1.25, "cpu_seconds_an_image": 1.25, "memory_per_store": 0.25}
"""The most that may come out."""
SECONDS_BETWEEN_SAMPLES = 0.01


def main() -> None:
    """Run every stage at every size, print the figures and how they grow."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="256 images at 1× (default: 512)")
    parser.add_argument("--images", type=int, help="images at 1×")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--stage", nargs=2, metavar=("KIND", "CONFIG"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage:
        print(json.dumps(run_stage(*given.stage)))
        return
    base = given.images or (256 if given.quick else 512)
    with tempfile.TemporaryDirectory(prefix="saetool-scale-") as folder:
        here = Path(folder)
        sizes = [measure(here, base * factor) for factor in FACTORS]
    figures = {
        "images": [base * factor for factor in FACTORS],
        "sizes": sizes,
        "growth": growth(sizes, base),
        "gates": GATES,
    }
    show(figures)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")


def draw_pictures(folder: Path, count: int) -> None:
    """Write random pictures in two class folders."""
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    for i in range(count):
        pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC)
        picture.save(folder / "ab"[i % 2] / f"{i:07d}.jpg")


def measure(here: Path, images: int) -> dict[str, dict[str, float]]:
    """Run all stages over some images; return seconds, images a second and peak memory of each."""
    draw_pictures(here / f"pictures-{images}", images)
    config = here / f"{images}.json"  # JSON is YAML
    config.write_text(json.dumps(config_of(here, images)))
    found = {}
    for kind, name in STAGES.items():
        command = [sys.executable, __file__, "--stage", kind, str(config)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name} over {images} images failed:\n{done.stderr[-2000:]}")
        found[name] = json.loads(done.stdout.splitlines()[-1])
        found[name]["images_per_second"] = images / found[name]["seconds"]
        print(f"{images:>7,} images  {name:<8}  {line(found[name])}", flush=True)
    return found


def config_of(here: Path, images: int) -> dict:
    """Return the config of a run: everything but the images and the rows of an epoch stays the same."""
    return {
        "run": str(here / f"run-{images}"),
        "images": {"source": str(here / f"pictures-{images}")},
        "backbone": {"name": "timm/test_vit", "layers": [3], "pretrained": False, "image_size": PIXELS},
        "cache": {"shard_mb": 1, "batch_size": 32},
        "autoencoder": {"kind": "sparse", "n_latents": 32, "activation": {"kind": "topk", "k": 8}},
        "training": {"tokens": images * TOKENS, "batch_size": 1024, "pool_rows": 16_384, "held_out": 0.1},
        "report": {},
    }


def run_stage(kind: str, config: str) -> dict[str, float]:
    """Run one stage in this process; return its seconds and the process's largest memories."""
    from saetool.pipeline import Run

    run = Run.load(config)
    start, cpu = time.perf_counter(), cpu_seconds()
    with own_memory() as samples:
        if kind == "evaluation":
            run.members[0].evaluate(full=False)
        else:
            run.make(kind)
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mb": peak, "own_mb": max(samples, default=peak)}


def cpu_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    return sum(os.times()[:4])


@contextmanager
def own_memory() -> Iterator[list[float]]:
    """Sample what is resident and not shared with a file, in MB; nothing where /proc does not tell."""
    samples: list[float] = []
    ended = threading.Event()
    statm, page = Path("/proc/self/statm"), os.sysconf("SC_PAGE_SIZE") / 1e6

    def sample() -> None:
        while statm.exists() and not ended.wait(SECONDS_BETWEEN_SAMPLES):
            _, resident, shared = statm.read_text().split()[:3]
            samples.append((int(resident) - int(shared)) * page)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


def growth(sizes: list[dict], base: int) -> dict[str, dict[str, float]]:
    """Return, for each stage, how seconds an image grow over all sizes, and memory over the last step."""
    first, middle, last = sizes
    stored = base * (FACTORS[-1] - FACTORS[-2]) * STORE_MB
    return {
        name: {
            "seconds_an_image": first[name]["images_per_second"] / last[name]["images_per_second"],
            "cpu_seconds_an_image": last[name]["cpu_seconds"] / first[name]["cpu_seconds"] / FACTORS[-1],
            "memory_per_store": (last[name]["own_mb"] - middle[name]["own_mb"]) / stored,
        }
        for name in first
    }


def line(figures: dict[str, float]) -> str:
    """Return one stage's figures as text."""
    return (
        f"{figures['seconds']:8.2f} s  {figures['cpu_seconds']:8.2f} s CPU  "
        f"{figures['images_per_second']:8.1f} images/s  "
        f"{figures['peak_mb']:6.0f} MB peak  {figures['own_mb']:6.0f} MB own"
    )


def show(figures: dict) -> None:
    """Print the growth of each stage, and which of it is beyond the gates."""
    print("\ngrowth of        seconds an image   CPU seconds an image   memory / store")
    for name, ratios in figures["growth"].items():
        beyond = [key for key, gate in GATES.items() if ratios[key] > gate]
        note = f"   beyond the gate: {', '.join(beyond)}" if beyond else ""
        numbers = f"{ratios['seconds_an_image']:>12.2f} {ratios['cpu_seconds_an_image']:>22.2f}"
        print(f"{name:<16} {numbers} {ratios['memory_per_store']:>16.2f}{note}")


if __name__ == "__main__":
    main()
