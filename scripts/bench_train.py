"""Training rate of sparse autoencoders against other programs: same machine, same data, interleaved in one run.

    scripts/bench_environments.sh                 # once: an environment a program
    python scripts/bench_train.py [--quick] [--store runs/demo/activations] [--json FILE] [--peers DIR] [--parts …]

The other programs were written for GPUs; `bench_gpu.py` compares there. Rates are activations trained on a second, each
program at its best batch size; a whole run is start, training and evaluation of --tokens at that rate. Programs take
turns in short bursts after the same time to settle, and all keep the memory that a step frees. As shipped (float32) is
the comparison; "tuned" is bfloat16 autocast with fused Adam and torch.compile. Without a store the rows are synthetic
(40 of 2,000 directions each). For the error after equal data see bench_quality.py.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from saetool.sparse.backends.cpu.screen import has_fast_half

WORKER = Path(__file__).with_name("bench_train_worker.py")
PEERS = {"l1": ("overcomplete", "saelens"), "topk": ("sparsify", "overcomplete", "saelens")}
K, TARGET_L0 = 32, 50.0
LR, LR_BATCH = 1e-3, 2048
"""Every program's learning rate is LR · √(batch / LR_BATCH): larger batches take fewer steps."""
PARTS = ("rates", "sweep", "wide")
"""Rates 384 → 12,288; four models together; memory and rates 768 → 24,576."""
HELD_OUT = 8192
BURST_SECONDS = 2.0
SWEEP_TOKENS = 65_536
SETTLE_STEPS = {"l1": 120, "topk": 40}
"""Steps of saetool before the stopwatch: a steered L0 needs about a hundred. The others then settle as many seconds."""
GATES = {"relu_l1": 12.0, "topk": 5.0, "relu_l1_bf16": 15.0, "topk_bf16": 6.5}
"""How many times the fastest peer's rate as shipped (the aim for exact TopK is 5.5)."""
TUNED_AIMS = {"relu_l1": 5.0, "topk": 3.5}
"""The same against peers under bf16 autocast with fused Adam: aims, not gates."""
LABELS = {"relu_l1": "ReLU + L1", "topk": f"TopK {K}"}


class Runner:
    """A worker process that trains when asked to; `name` is a program and how: saetool's codes, or "tuned"."""

    def __init__(self, name, method, shape, batch, data, peers, tokens, threads=None, settings=None, **options):
        program, _, variant = name.partition(" ")
        python = sys.executable if program == "saetool" else str(peers / program / "bin" / "python")
        options = {"lr": LR * (batch / LR_BATCH) ** 0.5} | options
        options |= {"d_in": shape[0], "n_latents": shape[1], "batch": batch, "tokens": tokens, "k": K, "data": data}
        command = [python, str(WORKER), program, method, *(f"--{k}={v}" for k, v in options.items())]
        if program == "saetool":
            command += ["--settings", json.dumps({"codes": variant or "exact"} | (settings or {}))]
        elif variant:
            command += ["--autocast", "--compile"]
        environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        begun = time.perf_counter()
        self.process = subprocess.Popen(command, text=True, env=environment, **pipes)
        self._answer()
        self.start_seconds = time.perf_counter() - begun

    def ask(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker stopped: {' '.join(self.process.args)}\nRun it by hand to see why.")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def rates(method, shape, batch, names, arguments, rounds):
    """Return {program: {"rates": [activations/s of each round], "peak_mb": …}}, the programs taking turns."""
    runners = {name: Runner(name, method, shape, batch, *arguments) for name in names}
    steps, found = {}, {name: {"rates": []} for name in names}
    settle = 0.0
    for name, runner in runners.items():  # saetool's first
        first = runner.ask("train 2")["seconds"]
        seconds = runner.ask("train 2")["seconds"] / 2
        found[name]["start_seconds"] = runner.start_seconds + max(0.0, first - 2 * seconds)
        steps[name] = max(1, round(BURST_SECONDS / seconds))
        if name.startswith("saetool"):
            settle = max(settle, runner.ask(f"train {SETTLE_STEPS[method]}")["seconds"])
        else:
            runner.ask(f"train {math.ceil(settle / seconds)}")
    for _ in range(rounds):
        for name, runner in runners.items():
            answer = runner.ask(f"train {steps[name]}")
            found[name]["rates"].append(steps[name] * batch / answer["seconds"])
            found[name]["peak_mb"] = answer["peak_mb"]
    for name, runner in runners.items():
        entry = found[name]
        entry["rate"] = statistics.median(entry["rates"])
        after = runner.ask("evaluate")
        whole = entry["start_seconds"] + arguments[2] / entry["rate"] + after["seconds"]
        entry |= {"evaluate_seconds": after["seconds"], "whole_run_rate": arguments[2] / whole}
        if name.startswith("saetool"):
            entry |= {"l0": after["l0"], "bf16_flips_a_row": after["bf16_flips_a_row"]}
            entry |= {"share": runner.ask("profile 5")["share"]}
        runner.close()
        note = f"; L0 {entry['l0']:.1f}, bf16 flips {entry['bf16_flips_a_row']:.2f} a row" if "l0" in entry else ""
        print(
            f"  {name:20s} {entry['rate']:9,.0f}/s  ({min(entry['rates']):,.0f} to {max(entry['rates']):,.0f}), "
            f"whole run {entry['whole_run_rate']:,.0f}/s, {entry['peak_mb']:,.0f} MB{note}",
            flush=True,
        )
    return found


def product_rate(shape, rows=256):
    """Return the GFLOP/s of this machine's bare matrix product on a slice, bfloat16 where that is fast."""
    dtype = torch.bfloat16 if has_fast_half() else torch.float32
    x, w = torch.randn(rows, shape[0]).to(dtype), torch.randn(shape[1], shape[0]).to(dtype)
    out, best = torch.empty(rows, shape[1], dtype=dtype), float("inf")
    for _ in range(100):
        start = time.perf_counter()
        torch.mm(x, w.T, out=out)
        best = min(best, time.perf_counter() - start)
    return 2 * rows * shape[0] * shape[1] / best / 1e9


def rows_of(store, d_in, tokens):
    """Return shuffled training and held-out rows, centered and scaled to E‖x‖² = d_in over the training rows."""
    generator = torch.Generator().manual_seed(0)
    x, held = _stored(store, tokens, generator) if store is not None else _synthetic(d_in, tokens, generator)
    x = x[torch.randperm(len(x), generator=generator)]
    mean = x.mean(0)
    factor = (x.shape[1] / (x - mean).square().sum(1).mean()).sqrt()
    return (x - mean) * factor, (held - mean) * factor


def _stored(store, tokens, generator):
    """Return rows of the images that the demo's config trains on, and of those that it holds out."""
    from saetool.activations import ActivationStore
    from saetool.activations.split import held_out_images
    from saetool.config import load_config

    config = load_config("demo")
    rule = {"seed": config.seed, "share": config.training.held_out, "group": config.images.group.model_dump()}
    site = ActivationStore.open(store).site(None)
    held_out = torch.from_numpy(held_out_images(site.store, rule))
    parts = []
    for wanted, rows in ((~held_out, tokens), (held_out, HELD_OUT)):
        images = torch.nonzero(wanted).flatten()
        images = images[torch.randperm(len(images), generator=generator)][: -(-rows // site.tokens)]
        parts.append(torch.cat([site.rows(i, i + 1).float().flatten(0, 1) for i in images.sort().values.tolist()]))
    return parts


def _synthetic(d_in, tokens, generator):
    directions = normalize(torch.randn(2000, d_in, generator=generator), dim=1)
    parts = []
    for _ in range(-(-(tokens + HELD_OUT) // 8192)):
        places = torch.rand(8192, 2000, generator=generator).topk(40).indices
        sizes = torch.rand(8192, 40, generator=generator) + 0.5
        parts.append(torch.zeros(8192, 2000).scatter_(1, places, sizes) @ directions)
    x = torch.cat(parts)
    x += 0.02 * torch.randn(x.shape, generator=generator)
    return x[HELD_OUT:], x[:HELD_OUT]


def compare(shape, methods, batches, rounds, arguments, tuned_batches):
    """Return {method: {batch: rates}}, printing a block for each."""
    found = {}
    for method in methods:
        found[method] = {}
        for batch in batches:
            names = ["saetool exact", "saetool bf16", *PEERS[method]]
            if batch in tuned_batches:
                names += [f"{peer} tuned" for peer in PEERS[method]]
            print(f"{method}, {shape[0]} to {shape[1]:,}, batch {batch:,}")
            found[method][batch] = rates(method, shape, batch, names, arguments, rounds)
    return found


def ratios(found):
    """Return the ratios to the fastest peer, every program at its best batch size."""
    result = {}
    for method, by_batch in found.items():
        key = {"l1": "relu_l1", "topk": "topk"}[method]
        best = _best(by_batch, "rate")
        peer, tuned = _fastest_peers(best)
        exact, rough = best["saetool exact"], best["saetool bf16"]
        result |= {f"{key}_vs_fastest_peer": exact / peer, f"{key}_vs_fastest_peer_bf16": rough / peer}
        result |= {f"{key}_vs_tuned_peer": exact / tuned, f"{key}_vs_tuned_peer_bf16": rough / tuned}
        whole = _best(by_batch, "whole_run_rate")
        result[f"{key}_whole_run_vs_fastest_peer"] = whole["saetool exact"] / _fastest_peers(whole)[0]
        result[f"{key}_whole_run_vs_tuned_peer"] = whole["saetool exact"] / _fastest_peers(whole)[1]
        smallest = min(by_batch)
        first = {name: entry["rate"] for name, entry in by_batch[smallest].items()}
        result[f"{key}_vs_fastest_peer_at_{smallest}"] = first["saetool exact"] / _fastest_peers(first)[0]
    return result


def _best(by_batch, figure):
    best = {}
    for programs in by_batch.values():
        for name, entry in programs.items():
            best[name] = max(entry[figure], best.get(name, 0.0))
    return best


def _fastest_peers(figures):
    """Return the largest figure of the other programs as shipped, and of all of theirs."""
    peers = {name: figure for name, figure in figures.items() if not name.startswith("saetool")}
    return max(figure for name, figure in peers.items() if " " not in name), max(peers.values())


def report_parts(found, shape):
    """Print where a step's time goes and the encoder's rate against the machine's; return the numbers."""
    machine = product_rate(shape)
    parts: dict = {"machine_gflops": machine}
    print(f"bare matrix product on a slice: {machine:,.0f} GFLOP/s")
    for method, by_batch in found.items():
        entry = max((b["saetool exact"] for b in by_batch.values()), key=lambda e: e["rate"])
        flops = 2 * shape[0] * shape[1] * entry["rate"] / 1e9
        encoder = flops / entry["share"]["encoder"]
        parts[method] = entry["share"] | {"encoder_gflops": encoder, "encoder_of_machine": encoder / machine}
        shares = ", ".join(f"{part} {share:.0%}" for part, share in entry["share"].items())
        print(f"  {method}: {shares}; encoder {encoder:,.0f} GFLOP/s, {encoder / machine:.0%} of the bare product")
    return parts


def report_gates(result, gated):
    """Print every ratio to the peers beside what it is meant to be."""
    for key, gate in GATES.items():
        base, end, _ = key.partition("_bf16")
        label = f"{LABELS[base]}, {'bf16' if end else 'exact'}"
        shipped, tuned = result[f"{base}_vs_fastest_peer{end}"], result[f"{base}_vs_tuned_peer{end}"]
        verdict = ("met" if shipped >= gate else "MISSED") if gated else "not applied: no fast bfloat16 here"
        aim = "" if end else f" (aim {TUNED_AIMS[base]:g})"
        print(f"{label}: {shipped:.1f} × the fastest peer as shipped (gate {gate:g}: {verdict}), ", end="")
        print(f"{tuned:.1f} × the fastest tuned peer{aim}")


def sweep(store):
    """Return the time of four models trained together, as a multiple of one alone; below 4 where reading counts."""
    from saetool.artifacts import Artifact
    from saetool.autoencoders.sparse_settings import SparseSettings
    from saetool.training import TrainingSettings, train_together, training_stage

    cached = Artifact.open(store, "activations")

    def seconds(seeds, folder):
        model = SparseSettings(kind="sparse", n_latents=12288, activation={"kind": "topk", "k": K})
        how = [TrainingSettings(tokens=SWEEP_TOKENS, evaluate_rows=2048, seed=seed) for seed in seeds]
        members = [(training_stage(cached, model, one), f"{folder}/{i}") for i, one in enumerate(how)]
        start = time.perf_counter()
        train_together(members)
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder:
        alone, together = seconds([0], f"{folder}/alone"), seconds(range(4), f"{folder}/together")
    print(f"four models together: {together / alone:.2f} × the time of one alone (gate 4)")
    return {"one_seconds": alone, "four_seconds": together, "four_over_one": together / alone}


def memory(arguments):
    """Return the peak of a process that trains 768 to 24,576 at batch 8,192, beside its limit, in MB."""
    runner = Runner("saetool exact", "l1", (768, 24576), 8192, *arguments)
    peak = runner.ask("train 3")["peak_mb"]
    runner.close()
    parameters = 2 * 768 * 24576 + 768 + 24576
    return {"peak_mb": peak, "limit_mb": (16 * parameters + 1.5e9) / 2**20}


def wide(folder, peers, tokens):
    """Return peak memory, rates and ratios for 768 to 24,576, on synthetic rows."""
    save_rows(folder, None, 768, 65_536)
    arguments = (folder, peers, tokens)
    peak = memory(arguments)
    print("768 to 24,576, batch 8,192: {peak_mb:,.0f} MB, limit {limit_mb:,.0f} MB".format(**peak))
    found = compare((768, 24576), ("l1", "topk"), (2048,), 2, arguments, ())
    return {"memory": peak, "rates_768": found, "ratios_768": ratios(found)}


def save_rows(folder, store, d_in, tokens):
    """Write training and held-out rows where the workers find them; return their width."""
    for name, rows in zip(("train", "held_out"), rows_of(store, d_in, tokens), strict=True):
        np.save(f"{folder}/{name}.npy", rows.numpy())
    return rows.shape[1]


def require_peers(folder):
    """End with a message where a program's environment is missing."""
    missing = [p for p in PEERS["topk"] if not (folder / p / "bin" / "python").exists()]
    if missing:
        raise SystemExit(f"no environment for {', '.join(missing)} in {folder}: run scripts/bench_environments.sh")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="rates and sweep only, under ten minutes on 2 cores")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="some only; without rates no ratio is printed")
    parser.add_argument("--store", type=Path, help="activations to train on (d_in 384)")
    parser.add_argument("--peers", type=Path, default=Path.home() / ".cache" / "saetool-bench")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tokens", type=int, default=1_300_000, help="of a whole run: the demo's")
    args = parser.parse_args()
    parts = args.parts or (("rates", "sweep") if args.quick else PARTS)
    require_peers(args.peers)
    gated = has_fast_half()
    result = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "gates_apply": gated}
    shape, methods = (384, 12288), ("l1", "topk")
    if "rates" in parts:
        with tempfile.TemporaryDirectory() as folder:
            save_rows(folder, args.store, 384, 262_144)
            batches, rounds = ((2048, 8192), 3) if args.quick else ((2048, 4096, 8192), 4)
            arguments = (folder, args.peers, args.tokens)
            found = compare(shape, methods, batches, rounds, arguments, batches)
            result |= ratios(found) | {"rates_384": found, "time": report_parts(found, shape)}
    if "sweep" in parts and args.store is not None:
        result["sweep"] = sweep(args.store)
    if "wide" in parts:
        with tempfile.TemporaryDirectory() as folder:
            result |= wide(folder, args.peers, args.tokens)
    if "rates" in parts:
        report_gates(result, gated)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
