"""`saetool train` as a whole command on one NVIDIA GPU, beside the bare steps of the same model; some seven minutes.

    python scripts/bench_gpu_command.py [--json FILE]      needs this repository, 8 GB of disk and of page cache
    python scripts/bench_gpu_command.py --tiny             the same on a CPU, to see that it works: no shares

The rows are those of `bench_gpu.py`, again and again, as a store of images with 196 patches, which was just written,
so it is read from the page cache: every epoch again, in pools, as a store larger than the GPU's memory is; or once,
where it lies on the GPU whole. The command's time has all in it: imports, compiling kernels, initialization,
evaluations, checkpoint, sealing.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path

import bench_gpu
import torch
import yaml

from saetool.activations import write_store
from saetool.activations.settings import CacheSettings
from saetool.activations.store import ActivationStore
from saetool.activations.store_stream import StoreStream
from saetool.machine import describe_machine

PATCHES = 196
READING = {
    "pools": "from saetool.activations import device_pool as p; p.WHOLE_SHARE = 0; from saetool import cli; cli.main()",
    "whole": "from saetool import cli; cli.main()",
}
"""How the store is read, and a command line that reads it so."""
ROOM = 4
"""Pools until each has its room, on the GPU too."""
STEADY = 0.5
"""The first half of the log lines are left out of the steady rate: kernels are compiled and steps recorded there."""


def make_store(folder, setting, rows):
    """Write a store of so many rows, and return how long that took."""
    images = -(-rows // PATCHES)
    times = -(-images * PATCHES // len(setting.data))
    data = setting.data.cpu().repeat(times, 1)[: images * PATCHES].view(images, PATCHES, setting.d_in)
    described = [{"path": f"{i:07d}", "digest": f"{i:032x}"} for i in range(images)]
    start = time.perf_counter()
    write_store(folder, data, images=described, settings=CacheSettings(dtype="bfloat16"))
    return time.perf_counter() - start


def feeding(store, setting, batch, pools=16):
    """Return rows a second of what feeds a training, each alone: reading pools, uploading them, batches of both.

    The first pools are left out: room for them is made meanwhile.
    """
    site = ActivationStore.open(store).site(None)
    pool_rows = min(262_144, site.n_images * site.tokens // 4)
    stream = StoreStream(site, batch, pool_rows, 0, device=setting.device)

    def rate(rounds, first):
        rounds = iter(rounds)
        for _ in range(first):
            next(rounds)
        start, rows = time.perf_counter(), 0
        for count in rounds:
            rows += count
        setting.wait()
        return rows / (time.perf_counter() - start)

    def uploads(pool):
        there = torch.empty_like(pool, device=setting.device)
        for _ in range(pools):
            there.copy_(pool, non_blocking=True)
            yield len(pool)

    def read():
        for _, order in islice(stream._pools(stream._shuffle.from_(stream._position)), pools + ROOM):
            yield len(order)

    pool, _ = next(stream._pools(stream._shuffle.from_(stream._position)))
    batches = (len(rows) for rows in islice(stream.batches(), (pools + ROOM) * pool_rows // batch))
    return {
        "reading": rate(read(), ROOM),
        "uploading": rate(uploads(pool), 1),
        "batches": rate(batches, ROOM * pool_rows // batch),
    }


def train(folder, store, kind, setting, tokens, batch, reading):
    """Run the command and return its seconds and the rates of its log lines."""
    config = {
        "run": str(folder),
        "activations": str(store),
        "images": {"source": "digits"},  # never opened: the rows are there
        "backbone": {"name": "pixels"},
        "autoencoder": {"kind": "sparse", "n_latents": setting.n_latents, **bench_gpu.KINDS[kind]},
        "training": {"tokens": tokens, "batch_size": batch, "lr": 1e-3},
    }
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config))
    start = time.perf_counter()
    command = [sys.executable, "-c", READING[reading], "train", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"error: saetool train failed:\n{done.stderr[-2000:]}")
    lines = [json.loads(line) for line in (folder / "autoencoder" / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["split"] == "train"]
    rates = [line["rate"] for line in trained]
    counts = [
        after["tokens"] - before["tokens"] for before, after in zip([{"tokens": 0}, *trained], trained, strict=False)
    ]
    stepping = sum(count / rate for count, rate in zip(counts, rates, strict=True))
    final = next(line for line in reversed(lines) if line.get("final"))
    return {
        "seconds": seconds,
        "seconds_of_steps": stepping,
        "rates_by_tenth": [statistics.median(rates[n * len(rates) // 10 :][: -(-len(rates) // 10)]) for n in range(10)],
        "first_line_seconds": counts[0] / rates[0],
        "rate": tokens / seconds,
        "steady_rate": statistics.median(rates[int(STEADY * len(rates)) :]),
        "fvu": final["fvu"],
        "l0": final["l0"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on a CPU, to try the script; no shares")
    parser.add_argument("--rows", type=int, default=4_000_000, help="rows of the store")
    parser.add_argument("--tokens", type=int, default=400_000_000, help="rows to train on")
    parser.add_argument("--kinds", nargs="+", default=["l1", "topk"], choices=["l1", "topk"])
    parser.add_argument("--reading", nargs="+", default=list(READING), choices=list(READING))
    given = parser.parse_args()
    if not given.tiny and not torch.cuda.is_available():
        print("error: there is no GPU here; --tiny tries the script without one", file=sys.stderr)
        return 2
    setting = bench_gpu.Setting(given.tiny)
    rows, tokens = (20_000, 100_000) if given.tiny else (given.rows, given.tokens)
    batch = setting.main_batch
    print(describe_machine())
    found: dict = {"machine": describe_machine().splitlines(), "rows": rows, "tokens": tokens, "batch": batch}
    with tempfile.TemporaryDirectory() as name:
        store = Path(name) / "store"
        print(f"a store of {rows:,} rows, written in {make_store(store, setting, rows):.1f} s", flush=True)
        found["feeding"] = feeding(store, setting, batch)
        print(
            "feeding: " + ", ".join(f"{name} {rate:,.0f} rows/s" for name, rate in found["feeding"].items()), flush=True
        )
        for kind in given.kinds:
            codes = "exact" if given.tiny else "bf16"
            bare = bench_gpu.rate_in_turns(
                {f"{kind}: bare steps": partial(bench_gpu.Ours, kind, codes, setting, batch)}, setting, batch
            )
            bare_rate = next(iter(bare.values()))["rate"]
            found[kind] = {"bare": bare_rate}
            if not given.tiny:
                torch.cuda.empty_cache()
            for reading in given.reading:
                whole = train(Path(name) / f"{kind}-{reading}", store, kind, setting, tokens, batch, reading)
                found[kind][reading] = whole
                said = (
                    "the command {seconds:.1f} s, {seconds_of_steps:.1f} of them steps (to the first log line "
                    "{first_line_seconds:.1f}), {rate:,.0f} rows/s; "
                    "steps of its second half {steady_rate:,.0f}; FVU {fvu:.4f} at L0 {l0:.1f}"
                )
                print(f"  {kind}, {reading}: {said.format(**whole)}")
                if not given.tiny:
                    shares = whole["rate"] / bare_rate, whole["steady_rate"] / bare_rate
                    print("  of the bare steps: {:.0%} whole (gate 80%), {:.0%} in the second half".format(*shares))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
