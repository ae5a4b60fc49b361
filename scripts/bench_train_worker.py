"""One program for bench_train.py and bench_quality.py, in its own environment; it needs torch, numpy and the program.

Commands come on standard input, a line each; answers go to standard output as JSON.
    train N      N more steps → {"seconds": …, "peak_mb": …}
    evaluate     → {"fvu": …, "l0": …, "silent": share of the latents that never fire} on the held-out rows
    profile N    → {"share": {part: share of the time}} (saetool only)
"""

import argparse
import ctypes
import json
import math
import os
import platform
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch


class Program:
    """A model, its optimizer and one training step. `x` is centered and scaled to E‖x‖² = d_in."""

    def __init__(self, args):
        self.args, self.done = args, 0
        self.device = getattr(args, "device", "cpu")

    def step(self, x):
        raise NotImplementedError

    def reconstruct(self, x):
        """Return x_hat, the number of active latents of each row, and which latents are active in some."""
        raise NotImplementedError

    def weight(self):
        """Return the L1 weight of this step: fixed after a linear warm-up, in units of √d_in as saetool's."""
        rise = min(1.0, (self.done + 1) / self.args.warmup) if self.args.warmup else 1.0
        return self.args.weight * rise * math.sqrt(self.args.d_in)

    def autocast(self):
        return torch.autocast(self.device, torch.bfloat16, enabled=self.args.autocast)

    def adam(self, parameters):
        return torch.optim.Adam(parameters, lr=self.args.lr, **({"fused": True} if self.args.autocast else {}))


class Saetool(Program):
    def __init__(self, args):
        super().__init__(args)
        from saetool.activations import TensorStream
        from saetool.autoencoders.base import Training
        from saetool.autoencoders.families import build
        from saetool.autoencoders.sparse_settings import SparseSettings

        steered = {"kind": "l1", "target_l0": args.target_l0, "warmup_steps": args.warmup}
        chosen = {"l1": {"penalty": steered}, "topk": {"activation": {"kind": "topk", "k": args.k}}}
        settings = SparseSettings(n_latents=args.n_latents, **(chosen[args.method] | args.settings))
        self.model = build(settings, args.d_in)
        self.generator = torch.Generator().manual_seed(args.seed)
        stream = TensorStream(args.train[:32768], batch_size=args.batch)
        self.training = Training(tokens=args.tokens)
        self.model.initialize(stream, self.generator, self.training)
        self.optimizer = self.model.make_optimizer(args.lr, (0.9, 0.999), 1e-8)

    def step(self, x):
        from saetool.autoencoders.base import Step

        clip = self.args.clip
        now = Step(self.done, self.training, optimizer=None if clip else self.optimizer)
        with self.model.step_context():
            loss = self.model.loss(x, now, self.generator)
            loss.total.backward()
            self.model.before_update()
            if clip:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.model.after_update(self.optimizer, now, self.generator, [loss])
        self.model.after_step(now)

    @torch.no_grad()
    def flips(self, x):
        """Return how many latents a row bfloat16 alone would switch on or off wrongly."""
        from saetool.sparse.backends import finish

        model, found = self.model, []
        centered = model.normalizer(x) - model.b_dec
        for precision in ("exact", "bf16"):
            support, a = finish(model.activation.search(model._W_enc, centered, model.b_enc, precision))
            found.append(support.codes(a).dense() > 0)
        return (found[0] != found[1]).sum().item() / len(x)

    def reconstruct(self, x):
        codes = self.model.encode_sparse(x)
        fired = torch.zeros(self.args.n_latents, dtype=torch.bool)
        fired[codes.latents] = True
        return self.model.decode_sparse(codes), codes.offsets.diff(), fired


class Overcomplete(Program):
    def __init__(self, args):
        super().__init__(args)
        import matplotlib

        if not hasattr(matplotlib.cm, "get_cmap"):  # overcomplete asks for it when imported; gone since 3.9
            matplotlib.cm.get_cmap = matplotlib.colormaps.get_cmap  # type: ignore[attr-defined]
        from overcomplete.sae import SAE, TopKSAE

        self.model = (
            SAE(args.d_in, args.n_latents, device=self.device)
            if args.method == "l1"
            else TopKSAE(args.d_in, args.n_latents, args.k, device=self.device)
        )
        self.optimizer = self.adam(self.model.parameters())
        if args.compile:
            self.model.compile()

    def step(self, x):
        from overcomplete.sae.train import train_sae

        def criterion(x, x_hat, z_pre, z, dictionary):
            loss = (x - x_hat).square().sum() / len(x)
            if self.args.method == "l1":
                loss = loss + self.weight() * z.abs().sum() / len(x)
            return loss

        with self.autocast():
            train_sae(self.model, [x], criterion, self.optimizer, nb_epochs=1, monitoring=0, device=self.device)

    def reconstruct(self, x):
        _, z, x_hat = self.model.eval()(x)
        self.model.train()
        return x_hat, (z > 0).sum(1), (z > 0).any(0)


class Sparsify(Program):
    def __init__(self, args):
        super().__init__(args)
        if self.device == "cpu":
            os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its own switch for machines without a GPU
        from sparsify import SparseCoder, SparseCoderConfig

        self.model = SparseCoder(args.d_in, SparseCoderConfig(num_latents=args.n_latents, k=args.k))
        self.optimizer = self.adam(self.model.parameters())
        if args.compile:
            self.model.compile()

    def step(self, x):
        self.model.set_decoder_norm_to_unit_norm()
        with self.autocast():
            out = self.model(x)
        out.fvu.backward()
        self.model.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def reconstruct(self, x):
        out = self.model(x)
        fired = torch.zeros(self.args.n_latents, dtype=torch.bool)
        fired[out.latent_indices[out.latent_acts > 0]] = True
        return out.sae_out, (out.latent_acts > 0).sum(1), fired


class SaeLens(Program):
    def __init__(self, args):
        super().__init__(args)
        from sae_lens.saes.sae import TrainStepInput
        from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
        from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

        sizes = {"d_in": args.d_in, "d_sae": args.n_latents}
        if args.method == "l1":
            self.model = StandardTrainingSAE(StandardTrainingSAEConfig(**sizes))
        else:
            self.model = TopKTrainingSAE(TopKTrainingSAEConfig(**sizes, k=args.k))
        self.input, self.optimizer = TrainStepInput, self.adam(self.model.parameters())
        self.forward = self.model.training_forward_pass
        if args.compile:
            self.forward = torch.compile(self.forward)

    def step(self, x):
        weight = {"l1": self.weight()} if self.args.method == "l1" else {}
        given = self.input(
            sae_in=x, coefficients=weight, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
        )
        with self.autocast():
            out = self.forward(given)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def reconstruct(self, x):
        z = self.model.encode(x)
        active = (z.to_dense() if z.is_sparse else z) > 0
        return self.model.decode(z), active.sum(1), active.any(0)


PROGRAMS = {"saetool": Saetool, "overcomplete": Overcomplete, "sparsify": Sparsify, "saelens": SaeLens}

PARTS = {
    "encoder": {"mm", "addmm"},
    "selection": {
        *("nonzero", "topk", "amax", "clamp_", "maximum", "sub_", "index_select", "cumsum", "mul_", "add_"),
        *("masked_select", "masked_scatter_", "bitwise_and", "__rshift__", "floor_divide", "div", "gt", "eq", "le"),
    },
    "products": {
        *("_embedding_bag", "_embedding_bag_forward_only", "sparse_sampled_addmm", "sort", "bincount"),
        *("index_add_", "scatter_"),
    },
    "optimizer": {"_fused_adam_", "copy_", "linalg_vector_norm", "linalg_vecdot", "addcmul_", "div_"},
}
"""Names of torch's operators without `aten::`; "index" alone stands in several parts and counts as rest."""


COMPILED = {"squared_error": "products", "sampled_products": "products", "update": "optimizer"}
"""What saetool's backend does in compiled loops, which are no operators of torch, and the part of a step it is."""


def label_compiled():
    """Let the profiler see the compiled loops, as events named after their part."""
    from saetool.sparse.backends.cpu import backend, kernels

    def labeled(run, part):
        def with_label(*args):
            with torch.profiler.record_function(f"part:{part}"):
                return run(*args)

        return with_label

    for name, part in COMPILED.items():
        setattr(backend.Cpu, name, labeled(getattr(backend.Cpu, name), part))
    backend._decide = labeled(backend._decide, "selection")
    for name in ("above", "largest"):
        setattr(kernels(), name, labeled(getattr(kernels(), name), "selection"))


def keep_heap():
    """Let every program, the others too, keep memory that a step frees: see `saetool.program`."""
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(-3, 2**25):
            mallopt(-1, 2**30)


def peak_mb():
    """Return this process's own peak memory; on Linux `ru_maxrss` begins with that of the process that started it."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def profile(program, batches, steps):
    """Return the share of operators' own time that each part of a step takes, in the thread that calls them."""
    label_compiled()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            program.step(next(batches))
    times = {e.key: e.self_cpu_time_total for e in profiler.key_averages() if e.key.startswith(("aten::", "part:"))}
    total = sum(times.values())
    share = {
        part: sum(t for key, t in times.items() if key.removeprefix("aten::") in {*names, f"part:{part}"}) / total
        for part, names in PARTS.items()
    }
    return {"share": share | {"rest": 1 - sum(share.values())}}


@torch.no_grad()
def evaluate(program, held_out):
    error = active = 0.0
    fired = torch.zeros(program.args.n_latents, dtype=torch.bool)
    for x in held_out.split(2048):
        x_hat, counts, some = program.reconstruct(x)
        fired |= some
        error += (x - x_hat).double().square().sum().item()
        active += counts.sum().item()
    total = (held_out - held_out.mean(0)).double().square().sum().item()
    silent = 1 - fired.float().mean().item()
    return {"fvu": error / total, "l0": active / len(held_out), "silent": silent}


def endless(rows, batch):
    while True:
        for start in range(0, len(rows) - batch + 1, batch):
            yield rows[start : start + batch]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("method", choices=["l1", "topk"])
    for name in ("d_in", "n_latents", "batch", "tokens", "k"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--target_l0", type=float, default=50.0, help="where saetool steers its L1 weight to")
    parser.add_argument("--weight", type=float, default=0.1, help="the other programs' L1 weight")
    parser.add_argument("--warmup", type=int, default=20, help="steps over which an L1 weight rises")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", type=json.loads, default={}, help="saetool's, as JSON")
    parser.add_argument("--clip", type=float, default=0.0, help="saetool's training.clip_norm; SAELens always clips")
    parser.add_argument("--autocast", action="store_true", help="the other programs under bfloat16, with fused Adam")
    parser.add_argument("--compile", action="store_true", help="the other programs by torch.compile")
    parser.add_argument("--data", required=True)
    args = parser.parse_args()
    keep_heap()
    torch.manual_seed(args.seed)
    args.train = torch.from_numpy(np.load(f"{args.data}/train.npy", mmap_mode="c"))
    held_out = torch.from_numpy(np.load(f"{args.data}/held_out.npy"))
    answers, sys.stdout = sys.stdout, sys.stderr  # what the programs print is not an answer
    program, batches = PROGRAMS[args.program](args), endless(args.train, args.batch)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        command, *count = line.split()
        if command == "train":
            start = time.perf_counter()
            for _ in range(int(count[0])):
                program.step(next(batches))
                program.done += 1
            answer = {"seconds": time.perf_counter() - start, "peak_mb": peak_mb()}
        elif command == "evaluate":
            start = time.perf_counter()
            answer = evaluate(program, held_out)
            answer["seconds"] = time.perf_counter() - start
            if isinstance(program, Saetool):
                answer["bf16_flips_a_row"] = program.flips(held_out[:1024])
        else:
            answer = profile(program, batches, int(count[0]))
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
