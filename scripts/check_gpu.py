"""Is what a GPU computes right? Every kind and every stage on CUDA against the CPU's numbers; under two minutes.

python scripts/check_gpu.py              exit code 0, or 1 and what failed
python scripts/check_gpu.py --interpreted    the same on tiny shapes in Triton's interpreter, without a GPU (8 minutes)
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

if "--interpreted" in sys.argv:  # before Triton is imported
    os.environ |= {"TRITON_INTERPRET": "1", "SAETOOL_BACKEND": "cuda"}

import torch

from saetool.activations import TensorStream, write_store
from saetool.activations.store import ActivationStore
from saetool.activations.store_stream import StoreStream
from saetool.artifacts.files import explain
from saetool.autoencoders.sparse import SparseAutoencoder
from saetool.autoencoders.sparse_settings import SparseSettings
from saetool.errors import RequestError
from saetool.machine import describe_machine
from saetool.sparse.backends import AdamStep, _named, backend_for, finish
from saetool.sparse.backends.cpu import missing
from saetool.sparse.codes import Support
from saetool.sparse.gradients import DeferredGradient, Outer
from saetool.sparse.weight import Weight
from saetool.training import TrainingSettings, replay
from saetool.training.learner import Learner

L1 = {"kind": "l1", "target_l0": 24, "warmup_steps": 4}
SOON = {"after_tokens": "one batch"}
"""Latents count as dead after one batch, and a tenth of them is dead from the start: see `learner_of`."""
KINDS = {
    "ReLU + L1": {"penalty": L1},
    "weighted L1": {"penalty": {**L1, "norm": "weighted"}},
    "KL": {"activation": {"kind": "one_minus_exp"}, "penalty": {"kind": "kl", "rho": 0.02}},
    "TopK with gains": {"activation": {"kind": "topk", "k": 12}, "initial_gain": 0.3},
    "TopK + AuxK": {"activation": {"kind": "topk", "k": 12}, "dead": {"kind": "auxk", **SOON}},
    "BatchTopK": {"activation": {"kind": "batch_topk", "k": 12}, "dead": {"kind": "auxk", **SOON}},
    "JumpReLU": {
        "activation": {"kind": "jump_relu", "threshold": 0.02, "bandwidth": 0.02},
        "penalty": {"kind": "l0", "target_l0": 24},
        "dead": {"kind": "pre_activation", **SOON},
    },
    "gated": {"activation": {"kind": "gated"}, "penalty": L1},
    "Matryoshka": {"activation": {"kind": "batch_topk", "k": 12}, "matryoshka": [16, 64]},
    "resampling": {"penalty": L1, "dead": {"kind": "resample", "every_steps": 2, **SOON}},
    "sigmoid (dense)": {"activation": {"kind": "sigmoid"}, "penalty": {"kind": "kl", "rho": 0.05}},
}
CLOSE = 0.02
"""Tables are read in bfloat16 on a GPU, so gradients agree to about 2⁻⁸ of their size."""


class Checks:
    """Runs checks, says how each ended, and counts those that failed."""

    def __init__(self, device: torch.device, tiny: bool, only: list[str]):
        self.device, self.tiny, self.only, self.failed = device, tiny, only, []
        self.rows, self.d_in, self.n_latents = (12, 24, 96) if tiny else (512, 200, 1500)

    def run(self, name, check, *arguments):
        if not any(word in name for word in self.only):
            return
        start = time.monotonic()
        try:
            said = check(*arguments) or ""
        except Exception:
            self.failed.append(name)
            said = "FAILED\n" + traceback.format_exc()
        print(f"{name:<44} {time.monotonic() - start:5.1f} s  {said}", flush=True)


def planted(rows, d_in, seed=0):
    """Return rows that are sums of few of many directions, in bfloat16."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(4 * d_in, d_in, generator=g), dim=1)
    chosen = torch.rand(rows, 4 * d_in, generator=g).topk(6).indices
    sizes = torch.rand(rows, 6, generator=g) + 0.5
    return torch.bmm(sizes[:, None], directions[chosen])[:, 0].bfloat16()


def off(found, expected):
    """Return the size of the difference relative to what is expected."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def require(what, value, limit):
    assert value <= limit, f"{what}: {value:.3g} exceeds {limit:g}"


def check_functions(checks):
    """Every function of the backend against the reference in float64."""
    g = torch.Generator().manual_seed(0)
    x, weight = planted(checks.rows, checks.d_in).float(), torch.randn(checks.n_latents, checks.d_in, generator=g)
    weight = torch.nn.functional.normalize(weight, dim=1)
    bias = torch.randn(checks.n_latents, generator=g) * 0.1 - 0.3
    cut, k = torch.zeros(checks.n_latents), 7
    reference, there = _named("reference"), [t.to(checks.device) for t in (x, weight, bias, cut)]
    backend = backend_for(there[0])
    assert backend.name == "cuda", f"the backend here is {backend.name}"
    wide = [t.double() for t in (x, weight, bias, cut)]
    outputs = wide[0] @ wide[1].T + wide[2]
    for name, here, elsewhere in (("cut", there[3], wide[3]), ("k", k, k)):
        mine = finish(backend.search(there[0], Weight(there[1]), there[2], "exact", **{name: here}))
        theirs = finish(reference.search(wide[0], Weight(wide[1]), wide[2], "exact", **{name: elsewhere}))
        ours, expected = mine[0].codes(mine[1]).dense().cpu().double(), theirs[0].codes(theirs[1]).dense()
        border = torch.zeros(1) if name == "cut" else outputs.topk(k, dim=1).values[:, -1:]
        sure = (outputs - border).abs() > 1e-5
        assert torch.equal((ours > 0)[sure], (expected > 0)[sure]), f"{name}: another support"
        require(name, off(ours * sure, expected * sure), 1e-5)
        rough = finish(backend.search(there[0], Weight(there[1]), there[2], "bf16", **{name: here}))
        flips = (rough[0].codes(rough[1]).dense().cpu() > 0) != (expected > 0)
        assert (outputs - border)[flips].abs().max().item() < 0.05 if flips.any() else True, f"{name}: bf16 is off"
    support, values = theirs
    here = Support(support.offsets.to(checks.device), support.latents.to(checks.device), checks.n_latents)
    arguments = (values.float().to(checks.device), there[0])
    decoder, wide_decoder = Weight(there[1]), Weight(wide[1])
    require(
        "decode",
        off(backend.decode(here, arguments[0], decoder), reference.decode(support, values, wide_decoder)),
        1e-5,
    )
    mine = backend.latent_gradient(here, *arguments, 0, checks.n_latents)
    require(
        "latent_gradient", off(mine, reference.latent_gradient(support, values, wide[0], 0, checks.n_latents)), CLOSE
    )
    require("latent_sums", off(backend.latent_sums(here, arguments[0]), reference.latent_sums(support, values)), 1e-5)
    mine = backend.squared_error(here, arguments[0], decoder, there[0][0], there[0])
    theirs = reference.squared_error(support, values, wide_decoder, wide[0][0], wide[0])
    for name, a, b in zip(("errors", "residual", "slopes"), mine, theirs, strict=True):
        require(name, off(a, b), CLOSE)
    for unit in (False, True):
        pair = []
        for owner, tensor, part in (
            (backend, there[1], (here, *arguments)),
            (reference, wide[1], (support, values, wide[0])),
        ):
            updated, moments = Weight(tensor.clone()), (torch.zeros_like(tensor), torch.zeros_like(tensor))
            gradient = DeferredGradient([Outer(*part)])
            owner.update(updated, gradient, moments, AdamStep(1e-3, (0.9, 0.999), 1e-8, 1), unit)
            pair.append(moments[0])
        require("update", off(*pair), CLOSE)


def check_edges(checks):
    """More latents than int16 keys hold, none active, equal outputs by the thousand, and rows of another device."""
    n_latents = 40 if checks.tiny else 33_000
    weight = torch.nn.functional.normalize(
        torch.randn(n_latents, 24, generator=torch.Generator().manual_seed(0)), dim=1
    )
    x = planted(8, 24).float().to(checks.device)
    backend, device = backend_for(x), checks.device
    for bias in (-0.2, -100.0):
        biases = torch.full((n_latents,), bias, device=device)
        support, values = finish(
            backend.search(x, Weight(weight.to(device)), biases, "exact", cut=torch.zeros_like(biases))
        )
        expected = (x.cpu() @ weight.T + bias).clamp_min(0)
        require("outputs", off(support.codes(values).dense(), expected), 1e-5)
        gradient = backend.latent_gradient(support, values.clamp_min(0), x, 0, n_latents)
        require("gradient", off(gradient, expected.T @ x.cpu()), CLOSE)
    equal = Weight(torch.ones(n_latents, 24, device=device))
    support, values = finish(backend.search(x.abs(), equal, torch.zeros(n_latents, device=device), "exact", k=5))
    codes = support.codes(values)
    assert codes.latents.view(8, 5).tolist() == [[0, 1, 2, 3, 4]] * 8, "of equals not the first"
    small = model(KINDS["ReLU + L1"], checks, device)
    assert small.encode(planted(3, checks.d_in).float()).device.type == device.type


def model(keys, checks, device, codes="exact"):
    torch.manual_seed(0)
    if "after_tokens" in keys.get("dead", {}):
        keys = keys | {"dead": keys["dead"] | {"after_tokens": checks.rows}}
    settings = SparseSettings(kind="sparse", n_latents=checks.n_latents, codes=codes, sparse_below=1.0, **keys)
    return SparseAutoencoder(settings, checks.d_in).to(device)


def learner_of(keys, checks, device, stream, steps, codes="exact"):
    settings = TrainingSettings(tokens=steps * checks.rows, batch_size=checks.rows, lr=1e-3)
    learner = Learner(model(keys, checks, device, codes), settings, 0, device)
    learner.initialize(stream)
    learner.enter_phase()
    if "dead" in keys:
        dead = slice(None, checks.n_latents // 10)
        with torch.no_grad():
            learner.autoencoder.b_enc[dead] = -5.0
        learner.autoencoder.silence.silent_tokens[dead] = 10**9
    return learner


def check_kind(checks, keys):
    """Three steps on both devices from the same weights end near each other; twice on a GPU, with the same bits."""
    rows = planted(4 * checks.rows, checks.d_in)
    stream = TensorStream(rows, batch_size=checks.rows)
    start = learner_of(keys, checks, torch.device("cpu"), stream, 3).autoencoder.state_dict()
    ended = []
    elsewhere = "reference" if missing() else "cpu"
    for device in (torch.device("cpu"), checks.device, checks.device):
        os.environ["SAETOOL_BACKEND"] = "cuda" if ended else elsewhere
        learner = learner_of(keys, checks, device, stream, 3)
        learner.autoencoder.load_state_dict(start)
        losses = []
        for batch in rows[: 3 * checks.rows].split(checks.rows):
            learner.step(batch.to(device))
            losses.append(learner.read_window()[1][0])
        ended.append((losses, [p.detach().cpu().clone() for p in learner.autoencoder.parameters()]))
    os.environ["SAETOOL_BACKEND"] = "cuda"
    (cpu, parameters), (gpu, others), (again, same) = ended
    random = keys.get("dead", {}).get("kind") == "resample"  # other devices draw other rows
    for a, b in zip(cpu[:1] if random else cpu, gpu, strict=False):
        require("loss", abs(a - b) / abs(a), CLOSE)
    # A step of Adam turns the sign of a tiny gradient into a whole step: weights only, where few are tiny.
    for a, b in zip(parameters, others, strict=True):
        if a.dim() == 2 and not random:
            require("weights", off(b, a), 2 * CLOSE)
    assert gpu == again, "two runs differ in their losses"
    assert all(torch.equal(a, b) for a, b in zip(others, same, strict=True)), "two runs differ in their weights"
    return f"loss {gpu[-1]:.4f}, on the CPU {cpu[-1]:.4f}"


def check_resume(checks, keys, codes):
    """A state taken up in the middle ends with the same bits; another kind of device refuses it."""
    rows = planted(6 * checks.rows, checks.d_in)
    stream, batches = TensorStream(rows, batch_size=checks.rows), rows.split(checks.rows)
    whole = learner_of(keys, checks, checks.device, stream, 6, codes)
    for number, batch in enumerate(batches):
        if number == 3:
            tensors, rest = whole.state()
            tensors = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        whole.step(batch.to(checks.device))
    half = learner_of(keys, checks, checks.device, stream, 6, codes)
    half.restore(tensors, rest)
    for batch in batches[3:]:
        half.step(batch.to(checks.device))
    for (name, a), b in zip(
        whole.autoencoder.state_dict().items(), half.autoencoder.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), f"{name} differs after resuming"
    elsewhere = learner_of(keys, checks, checks.device, stream, 6, codes)
    try:
        elsewhere.restore(tensors, rest | {"device": "elsewhere"})
    except RequestError:
        return
    raise AssertionError("a state of another kind of device was taken up")


def check_recorded(checks, keys, codes):
    """Steps replayed from recordings end with the bits of the same steps without."""
    rows = planted(12 * checks.rows, checks.d_in)
    stream, ended, recorded = TensorStream(rows, batch_size=checks.rows), [], 0
    before = replay.PLAIN_STEPS
    for plain in (before, 10**9):
        replay.PLAIN_STEPS = plain
        learner = learner_of(keys, checks, checks.device, stream, 12, codes)
        for batch in rows.split(checks.rows):
            learner.step(batch.to(checks.device))
            codes_between = learner.autoencoder.encode_sparse(batch[:16].to(checks.device))  # reads other copies
        ended.append(learner.autoencoder.state_dict() | {"codes": codes_between.values})
        recorded = max(recorded, len(learner.recordings.rest) + (learner.recordings.search is not None))
    replay.PLAIN_STEPS = before
    for name, tensor in ended[0].items():
        assert torch.equal(tensor, ended[1][name]), f"{name} differs"
    if checks.device.type == "cuda":
        assert recorded > 0, "nothing was recorded"
        return f"{recorded} graphs"
    return "unrecorded: only on a GPU"


def check_memory(checks):
    """Memory that ends within a recording ends the training in its own words, not in the recording's."""
    if checks.device.type != "cuda":
        return "only on a GPU"
    keys, steps = KINDS["ReLU + L1"], 8
    rows = planted(steps * checks.rows, checks.d_in)
    learner = learner_of(keys, checks, checks.device, TensorStream(rows, batch_size=checks.rows), steps)
    batches = [batch.to(checks.device) for batch in rows.split(checks.rows)]
    for batch in batches[: replay.PLAIN_STEPS + 1]:  # the first of all sets the optimizer up
        learner.step(batch)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        learner.step(batches[-1])
    except torch.OutOfMemoryError as error:
        said = str(explain(error, Path("here")))
        assert "training.batch_size" in said, said
        return said[:60]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    raise AssertionError("there was memory enough")


def check_waits(checks, keys, most):
    """Count what waits for the device in a step."""
    if checks.device.type != "cuda":
        return "only on a GPU"
    rows = planted(14 * checks.rows, checks.d_in)
    stream = TensorStream(rows, batch_size=checks.rows)
    learner = learner_of(keys, checks, checks.device, stream, 14, "bf16")
    batches = [batch.to(checks.device) for batch in rows.split(checks.rows)]
    for batch in batches[:10]:
        learner.step(batch)
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in batches[10:]:
            learner.step(batch)
    torch.cuda.set_sync_debug_mode("default")
    waits = sum("synchroniz" in str(w.message) for w in caught) / 4
    require("waits a step", waits, most)
    return f"{waits:g} a step"


def check_pools(checks):
    """Batches of a store from pools on the GPU are those from the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        write_store(Path(folder) / "store", {"rows": planted(96, checks.d_in).float().view(24, 4, checks.d_in)})
        store = ActivationStore.open(Path(folder) / "store")

        def batches(device, whole=False):
            stream = StoreStream(store.site(None), batch_size=10, pool_rows=30, seed=0, device=device, whole=whole)
            return [batch.cpu() for batch, _ in zip(stream.batches(), range(25), strict=False)]

        for whole in (False, True):
            pairs = zip(batches(None), batches(checks.device, whole), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs), f"whole {whole}: another order or other rows"


def check_stages(checks):
    """The whole pipeline on pixels of digits, by the command line, on the GPU and on the CPU."""
    if checks.device.type != "cuda":
        return "only on a GPU"
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, hidden in (("gpu", None), ("cpu", "")):
            environment = {k: v for k, v in os.environ.items() if k != "SAETOOL_BACKEND"}
            if hidden is not None:
                environment["CUDA_VISIBLE_DEVICES"] = hidden
            kind = "activation: {kind: topk, k: 12}, sparse_below: 1.0"
            sparse = f"autoencoder={{kind: sparse, n_latents: 256, codes: exact, {kind}}}"
            command = ["run", "digits", f"run={folder}/{name}", "training.tokens=100000", sparse]
            done = subprocess.run(
                [sys.executable, "-m", "saetool", *command], env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{name}: {done.stderr[-2000:]}"
            from saetool.artifacts import Artifact

            found.append(Artifact.open(f"{folder}/{name}/autoencoder").content["final"]["fvu"])
            assert Path(f"{folder}/{name}/report/index.html").exists()
    require("FVU", abs(found[0] - found[1]) / found[1], 0.05)
    return f"FVU {found[0]:.4f}, on the CPU {found[1]:.4f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interpreted", action="store_true", help="tiny shapes, Triton's interpreter, no GPU")
    parser.add_argument("--only", nargs="+", default=[""], help="checks whose name contains one of these")
    arguments = parser.parse_args()
    tiny = arguments.interpreted
    if not tiny and not torch.cuda.is_available():
        print("error: there is no GPU here; --interpreted runs tiny shapes without one", file=sys.stderr)
        return 2
    checks = Checks(torch.device("cpu" if tiny else "cuda"), tiny, arguments.only)
    print(describe_machine())
    os.environ["SAETOOL_BACKEND"] = "cuda"
    checks.run("functions against float64", check_functions, checks)
    for name, keys in KINDS.items():
        checks.run(f"{name}: three steps, twice", check_kind, checks, keys)
    checks.run("wide dictionaries and degenerate rows", check_edges, checks)
    for name in ("ReLU + L1", "TopK + AuxK", "BatchTopK", "resampling"):
        for codes in ("bf16", "exact"):
            checks.run(f"{name}, {codes}: resumed", check_resume, checks, KINDS[name], codes)
    for name in ("ReLU + L1", "TopK + AuxK", "BatchTopK", "Matryoshka", "JumpReLU", "gated", "KL"):
        alive = {key: value for key, value in KINDS[name].items() if key != "dead"}
        for codes in ("bf16", "exact") if name in ("ReLU + L1", "TopK + AuxK") else ("bf16",):
            checks.run(f"{name.split(' + A')[0]}, {codes}: recorded", check_recorded, checks, alive, codes)
    for name, codes in (("resampling", "exact"), ("TopK + AuxK", "bf16"), ("JumpReLU", "bf16")):
        checks.run(f"{name}, {codes}: recorded but for its cure", check_recorded, checks, KINDS[name], codes)
    checks.run("no memory left for a recording", check_memory, checks)
    # AuxK (BatchTopK has it here too) selects among dead latents as well.
    for name, most in (
        ("ReLU + L1", 1.0),
        ("TopK + AuxK", 2.0),
        ("BatchTopK", 2.0),
        ("gated", 1.0),
        ("Matryoshka", 1.0),
    ):
        checks.run(f"{name}: waits", check_waits, checks, KINDS[name], most)
    checks.run("pools on the device", check_pools, checks)
    checks.run("cache, train, index, evaluate, report", check_stages, checks)
    print(f"{len(checks.failed)} failed" + (f": {', '.join(checks.failed)}" if checks.failed else ""))
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
