"""Training rate on one NVIDIA GPU, through the product's own trainer, beside a compiled dense loop and other programs.

    python scripts/bench_gpu.py [--json FILE]         under four minutes; needs this repository and nothing else
    python scripts/bench_gpu.py --tiny                the same steps on a CPU, to see that it works: no ratios

Rows are made on the GPU: 40 of 4,096 directions each, drawn with Zipf's frequencies (rank^-0.7), 768 wide, in bfloat16
as a store holds them; 768 → 24,576 latents. Programs take turns. sparsify, overcomplete and SAELens are timed where
they are installed in this environment, under bfloat16 autocast with fused Adam. L1 weights are steered to L0 50 by one
rule.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import linear, normalize

from saetool.activations import TensorStream
from saetool.autoencoders.families import build
from saetool.autoencoders.sparse_penalties import GAIN, START_WEIGHT, TREND
from saetool.autoencoders.sparse_settings import SparseSettings
from saetool.machine import describe_machine
from saetool.training import TrainingSettings
from saetool.training.heldout import evaluate
from saetool.training.learner import Learner

K, TARGET_L0 = 32, 50.0
SETTLE, TIMED, TURNS = 200, 16, 2
"""Steps before the stopwatch, steps of a turn, and turns."""
GATES = {"l1": 1.75, "topk": 2.3, "exact": 0.85, "rows": 4.5e6}
"""Times the compiled dense loop on L1 and TopK, exact mode's share of the rate, and rows a second, at batch 16,384."""

L1 = {"penalty": {"kind": "l1", "target_l0": TARGET_L0, "warmup_steps": 10}}
KINDS = {
    "l1": L1,
    "topk": {"activation": {"kind": "topk", "k": K}},
    "BatchTopK": {"activation": {"kind": "batch_topk", "k": K}},
    "JumpReLU": {
        "activation": {"kind": "jump_relu", "threshold": 0.025},
        "penalty": {"kind": "l0", "target_l0": TARGET_L0},
    },
    "gated": {"activation": {"kind": "gated"}, "penalty": L1["penalty"]},
    "Matryoshka": {"activation": {"kind": "batch_topk", "k": K}, "matryoshka": [0.0625, 0.25]},
    "KL": {"activation": {"kind": "one_minus_exp"}, "penalty": {"kind": "kl", "rho": 0.002}},
    "TopK + AuxK": {"activation": {"kind": "topk", "k": K}, "dead": {"kind": "auxk"}},
}
PARTS = {
    "encoder": ("gemm", "cutlass", "nvjet", "xmma"),
    "selection": ("mark", "topk_floor", "expand", "keep_largest", "scan", "Scan"),
    "decode": ("residuals", "row_products"),
    "by latent": ("sort", "Sort", "searchsorted", "Radix", "radix"),
    "gradients": ("chunk_sums", "weighted_sums", "group_sums"),
    "update": ("adam_rows",),
}
"""Kernels of a step by parts of their names; the rest is small."""

LAUNCHES = (
    "cudaLaunchKernel",
    "cudaLaunchKernelExC",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "cudaGraphLaunch",
    "cudaMemcpyAsync",
    "cudaMemsetAsync",
)
"""What a program asks the device to do: a recorded part of a step is one of them, however many kernels it has."""


class Setting:
    """The machine, the shape and the data of one run of this script."""

    def __init__(self, tiny: bool):
        self.tiny, self.device = tiny, torch.device("cpu" if tiny else "cuda")
        self.d_in, self.n_latents, self.rows = (48, 256, 4096) if tiny else (768, 24576, 262_144)
        self.batches = (256,) if tiny else (8192, 16384, 32768)
        self.main_batch = 256 if tiny else 16384
        self.settle, self.timed = (3, 2) if tiny else (SETTLE, TIMED)
        self.data = self._rows()
        self.held_out, self.data = self.data[: self.rows // 32], self.data[self.rows // 32 :]

    def _rows(self):
        torch.manual_seed(0)
        directions = normalize(torch.randn(4096, self.d_in, device=self.device), dim=1)
        often = torch.arange(1, 4097, device=self.device).float() ** -0.7
        rows = torch.empty(self.rows, self.d_in, dtype=torch.bfloat16, device=self.device)
        for part in rows.split(4096):
            chosen = torch.multinomial(often.expand(len(part), -1), 40)
            sizes = torch.rand(len(part), 1, 40, device=self.device)
            made = torch.bmm(sizes, directions[chosen])[:, 0]
            part.copy_(made + 0.02 * torch.randn(made.shape, device=self.device))
        return rows

    def batch(self, number: int, size: int):
        """Return the batch of a step, a view."""
        start = number * size % (len(self.data) - size + 1)
        return self.data[start : start + size]

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Ours:
    """saetool: one `Learner`, as the trainer steps it."""

    def __init__(self, kind: str, codes: str, setting: Setting, batch: int, weight: float | None = None):
        keys = dict(KINDS[kind])
        if weight is not None:
            keys["penalty"] = {"kind": "l1", "weight": weight, "warmup_steps": 1}
        if "matryoshka" in keys:
            keys["matryoshka"] = [round(share * setting.n_latents) for share in keys["matryoshka"]]
        settings = SparseSettings(kind="sparse", n_latents=setting.n_latents, codes=codes, **keys)
        training = TrainingSettings(tokens=1000 * batch, batch_size=batch, lr=1e-3)
        torch.manual_seed(0)
        stream = TensorStream(setting.data, batch_size=batch)
        self.learner = Learner(build(settings, setting.d_in), training, 0, setting.device)
        self.learner.initialize(stream)
        self.learner.enter_phase()
        self.center = stream.statistics().mean

    def step(self, x):
        self.learner.step(x)
        if self.learner.done % 50 == 0:
            self.learner.read_window()  # as at a log line

    def weight(self):
        """Return the penalty's weight as it was steered."""
        return float(self.learner.autoencoder.penalty_weight.weight)

    def quality(self, held_out):
        found = evaluate(self.learner.autoencoder, held_out.split(2048), self.center)
        return {"fvu": found.fvu, "l0": found.l0}


class Dense:
    """The plain loop: bfloat16 autocast, torch.compile, fused Adam, unit decoder rows; starts where saetool starts."""

    def __init__(self, kind: str, setting: Setting, batch: int, compiled: bool, weight: float | None = None):
        start = Ours(kind, "bf16", setting, batch).learner.autoencoder
        self.kind, self.start, self.d_in = kind, start, setting.d_in
        weights = (start.W_enc, start.b_enc, start.W_dec, start.b_dec)
        self.weights = [nn.Parameter(w.detach().clone()) for w in weights]
        self.normalizer = start.normalizer
        fused = setting.device.type == "cuda"
        self.optimizer = torch.optim.Adam(self.weights, lr=1e-3, fused=fused)
        self.steered = kind == "l1" and weight is None
        self.weight = torch.tensor(START_WEIGHT["l1"] if weight is None else weight, device=setting.device)
        self.mean_l0 = torch.tensor(100.0, device=setting.device)
        self.loss = torch.compile(self._loss) if compiled else self._loss

    def _codes(self, x):
        w_enc, b_enc, _, b_dec = self.weights
        a = linear(x - b_dec, w_enc) + b_enc
        if self.kind != "topk":
            return a.relu()
        values, places = a.topk(K, dim=1, sorted=False)
        return torch.zeros_like(a).scatter(1, places, values.relu())

    def _loss(self, x, weight):
        with torch.autocast(x.device.type, torch.bfloat16):
            z = self._codes(x)
            x_hat = linear(z, self.weights[2].T)
        error = (x_hat.float() + self.weights[3] - x).square().sum() / len(x)
        cost = weight * math.sqrt(self.d_in) * z.float().sum() / len(x)
        return error + (cost if self.kind == "l1" else 0.0), (z.detach() > 0).sum() / len(x)

    def step(self, x):
        loss, l0 = self.loss(self.normalizer(x.float()), self.weight)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.weights[2].copy_(normalize(self.weights[2], dim=1))
            if self.steered:
                self.weight *= (l0 / TARGET_L0).clamp(0.1, 10) ** GAIN * (l0 / self.mean_l0).clamp(0.1, 10) ** TREND
                self.mean_l0.lerp_(l0.float(), 0.1)

    @torch.no_grad()
    def quality(self, held_out):
        x = self.normalizer(held_out.float())
        z = self._codes(x)
        error = (z @ self.weights[2] + self.weights[3] - x).square().sum()
        total = (x - x.mean(0)).square().sum()
        return {"fvu": float(error / total), "l0": float((z > 0).sum() / len(x))}


class Other:
    """Another program, by the adapter of `bench_train_worker.py`; its L1 weight is fixed, so that it never waits."""

    def __init__(self, name: str, kind: str, setting: Setting, batch: int):
        import bench_train_worker as worker

        sizes = {"d_in": setting.d_in, "n_latents": setting.n_latents, "k": K, "weight": START_WEIGHT["l1"]}
        how = {"autocast": True, "compile": False, "lr": 1e-3, "warmup": 0, "device": setting.device.type}
        given = Namespace(method=kind, batch=batch, **sizes, **how)
        self.program = worker.PROGRAMS[name](given)
        self.program.model.to(setting.device)
        self.program.optimizer = self.program.adam(self.program.model.parameters())

    def step(self, x):
        self.program.step(x.float())


def rate_in_turns(programs, setting, batch):
    """Return {name: rows a second}, the programs taking turns after each has settled; one that fails is named."""
    made, done, found = {}, {}, {}
    for name, make in programs.items():
        try:
            made[name], done[name] = make(), 0
            for _ in range(setting.settle):
                made[name].step(setting.batch(done[name], batch))
                done[name] += 1
            found[name] = []
        except Exception as error:
            print(f"  {name}: {type(error).__name__}: {str(error)[:200]}", flush=True)
            made.pop(name, None)
    for _ in range(TURNS):
        for name, program in made.items():
            setting.wait()
            start = time.perf_counter()
            for _ in range(setting.timed):
                program.step(setting.batch(done[name], batch))
                done[name] += 1
            setting.wait()
            found[name].append(setting.timed * batch / (time.perf_counter() - start))
    for name, rates in found.items():
        quality = made[name].quality(setting.held_out) if hasattr(made[name], "quality") else {}
        weight = {"weight": made[name].weight()} if isinstance(made[name], Ours) else {}
        found[name] = {"rate": statistics.median(rates), **quality, **weight}
        note = f"  FVU {quality['fvu']:.4f} at L0 {quality['l0']:.1f}" if quality else ""
        print(f"  {name:<24} {found[name]['rate']:12,.0f} rows/s{note}", flush=True)
    return found


def quality_at_one_weight(setting, weight):
    """Return FVU and L0 of saetool and the dense loop after equal steps with the same fixed L1 weight."""
    batch, found = setting.main_batch, {}
    makes = {
        "saetool bf16": partial(Ours, "l1", "bf16", setting, batch, weight),
        "dense compiled": partial(Dense, "l1", setting, batch, not setting.tiny, weight),
    }
    for name, make in makes.items():
        program = make()
        for number in range(setting.settle):
            program.step(setting.batch(number, batch))
        found[name] = program.quality(setting.held_out)
        print(f"  {name:<24} FVU {found[name]['fvu']:.4f} at L0 {found[name]['l0']:.1f}", flush=True)
    return found


def installed(kind):
    """Return the other programs that can be imported here."""
    from importlib.util import find_spec

    modules = {"sparsify": "sparsify", "overcomplete": "overcomplete", "saelens": "sae_lens"}
    return [name for name, module in modules.items() if find_spec(module) and (name, kind) != ("sparsify", "l1")]


def parts_of_a_step(setting, kind, codes):
    """Return the ms of each part, kernels, launches and waits of a step, by torch's profiler."""
    program, batch = Ours(kind, codes, setting, setting.main_batch), setting.main_batch
    for number in range(setting.settle):
        program.step(setting.batch(number, batch))
    setting.wait()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        for number in range(4):
            program.learner.step(setting.batch(number, batch))
        setting.wait()
    events = profiler.key_averages()
    device = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    kernels = [e for e in device if not e.key.startswith(("Mem", "Optimizer"))]
    waits = [e for e in events if e.key in ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")]
    found = dict.fromkeys([*PARTS, "rest"], 0.0)
    for event in kernels:
        part = next((p for p, words in PARTS.items() if any(w in event.key for w in words)), "rest")
        found[part] += event.self_device_time_total / 4000
    return {
        "ms": found,
        "kernels": sum(e.count for e in kernels) / 4,
        "launches": sum(e.count for e in events if e.key in LAUNCHES) / 4,
        "waits": (sum(e.count for e in waits) - 1) / 4,  # the one of this function
    }


def memory_of_steps(setting, kind, codes):
    """Return the memory that torch takes from the device for steps, beside the rows; in a process of its own, as it
    also uses what other programs cannot give back. Recorded steps keep some that no tensor holds."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    program, batch = Ours(kind, codes, setting, setting.main_batch), setting.main_batch
    for number in range(setting.settle):
        program.step(setting.batch(number, batch))
    parameters = sum(p.numel() for p in program.learner.autoencoder.parameters())
    return {
        "peak_bytes": torch.cuda.max_memory_reserved() - before,
        "limit_bytes": 16 * parameters + 2 * batch * setting.n_latents + 10**9,
    }


def ceilings(setting):
    """Return the machine's own limits: products in TFLOP/s, copies in TB/s."""
    x = torch.randn(16384, setting.d_in, device=setting.device)
    w = torch.randn(setting.n_latents, setting.d_in, device=setting.device)

    def seconds(work, times=20):
        for _ in range(4):
            work()
        setting.wait()
        start = time.perf_counter()
        for _ in range(times):
            work()
        setting.wait()
        return (time.perf_counter() - start) / times

    flops = 2 * x.numel() * len(w) / 1e12
    half = x.bfloat16(), w.bfloat16()
    large = torch.empty(2**29, dtype=torch.bfloat16, device=setting.device)
    other = torch.empty_like(large)
    return {
        "bf16_tflops": flops / seconds(lambda: half[0] @ half[1].T),
        "fp32_tflops": flops / seconds(lambda: x @ w.T, 4),
        "copy_tb_s": 2 * large.nbytes / seconds(lambda: other.copy_(large)) / 1e12,
    }


def verdicts(found, setting):
    """Print what was measured beside what is to be reached; return it."""
    at = {kind: found[kind][str(setting.main_batch)] for kind in ("l1", "topk")}
    said = {}
    for kind in ("l1", "topk"):
        ours, dense = at[kind]["saetool bf16"]["rate"], at[kind].get("dense compiled", {}).get("rate")
        said[f"{kind} rows/s"] = (ours, GATES["rows"])
        if dense:
            said[f"{kind} × compiled dense loop"] = (ours / dense, GATES[kind])
        said[f"{kind} exact / bf16"] = (at[kind]["saetool exact"]["rate"] / ours, GATES["exact"])
        for name in ("sparsify", "overcomplete", "saelens"):
            if name in at[kind]:
                said[f"{kind} × {name}"] = (ours / at[kind][name]["rate"], 3.3 if name == "sparsify" else 1.0)
    for name, (value, gate) in said.items():
        print(f"{name:<28} {value:12,.2f}   (gate {gate:,.2f}: {'met' if value >= gate else 'MISSED'})")
    return {name: {"value": value, "gate": gate} for name, (value, gate) in said.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on a CPU, to try the script; no ratios")
    parser.add_argument("--memory", nargs=2, metavar=("KIND", "CODES"), help="print only the memory of such steps")
    given = parser.parse_args()
    if not given.tiny and not torch.cuda.is_available():
        print("error: there is no GPU here; --tiny tries the script without one", file=sys.stderr)
        return 2
    sys.path.insert(0, str(Path(__file__).parent))
    setting, begun = Setting(given.tiny), time.monotonic()
    if given.memory:
        print(json.dumps(memory_of_steps(setting, *given.memory)))
        return 0
    print(describe_machine())
    result: dict = {"machine": describe_machine().splitlines(), "shape": [setting.d_in, setting.n_latents]}
    if not given.tiny:
        result["ceilings"] = ceilings(setting)
        print({name: round(value, 2) for name, value in result["ceilings"].items()})
    for kind in ("l1", "topk"):
        result[kind] = {}
        for batch in setting.batches:
            programs = {f"saetool {codes}": partial(Ours, kind, codes, setting, batch) for codes in ("bf16", "exact")}
            if batch == setting.main_batch:
                programs["dense compiled"] = partial(Dense, kind, setting, batch, compiled=not given.tiny)
                programs |= {name: partial(Other, name, kind, setting, batch) for name in installed(kind)}
            print(f"{kind}, batch {batch:,}")
            result[kind][str(batch)] = rate_in_turns(programs, setting, batch)
    weight = result["l1"][str(setting.main_batch)]["saetool bf16"]["weight"]
    print(f"l1, the same fixed weight {weight:.4f}, {setting.settle} steps")
    result["l1 at one weight"] = quality_at_one_weight(setting, weight)
    if not given.tiny:
        for kind, codes in (("l1", "bf16"), ("l1", "exact"), ("topk", "bf16")):
            result[f"parts {kind} {codes}"] = found = parts_of_a_step(setting, kind, codes)
            print(f"{kind} {codes}: " + ", ".join(f"{part} {ms:.2f} ms" for part, ms in found["ms"].items()))
            alone = [sys.executable, __file__, "--memory", kind, codes]
            found |= json.loads(subprocess.run(alone, capture_output=True, text=True, check=True).stdout)
            counts = (
                "  {kernels:g} kernels, {launches:g} launches, {waits:g} waits, {peak_bytes:,} bytes of {limit_bytes:,}"
            )
            print(counts.format(**found), flush=True)
    print("the other kinds")
    for name in [name for name in KINDS if name not in ("l1", "topk")]:
        make = partial(Ours, name, "bf16", setting, setting.main_batch)
        result[name] = rate_in_turns({name: make}, setting, setting.main_batch)
    if given.tiny:
        print("no ratios: nothing of this ran on a GPU")
    else:
        result["verdicts"] = verdicts(result, setting)
    print(f"{time.monotonic() - begun:.0f} s")
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
