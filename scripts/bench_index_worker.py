"""One job under the stopwatch of bench_index.py, in a process of its own so that its peak memory can be read.

saetool AUTOENCODER STORE OUT     the whole index            → {"encode", "statistics", "heat", "tables", "peak_mb"}
bare AUTOENCODER STORE            the bfloat16 encoder product alone → {"tokens_per_second"}; on a GPU other limits too
saev DATA.npz OUT K               saev 0.1.0's visuals, in its own environment → {"seconds", "tokens"}; OUT: top_i.npy
"""

import json
import resource
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

SLICE_ROWS = 256


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_saetool(autoencoder: str, store: str, out: str) -> dict:
    from saetool import distributed
    from saetool.autoencoders.families import load
    from saetool.features import index
    from saetool.features.firing_statistics import FiringStatistics, strongest

    device = distributed.default_device()
    model = load(autoencoder).to(device)
    codes = model.encode_sparse(torch.zeros(1, model.d_in, device=device))  # loads what is compiled once for a machine
    FiringStatistics.empty(model.n_latents, 1, 1.0, device).add(codes, 0)
    strongest(codes, 1)
    busy = stopwatches()
    before, started = peak_mb(), time.perf_counter()
    seconds = index(autoencoder, store, out).notes["seconds"]
    found = {**seconds, "whole": time.perf_counter() - started, "peak_mb": peak_mb() - before, "busy": busy}
    return found | ({"gpu_peak_mb": torch.cuda.max_memory_allocated() / 2**20} if device.type == "cuda" else {})


def stopwatches() -> dict[str, float]:
    """Add up the seconds inside parts of the index, over all threads, in the dict that is returned; say how long each
    stage took once it is over.
    """
    from saetool.features import encoding, heat, neighbors, spill, stage

    busy: dict[str, float] = {}

    def timed(owner, name: str) -> None:
        function = getattr(owner, name)

        def call(*given, **named):
            started = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                label = f"{owner.__name__.rsplit('.', 1)[-1]}.{name}"
                busy[label] = busy.get(label, 0.0) + time.perf_counter() - started
                if owner in whole:
                    print(f"{label}: {busy[label]:.2f} s", file=sys.stderr, flush=True)

        setattr(owner, name, call)

    whole = (stage, stage.Index, heat, neighbors)

    for owner, name in (
        (encoding.Pass, "read"),
        (encoding.Pass, "codes"),
        (encoding.FiringStatistics, "add"),
        (encoding, "strongest"),
        (spill.PartWriter, "add"),
        (spill.PartWriter, "close"),
        (stage, "encode_store"),
        (stage.Index, "_statistics"),
        (heat, "draw"),
        (stage.Index, "_write_examples"),
        (neighbors, "by_decoder"),
        (neighbors, "by_coactivation"),
    ):
        timed(owner, name)
    return busy


def run_bare(autoencoder: str, store: str) -> dict:
    """The least an index can cost here: the encoder's product; on a GPU also exact codes, and reading, each alone."""
    from saetool import distributed
    from saetool.activations import ActivationStore
    from saetool.autoencoders.families import load

    device = distributed.default_device()
    model = load(autoencoder).to(device)
    weight, bias = model.W_enc.detach().bfloat16().T, model.b_enc.detach().bfloat16()
    site = ActivationStore.open(store).site()
    rows = site.rows(0, min(site.n_images, 64)).flatten(0, 1).bfloat16().to(device)
    size = SLICE_ROWS if device.type == "cpu" else len(rows)
    out = torch.empty(size, weight.shape[1], dtype=torch.bfloat16, device=device)

    def product() -> None:
        for part in rows.split(size):
            torch.addmm(bias, part, weight, out=out[: len(part)])

    with torch.inference_mode():
        found = {"tokens_per_second": len(rows) / seconds_of(product)}
        if device.type == "cuda":
            del out
            found |= limits_of_a_gpu(model, site, device)
    return found


def limits_of_a_gpu(model, site, device: torch.device) -> dict:
    """Return tokens a second of exact codes from rows that are there, and of reading rows onto the GPU."""
    from saetool.features.encoding import Pass
    from saetool.features.firing_statistics import FiringStatistics, strongest

    pass_ = Pass(model, site, device)
    chunks = pass_.cut(range(min(site.n_images, 16 * pass_.chunk_images)))
    rows = pass_.read(chunks[0]).to(device)

    def read() -> None:
        for chunk in chunks:
            pass_.read(chunk).to(device, non_blocking=True)

    tokens, chunk = sum(map(len, chunks)) * site.tokens, len(rows) * site.tokens
    codes = pass_.encode(rows)
    statistics = FiringStatistics.empty(model.n_latents, site.tokens, 2.0**-30, device)
    return {
        "entries_per_token": codes.latents.numel() / chunk,
        "exact_codes_per_second": chunk / seconds_of(lambda: pass_.encode(rows)),
        "counting_per_second": chunk / seconds_of(lambda: statistics.add(codes, 0)),
        "strongest_per_second": chunk / seconds_of(lambda: strongest(codes, 8)),
        "read_by_one_thread_per_second": tokens / seconds_of(read),
    }


class Repeated:
    """A site's images several times over: as many as a long run has, all of them in the page cache."""

    def __init__(self, site, times: int):
        self._site, self._times = site, times

    def __getattr__(self, name: str):
        return getattr(self._site, name)

    @property
    def n_images(self) -> int:
        return self._site.n_images * self._times

    def read_into(self, out: torch.Tensor, start: int, stop: int) -> None:
        place, n = 0, self._site.n_images
        while start < stop:
            count = min(stop - start, n - start % n)
            self._site.read_into(out[place : place + count], start % n, start % n + count)
            start, place = start + count, place + count


def run_pass(autoencoder: str, store: str, folder: Path, times: int, profiled: bool = False) -> dict:
    """Return the encoding pass's tokens a second over a store `times` times: in all, and once it is under way."""
    from saetool import distributed
    from saetool.activations import ActivationStore
    from saetool.artifacts import Partial
    from saetool.autoencoders.families import load
    from saetool.features.encoding import Pass, encode_store
    from saetool.features.spill import PartWriter

    device = distributed.default_device()
    site = Repeated(ActivationStore.open(store).site(), times)
    pass_ = Pass(load(autoencoder).to(device), site, device)  # pyright: ignore[reportArgumentType]
    written: list[tuple[float, int]] = []
    add = PartWriter.add

    def noted(self, records, latents, values) -> None:
        add(self, records, latents, values)
        written.append((time.perf_counter(), len(latents)))

    PartWriter.add = noted
    started = time.perf_counter()
    try:
        with profile_of(profiled):
            _, statistics = encode_store(pass_, Partial(folder, folder), 8)
    finally:
        PartWriter.add = add
    seconds = time.perf_counter() - started
    first = len(written) // 4
    steady = sum(rows for _, rows in written[first + 1 :]) / max(written[-1][0] - written[first][0], 1e-9)
    assert statistics.images == site.n_images
    tokens = site.n_images * site.tokens
    return {"pass_tokens": tokens, "pass_per_second": tokens / seconds, "pass_steady_per_second": steady}


@contextmanager
def profile_of(wanted: bool):
    """Print, after the block, what took the GPU's time in it."""
    from torch.profiler import ProfilerActivity, profile

    if not wanted:
        yield
        return
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        yield
    table = seen.key_averages().table(sort_by="self_cuda_time_total", row_limit=30, max_name_column_width=80)
    print(table, file=sys.stderr, flush=True)


def seconds_of(work) -> float:
    """Return the least of several times that `work` takes, once warm."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    best = float("inf")
    for _ in range(6):
        wait()
        started = time.perf_counter()
        work()
        wait()
        best = min(best, time.perf_counter() - started)
    return best


def run_saev(data: str, out: str, k: str) -> dict:
    """Give saev the same rows and weights in its own formats, then time its choice of top images."""
    from saev import activations, config, nn, visuals

    arrays, root = np.load(data), Path(out)
    rows, encoder, bias = arrays["rows"], arrays["encoder"], arrays["bias"]
    images, tokens, d = rows.shape
    sae = nn.SparseAutoencoder(config.SparseAutoencoder(d_vit=d, exp_factor=len(encoder) // d))
    with torch.no_grad():
        sae.W_enc.copy_(torch.from_numpy(encoder.T))
        sae.b_enc.copy_(torch.from_numpy(bias))
        sae.b_dec.zero_()
    nn.dump(str(root / "sae.pt"), sae)
    padded = np.concatenate([np.zeros((images, 1, d), np.float32), rows], axis=1)[:, None]
    padded.tofile(root / "acts000000.bin")
    fields = {"vit_family": "dinov2", "vit_ckpt": "none", "layers": [0], "n_patches_per_img": tokens}
    fields |= {"cls_token": True, "d_vit": d, "seed": 0, "n_imgs": images, "data": "none"}
    fields["n_patches_per_shard"] = images * (tokens + 1)
    names = activations.Metadata.__dataclass_fields__
    metadata = {name: value for name, value in fields.items() if name in names}
    (root / "metadata.json").write_text(json.dumps(metadata))
    loading = config.DataLoad(shard_root=str(root), layer=0, scale_mean=False, scale_norm=False)
    batch = 16 * tokens  # its default, 16,384 rows, needs 0.8 GB for one of its several copies; this is faster here
    given = config.Visuals(
        ckpt=str(root / "sae.pt"), data=loading, top_k=int(k), n_workers=0, device="cpu", dump_to=str(root),
        topk_batch_size=batch, sae_batch_size=batch,
    )  # fmt: skip
    started = time.perf_counter()
    found = visuals.get_topk_patch(given)
    seconds = time.perf_counter() - started
    np.savez(root / "top.npz", images=found.top_i.numpy(), values=found.top_values.numpy().max(-1))
    return {"seconds": seconds, "tokens": images * tokens, "peak_mb": peak_mb()}


if __name__ == "__main__":
    jobs = {"saetool": run_saetool, "bare": run_bare, "saev": run_saev}
    print(json.dumps(jobs[sys.argv[1]](*sys.argv[2:])))
