"""Held-out FVU of sparse autoencoders after the same activations as other programs, each at its best learning rate.

    scripts/bench_environments.sh                 # once: an environment a program
    python scripts/bench_quality.py runs/demo/activations [--json FILE] [--peers DIR] [--parts topk l1] …

All see the same rows in the same order, centered and scaled alike; what the demo's config holds out is held out.
The learning rate is constant: the best of `--rates` (RATES) at the first of `--steps`, for each program.
TopK 32: FVU and silent latents along the steps. ReLU + L1: at one L0, which the other programs reach by fixed weights
(after a warm-up of a tenth of the steps), saetool by steering; FVU there is read off between the two nearest runs.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench_train import PEERS, TARGET_L0, K, Runner, require_peers, save_rows

BATCH = 2048
SEEDS = (1, 2)
"""Further seeds, at the best rate and the first of the steps."""
VARIANTS = {
    "topk": {
        "saetool": {},
        "saetool, initial_norm 0.577": {"initial_norm": 0.577},
        "saetool, initial_gain 0.3, clipped": {"initial_gain": 0.3, "initial_norm": 0.03, "clip": 1.0},
        "saetool, auxk": {"dead": {"kind": "auxk", "after_tokens": 100_000}},
    },
    "l1": {"saetool": {}},
}
"""Settings beside the defaults, and clip_norm. 0.577 is the norm at which sparsify's encoder rows begin (torch's
Linear); AuxK's usual ten million tokens of silence are more than these trainings have."""
RATES = {"topk": (5e-4, 1e-3, 2e-3, 4e-3), "l1": (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)}
FIRST_WEIGHT = 0.15
"""The other programs' first L1 weight, in units of √d_in."""
MOST_RUNS, WITHIN = 4, 0.05
"""An L0 is met within 5 %, or given up after four runs."""


@dataclass
class Bench:
    """What all trainings have in common."""

    shape: tuple[int, int]
    steps: list[int]
    rates: list[float] | None
    folder: str
    peers: Path
    threads: int
    tuned: bool
    runs: list[dict] = field(default_factory=list)

    def train(self, name, method, lr, steps, seed=0, **options):
        """Return what a model is worth after each of `steps`, and note it."""
        settings = VARIANTS[method].get(name)
        if settings is not None:
            settings, options = dict(settings), dict(options)
            options["clip"] = settings.pop("clip", 0.0)
        program = "saetool" if settings is not None else f"{name} tuned" if self.tuned else name
        runner = Runner(
            *(program, method, self.shape, BATCH, self.folder, self.peers, BATCH * self.steps[-1]),
            **({"lr": lr, "seed": seed, "warmup": steps[-1] // 10} | options),
            threads=self.threads,
            settings=settings,
        )
        found, done = [], 0
        for step in steps:
            runner.ask(f"train {step - done}")
            found.append(runner.ask("evaluate") | {"step": step})
            done = step
        runner.close()
        self.runs.append({"name": name, "method": method, "lr": lr, "seed": seed, **options, "found": found})
        print(f"  {method} {name}, rate {lr:g}, seed {seed} {options or ''}: {_line(found)}", flush=True)
        return found

    def at_l0(self, name, lr, seed=0, start=None):
        """Return FVU at TARGET_L0 after the first steps, and the weight (saetool: the target) of the nearest run."""
        peer = not name.startswith("saetool")
        value = start or (FIRST_WEIGHT if peer else TARGET_L0)
        tried = []
        for _ in range(MOST_RUNS):
            found = self.train(name, "l1", lr, self.steps[:1], seed, **{"weight" if peer else "target_l0": value})[0]
            tried.append((math.log(value), math.log(max(found["l0"], 0.1)), found["fvu"], found["silent"]))
            if abs(found["l0"] / TARGET_L0 - 1) < WITHIN:
                break
            value = math.exp(_next(tried, math.log(TARGET_L0), -1.0 if peer else 1.0))
        tried.sort(key=lambda entry: abs(entry[1] - math.log(TARGET_L0)))
        nearest = {"value": math.exp(tried[0][0]), "l0": math.exp(tried[0][1]), "silent": tried[0][3]}
        return nearest | {"fvu": _read_off(tried, math.log(TARGET_L0)), "lr": lr}


def _line(found):
    return ", ".join(f"{e['step']:,}: FVU {e['fvu']:.4f} L0 {e['l0']:.1f} silent {e['silent']:.1%}" for e in found)


def _next(tried, wanted, slope):
    """Return the logarithm of the next weight (or target): along the last two runs, at first along `slope`."""
    if len(tried) > 1 and abs(tried[-1][0] - tried[-2][0]) > 1e-6:
        measured = (tried[-1][1] - tried[-2][1]) / (tried[-1][0] - tried[-2][0])
        slope = measured if measured * slope > 0.1 else slope
    return tried[-1][0] + max(-2.0, min(2.0, (wanted - tried[-1][1]) / slope))


def _read_off(tried, wanted):
    """Return FVU at log L0 = `wanted`, on the line through the two runs nearest to it."""
    (_, at, fvu, *_), *others = tried
    if not others or abs(others[0][1] - at) < 1e-6:
        return fvu
    _, other, beside, _ = others[0]
    return fvu + (wanted - at) * (beside - fvu) / (other - at)


def topk(bench, programs, pool):
    """Return, for each program, its rate, its curve and its first point with other seeds."""
    train, rates = partial(pool.submit, bench.train), bench.rates or RATES["topk"]
    tasks = {(name, lr): train(name, "topk", lr, bench.steps[:1]) for name in programs for lr in rates}
    grid = {key: task.result()[0]["fvu"] for key, task in tasks.items()}
    best = {name: min(rates, key=lambda lr, name=name: grid[name, lr]) for name in programs}
    # The longest first: the slowest program's curve takes as long as all others'.
    curves = {name: train(name, "topk", best[name], bench.steps) for name in reversed(programs)}
    seeds = {name: [train(name, "topk", best[name], bench.steps[:1], seed) for seed in SEEDS] for name in programs}
    return {
        name: {
            "lr": best[name],
            "grid": {lr: grid[name, lr] for lr in rates},
            "curve": curves[name].result(),
            "seeds": [grid[name, best[name]], *(task.result()[0]["fvu"] for task in seeds[name])],
        }
        for name in programs
    }


def l1(bench, programs, pool):
    """Return, for each program, FVU at TARGET_L0 at its best rate, and with other seeds."""
    rates = bench.rates or RATES["l1"]
    tasks = {name: [pool.submit(bench.at_l0, name, lr) for lr in rates] for name in programs}
    best = {name: min((task.result() for task in tasks[name]), key=lambda e: e["fvu"]) for name in programs}
    again = partial(pool.submit, bench.at_l0)
    seeds = {name: [again(name, best[name]["lr"], seed, best[name]["value"]) for seed in SEEDS] for name in programs}
    return {
        name: best[name] | {"seeds": [best[name]["fvu"], *(task.result()["fvu"] for task in seeds[name])]}
        for name in programs
    }


def report(found, steps):
    """Print the tables of docs/benchmarks.md."""
    if "topk" in found:
        print(f"| TopK {K} | rate |" + "".join(f" {s:,} steps |" for s in steps) + " three seeds, first point |")
        print("|---|---:|" + "---:|" * (len(steps) + 1))
        for name, entry in found["topk"].items():
            cells = "".join(f" {e['fvu']:.4f}, {e['silent']:.1%} |" for e in entry["curve"])
            print(f"| {name} | {entry['lr']:g} |{cells} {_seeds(entry['seeds'])} |")
    if "l1" in found:
        print(f"| ReLU + L1 | rate | FVU at L0 {TARGET_L0:g} | silent | three seeds |\n|---|---:|---:|---:|---:|")
        for name, entry in found["l1"].items():
            line = f"{entry['lr']:g} | {entry['fvu']:.4f} | {entry['silent']:.1%} | {_seeds(entry['seeds'])}"
            print(f"| {name} | {line} |")


def _seeds(values):
    return f"{statistics.mean(values):.4f} [{min(values):.4f}, {max(values):.4f}]"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--parts", nargs="+", choices=("topk", "l1"), default=("topk", "l1"))
    parser.add_argument("--programs", nargs="+", help="some of VARIANTS and PEERS; default: all")
    parser.add_argument("--expansion", type=int, default=32)
    parser.add_argument("--steps", nargs="+", type=int, default=[300, 1000, 3000])
    parser.add_argument("--rates", nargs="+", type=float, help="for every program, in place of RATES")
    parser.add_argument("--at-once", type=int, default=2, help="programs at work at a time, each on its share of cores")
    parser.add_argument("--tuned", action="store_true", help="the others by bfloat16, fused Adam and torch.compile")
    parser.add_argument("--peers", type=Path, default=Path.home() / ".cache" / "saetool-bench")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    require_peers(args.peers)
    found = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.at_once) as pool:
        d_in = save_rows(folder, args.store, None, BATCH * args.steps[-1])
        threads = max(1, (os.cpu_count() or 1) // args.at_once)
        shape = (d_in, args.expansion * d_in)
        bench = Bench(shape, args.steps, args.rates, folder, args.peers, threads, args.tuned)
        for part in args.parts:
            programs = [n for n in (*VARIANTS[part], *PEERS[part]) if not args.programs or n in args.programs]
            found[part] = {"topk": topk, "l1": l1}[part](bench, programs, pool)
            if args.json:
                args.json.write_text(json.dumps(found | {"runs": bench.runs}, indent=2))
    print(f"{shape[0]} to {shape[1]:,}, batch {BATCH:,}; FVU on held-out images, share of silent latents")
    report(found, args.steps)


if __name__ == "__main__":
    main()
