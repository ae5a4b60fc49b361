"""Rate of the index against saev 0.1.0's visuals and against the bare encoder product, its recall, its memory.

    python scripts/bench_index.py [--quick] [--json FILE] [--peers DIR]

Rows are synthetic: an image is a direction of its own plus noise, so that a latent fires on a few per cent of images,
on many of their patches; L0 is about 45. saev 0.1.0 is installed from PyPI into DIR/saev at first use, over this
environment's torch. Recall: how many of the true top images of each latent (a dense float32 encoder) are found.
On a GPU: 768 → 24,576, 196 tokens an image, 1,000 classes, beside exact codes, counting and reading alone; saev is
left out.
"""

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import torch

from saetool.activations import CacheSettings, write_store
from saetool.artifacts import Partial, Stage, run_stage
from saetool.autoencoders.families import build
from saetool.autoencoders.sparse_settings import SparseSettings

WORKER = Path(__file__).with_name("bench_index_worker.py")
D, EXPANSION, K, L0, TOKENS = 384, 32, 16, 45, 256
TIE = 2.0**-18
"""Relative difference below which two float32 outputs, each a sum of some hundred terms, count as equal."""
SHARED = 0.6
"""Share of a token's variance that all tokens of its image have in common."""
AT_ONCE = 256
"""Images made at once."""
NEEDED = ("saev==0.1.0", "beartype", "tyro", "einops", "jaxtyping", "matplotlib")
GATES = {"index_vs_saev": 20.0, "index_vs_encoder": 0.5, "recall": 1.0}
PEAK_MB = 1500
GPU_IMAGES, GPU_TIMES = 4096, 8
"""Images of the store on a GPU, and how many times the pass goes over them."""
GPU_GATE = 4e6


def main() -> None:
    """Make the data, run the jobs one after the other, print and store the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="fewer images: two minutes on 2 cores, half of one on a GPU"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--profile", action="store_true", help="on a GPU: print what takes the pass's time")
    parser.add_argument("--peers", type=Path, default=Path.home() / ".cache" / "saetool-bench")
    given = parser.parse_args()
    if torch.cuda.is_available():
        finish(on_a_gpu(given.quick, given.profile), given.json)
        return
    images, saev_images = (512, 48) if given.quick else (2048, 192)
    with tempfile.TemporaryDirectory(prefix="saetool-bench-") as folder:
        here = Path(folder)
        store, model = make(here / "main", images, TOKENS, D, D * EXPANSION)
        bare = [run("bare", model, store)["tokens_per_second"]]
        ours = run("saetool", model, store, here / "main" / "features")
        bare.append(run("bare", model, store)["tokens_per_second"])
        rate, limit = images * TOKENS / ours["encode"], max(bare)
        recall = recall_of(here / "main", images)
        peer, saev_recall = run_saev(given.peers, here, saev_images)
        wide_store, wide_model = make(here / "wide", 16, 196, 768, 24_576)
        wide = run("saetool", wide_model, wide_store, here / "wide" / "features")
    figures = {
        "index_tokens_per_second": rate,
        "encoder_tokens_per_second": limit,
        "saev_tokens_per_second": peer,
        "index_vs_saev": rate / peer if peer else None,
        "index_vs_encoder": rate / limit,
        "recall": recall,
        "saev_recall": saev_recall,
        "peak_mb": wide["peak_mb"],
        "seconds": ours,
        "tokens": images * TOKENS,
        "threads": torch.get_num_threads(),
        "gates": {**GATES, "peak_mb": PEAK_MB},
    }
    finish(figures, given.json)


def finish(figures: dict, file: Path | None) -> None:
    """Print the figures, and write them where that was asked for."""
    print(json.dumps(figures, indent=1))
    if file:
        file.write_text(json.dumps(figures, indent=1) + "\n")


def on_a_gpu(quick: bool, profiled: bool) -> dict:
    """Return the figures of an index on a GPU, beside what its parts could do alone; print each once it is known.

    The pass goes over the store many times, so that its start does not count; the other stages see it once.
    """
    worker = importlib.import_module("bench_index_worker")
    images = GPU_IMAGES
    figures: dict = {"device": torch.cuda.get_device_name(), "tokens": images * 196}

    def say(**found: object) -> None:
        figures.update(found)
        print(json.dumps(found), flush=True)

    with tempfile.TemporaryDirectory(prefix="saetool-bench-") as folder:
        here, started = Path(folder), time.perf_counter()
        store, model = make(here / "wide", images, 196, 768, 24_576, classes=1000)
        say(seconds_to_make=time.perf_counter() - started)
        bare = worker.run_bare(model, store)
        say(**bare)
        times = GPU_TIMES if quick else 4 * GPU_TIMES
        worker.run_pass(model, store, here / "warm", 1)
        say(**worker.run_pass(model, store, here / "pass", times))
        shutil.rmtree(here / "pass")
        figures["gates"] = {"pass_per_second": GPU_GATE}
        if profiled:
            worker.run_pass(model, store, here / "profiled", 1, True)
        seconds = worker.run_saetool(model, store, here / "wide" / "features")
        say(seconds=seconds)
        say(
            pass_vs_encoder=figures["pass_per_second"] / bare["tokens_per_second"],
            pass_vs_exact_codes=figures["pass_per_second"] / bare["exact_codes_per_second"],
            heat_images_per_second=images / seconds["heat"],
            statistics_images_per_second=images / seconds["statistics"],
        )
        if not quick:
            store, model = make(here / "small", 512, TOKENS, D, D * EXPANSION)
            worker.run_saetool(model, store, here / "small" / "features")
            say(recall=recall_of(here / "small", 512))
    return figures


def make(folder: Path, images: int, tokens: int, d: int, n_latents: int, classes: int = 0) -> tuple[Path, Path]:
    """Write a store, labeled where there are `classes`, and a sparse autoencoder for it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    rows = torch.empty(images, tokens, d, dtype=torch.bfloat16)
    for start in range(0, images, AT_ONCE):
        some = rows[start : start + AT_ONCE]
        common = torch.randn(len(some), 1, d, generator=generator, device=device) * SHARED**0.5
        own = torch.randn(some.shape, generator=generator, device=device) * (1 - SHARED) ** 0.5
        some.copy_(common + own)
    generator = torch.Generator().manual_seed(1)
    encoder = torch.nn.functional.normalize(torch.randn(n_latents, d, generator=generator), dim=1)
    cut = torch.distributions.Normal(0, 1).icdf(torch.tensor(1 - L0 / n_latents))
    names = [f"class {i}" for i in range(classes)]
    store = write_store(
        folder / "store",
        rows,
        grid=(tokens // 14, 14) if tokens == 196 else (16, 16),
        settings=CacheSettings(),
        images=[{"kind": names[i * 7919 % classes]} for i in range(images)] if names else None,
        labels=[{"name": "kind", "kind": "category", "classes": names}] if names else (),
    )
    settings = SparseSettings.model_validate(
        {"kind": "sparse", "n_latents": n_latents, "expansion": None, "normalize": "none"}
    )
    model = build(settings, d)
    state = model.state_dict()
    state |= {"W_enc": encoder, "W_dec": encoder.clone(), "b_enc": torch.full((n_latents,), -float(cut))}
    state["b_dec"] = torch.zeros(d)

    def seal(partial: Partial) -> dict:
        partial.write_tensors("model.safetensors", state)
        content = {"settings": settings.model_dump(mode="json"), "d_in": d, "n_latents": n_latents}
        return {**content, "site": store.sites[0].info, "held_out": {"seed": 0, "share": 0.1}}

    run_stage(Stage("autoencoder", {}, seal, (store.artifact,)), folder / "autoencoder")
    if tokens == TOKENS:  # what recall is taken from
        np.savez(folder / "data.npz", rows=rows.float().numpy(), encoder=encoder.numpy(), bias=state["b_enc"].numpy())
    return folder / "store", folder / "autoencoder"


def run(*command: object, python: Path | str = sys.executable) -> dict:
    """Run one job of the worker and return its figures."""
    done = subprocess.run([str(python), str(WORKER), *map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def true_maxima(data: Path, images: int) -> np.ndarray:
    """Return each image's largest output of each latent, [images, n_latents], from a dense float32 encoder."""
    arrays = np.load(data)
    encoder, bias = torch.from_numpy(arrays["encoder"]), torch.from_numpy(arrays["bias"])
    return torch.stack([
        torch.addmm(bias, torch.from_numpy(rows), encoder.T).amax(0) for rows in arrays["rows"][:images]
    ]).numpy()  # fmt: skip


def recall_of(folder: Path, images: int) -> float:
    """Return the share of true top images that the index names."""
    filters = [("group", "=", "top")]
    table = parquet.read_table(folder / "features" / "examples.parquet", columns=["latent", "image"], filters=filters)
    return recall(true_maxima(folder / "data.npz", images), table["latent"].to_numpy(), table["image"].to_numpy())


def recall(best: np.ndarray, latent: np.ndarray, image: np.ndarray) -> float:
    """Return the share of each latent's K top images (of those that fire) that were found.

    An image counts where its true maximum reaches the K-th largest but for float32's rounding, as two that differ by
    that have no true order.
    """
    ranked = -np.sort(-best, axis=0)[:K]
    wanted = (ranked > 0).sum(0)
    lowest = np.where(wanted > 0, ranked[np.maximum(wanted, 1) - 1, np.arange(best.shape[1])], np.inf)
    pairs = np.unique(np.stack([latent.astype(np.int64), image.astype(np.int64)]), axis=1)
    latent, image = pairs[:, best[pairs[1], pairs[0]] >= lowest[pairs[0]] * (1 - TIE)]
    found = np.bincount(latent, minlength=best.shape[1])
    return float(np.minimum(found, wanted).sum() / wanted.sum())


def run_saev(peers: Path, folder: Path, images: int) -> tuple[float, float]:
    """Return saev's tokens a second and its recall on the first `images` images."""
    python = saev_environment(peers / "saev")
    out = folder / "saev"
    out.mkdir()
    arrays = np.load(folder / "main" / "data.npz")
    np.savez(out / "data.npz", rows=arrays["rows"][:images], encoder=arrays["encoder"], bias=arrays["bias"])
    found = run("saev", out / "data.npz", out, K, python=python)
    top = np.load(out / "top.npz")
    fires = top["values"] > 0
    latent = np.broadcast_to(np.arange(len(fires))[:, None], fires.shape)[fires]
    score = recall(true_maxima(out / "data.npz", images), latent, top["images"][fires])
    return found["tokens"] / found["seconds"], score


def saev_environment(place: Path) -> Path:
    """Return the Python of an environment with saev 0.1.0 over this one's packages; make it at first use."""
    python = place / "bin" / "python"
    if not (place / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        packages = place / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        (packages / "outer.pth").write_text(sysconfig.get_path("purelib") + os.linesep)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", *NEEDED], check=True)
        (place / ".ready").touch()
    return python


if __name__ == "__main__":
    main()
