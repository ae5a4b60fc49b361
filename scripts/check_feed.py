"""Is what feeds a GPU right? Caching and indexing on it against the same without any overlap; under a minute.

    python scripts/check_feed.py         exit code 0, or 1 and what failed

Without a GPU everything runs on the CPU, and what only a GPU can show is left out.
"""

import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as parquet
import torch
from bench_cache import pictures
from bench_index import make

from saetool import distributed
from saetool.activations import ActivationStore, CacheSettings, cache
from saetool.activations.caching import CachingJob
from saetool.activations.forward import Forward
from saetool.activations.moments import SiteMoments
from saetool.errors import RequestError
from saetool.features import IndexSettings, encoding, index, ranking
from saetool.features.labels import LabelColumn, label_statistics
from saetool.features.maxima import RECORD, Maxima
from saetool.features.numbers import block_numbers
from saetool.images import ImageSettings, open_source
from saetool.vision import BackboneSettings, load_backbone

GPU = torch.cuda.is_available()
IMAGES, BATCH = 200, 32


def main() -> None:
    """Run every check and say what failed."""
    failed = 0
    with tempfile.TemporaryDirectory(prefix="saetool-check-") as folder:
        for check in CHECKS:
            began, here = time.perf_counter(), Path(folder) / check.__name__
            here.mkdir()
            try:
                said = check(here) or "ok"
            except Exception:
                failed += 1
                said = "FAILED\n" + traceback.format_exc()
            print(f"{check.__name__}: {said} ({time.perf_counter() - began:.1f} s)", flush=True)
    print(f"{failed} failed")
    sys.exit(failed > 0)


def job_over(folder: Path) -> CachingJob:
    """Return the job of caching a small ViT with random weights over made pictures."""
    settings = BackboneSettings(name="timm/vit_tiny_patch16_224", layers=[3, 2], pretrained=False)
    backbone = load_backbone(settings, device=distributed.default_device())
    source = open_source(pictures("256x256", IMAGES, folder))
    store = CacheSettings(batch_size=BATCH, shard_mb=8)
    return CachingJob(lambda: backbone, lambda b: b.sites, source, store, "fail")


@contextmanager
def refusing_to_wait() -> Iterator[None]:
    """Let everything raise that makes this thread wait for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def launching_waits_for_nothing(folder: Path) -> str | None:
    """A slice is uploaded, run, rounded and measured, and comes back, without a wait."""
    if not GPU:
        return "left out: no GPU"
    job = job_over(folder)
    backbone = job.backbone()
    plan = job.plan(backbone)
    slices = list(job.decoder(backbone, plan).slices(range(4)))
    forward = Forward(backbone, job.stored(backbone), plan.dtype)
    forward.launch(slices[0])()
    with refusing_to_wait():
        finishing = [forward.launch(decoded) for decoded in slices]
    assert all(moments.finite for finish in finishing for _, moments in finish())
    return None


def rows_are_those_of_a_plain_pass(folder: Path) -> None:
    """What is stored is, bit for bit, what one pass after the other computes; moments agree."""
    job = job_over(folder)
    backbone = job.backbone()
    plan = job.plan(backbone)
    store = ActivationStore(cache(backbone, job.source, None, folder / "store", job.settings))
    for number, decoded in enumerate(job.decoder(backbone, plan).slices(range(plan.n_slices))):
        prepared = torch.stack([backbone.transform(job.source.read(i).image) for i in plan.images_of(number)])
        missing = torch.zeros(BATCH - len(prepared), *prepared.shape[1:])
        assert torch.equal(backbone.inputs(decoded.pixels)[decoded.kept].cpu(), prepared), "pixels"
        outputs = backbone.forward_to(torch.cat([prepared, missing]), backbone.sites)
        images = plan.images_of(number)
        for site, output in zip(store.sites, outputs, strict=True):
            wanted = output[: len(prepared)].to(plan.dtype).cpu()
            assert torch.equal(site.rows(images.start, images.stop), wanted), f"slice {number} at {site.info['folder']}"
    for site in store.sites:
        exact = SiteMoments.of(site.rows(0, IMAGES).flatten(0, 1)).statistics
        assert torch.allclose(site.statistics().mean, exact.mean, rtol=1e-9, atol=1e-12)
        assert torch.allclose(site.statistics().variance, exact.variance, rtol=1e-9)


def what_the_gpu_decodes_is_near_pillow_s(folder: Path) -> str:
    """Pixels by `images.decode: gpu` lie a few steps of a byte from Pillow's on average, and are always the same."""
    if not GPU:
        return "left out: no GPU"
    settings = BackboneSettings(name="timm/vit_tiny_patch16_224", layers=[2], pretrained=False)
    said, backbone = [], load_backbone(settings, device=distributed.default_device())
    for size in ("256x256", "500x375"):
        here = folder / size
        here.mkdir()
        images, store = ImageSettings(source=pictures(size, 64, here), decode="gpu"), CacheSettings(batch_size=BATCH)
        try:
            made = [cache(backbone, images, None, here / name, store) for name in ("store", "again")]
        except RequestError as error:
            return f"left out: {error}"
        assert made[0].id == made[1].id
        found = made[0].content["decoded"]["difference"]
        assert found["mean"] < 3, found
        job = CachingJob(lambda: backbone, lambda b: b.sites, open_source(images), store, "fail", decode="gpu")
        decoder, began = job.decoder(backbone, job.plan(backbone)), time.perf_counter()
        pixels = [decoded.pixels for decoded in decoder.slices([0, 1] * 16)]
        torch.cuda.synchronize()
        rate = len(pixels) * BATCH / (time.perf_counter() - began)
        said.append(f"{size}: {found['mean']:.3f}, at most {found['largest']} ({rate:,.0f} images/s by themselves)")
    return "ok, of 255 they differ by " + "; ".join(said)


def ids_do_not_depend(folder: Path) -> None:
    """Processes or threads, how many, once more, resized by Pillow or by compiled code: the same store."""
    job, ids = job_over(folder), []
    for processes, many in ((0, 1), (1, 1), (5, 1), (5, IMAGES + 1)):
        with (
            patch("saetool.activations.caching.decoding_processes", lambda source, n=processes: n),
            patch("saetool.activations.decoding._MANY_IMAGES", many),
        ):
            made = cache(job.backbone(), job.source, None, folder / f"{len(ids)}", job.settings)
        ids.append(made.id)
    assert len(set(ids)) == 1, ids


def indexes_agree(folder: Path) -> str:
    """Chunks of any size, staged or one after the other: the same index; the CPU's but for rounding."""
    store, model = make(folder, 96, 196, 64, 1024, classes=5)
    small = {"GPU_CELLS": 1 << 19, "CHUNK_ROWS": 400}
    ways = [("again", encoding, {}), ("small chunks", encoding, small)]
    ways += [(f"staged: {staged}", encoding.Pass, {"staged": staged}) for staged in (True, False)]
    wanted = index(model, store, folder / "index").files
    for number, (way, owner, changes) in enumerate(ways):
        with patch.multiple(owner, **changes) if changes else nullcontext():
            made = index(model, store, folder / f"index-{number}").files
        differing = [name for name, entry in made.items() if entry["digest"] != wanted[name]["digest"]]
        assert not differing, f"{way}: {differing}"
    with patch("saetool.distributed.default_device", lambda: torch.device("cpu")):
        index(model, store, folder / "cpu")
    ours, theirs = (examples(folder / name) for name in ("index", "cpu"))
    shared = len(ours & theirs) / len(ours | theirs)
    assert shared > 0.999, shared
    return f"ok, {shared:.5f} of the top examples are the CPU's"


def statistics_are_the_cpu_s(folder: Path) -> str | None:
    """Ranks, sums and label statistics of a block of latents are, bit for bit, those of the same records on the CPU."""
    if not GPU:
        return "left out: no GPU"
    rng, images, latents = np.random.default_rng(0), 4000, 300
    image, latent = np.nonzero(rng.random((images, latents)) < rng.random(latents))
    records = np.zeros(len(image), RECORD)
    records["image"], records["latent"], records["tokens"] = image, latent, rng.integers(1, 100, len(image))
    records["value"] = rng.integers(1, 400, len(image)) / 7  # with ties
    records["mass"] = records["value"] * rng.random(len(image)) + 1e-3
    labels = [
        LabelColumn.of_categories("kind", [f"{i}" for i in rng.integers(0, 40, images)]),
        LabelColumn.of_numbers("size", rng.integers(0, 300, images).astype(float).tolist()),
    ]
    hashes, held_out = (
        ranking.image_hashes([f"{i}" for i in range(images)], 3),
        torch.from_numpy(image[:images] % 3 == 0),
    )
    settings, found = IndexSettings(), []
    for device in ("cpu", "cuda", "cuda"):
        block = Maxima.of(records, 0, latents, device)
        order = ranking.by_value(block)
        made = [label_statistics(block, order, column) for column in labels]
        chosen = ranking.choose(block, order, hashes.to(device), settings, 3)
        tables = [vars(part) for part in (*made, chosen)]
        found.append(
            {
                **block_numbers(block, held_out.to(device)),
                **{f"{i}.{k}": v for i, t in enumerate(tables) for k, v in t.items()},
            }
        )
    differing = [
        name for name in found[0] for other in found[1:] if not np.array_equal(found[0][name], other[name], True)
    ]
    assert not differing, differing
    return f"ok, {len(found[0])} numbers of {latents} latents are equal"


def examples(features: Path) -> set[tuple[int, int, int]]:
    """Return (latent, rank, image) of the top examples."""
    table = parquet.read_table(features / "examples.parquet", filters=[("group", "=", "top")])
    return set(zip(*(table[name].to_pylist() for name in ("latent", "rank", "image")), strict=True))


CHECKS = (
    launching_waits_for_nothing,
    rows_are_those_of_a_plain_pass,
    ids_do_not_depend,
    what_the_gpu_decodes_is_near_pillow_s,
    statistics_are_the_cpu_s,
    indexes_agree,
)

if __name__ == "__main__":
    main()
