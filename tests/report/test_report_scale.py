"""98,304 latents and 100,000 images: the landing page stays small in memory, and every image is found."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch

from saetool.artifacts import Stage, run_stage
from saetool.report import ReportSettings, report_stage

pytestmark = [pytest.mark.browser, pytest.mark.slow]
LATENTS, IMAGES, TOP, KEPT = 98_304, 100_000, 4, 8
CLASSES = [f"class {k:03d} of a long and winding name" for k in range(100)]


def write_features(partial, facts):
    """What an index of that size holds, drawn at random: no pass over activations is worth its time here."""
    rng = np.random.default_rng(0)
    share = 10 ** rng.uniform(-5, -1, LATENTS)
    images = np.maximum((share * IMAGES).astype(np.int64), 1)
    numbers = rng.random((12, LATENTS))
    names = ["max", "mean_firing", "mean", "spatial_entropy", "encoder_decoder_cosine", "decoder_norm"]
    names += ["neighbor_similarity", "coactivation_similarity", "monosemanticity", "monosemanticity_excess"]
    names += ["monosemanticity_spread", "top_excess"]
    columns = {
        "latent": np.arange(LATENTS, dtype=np.int32),
        "status": ["ok"] * LATENTS,
        "token_count": images * 2,
        "token_frequency": share / 2,
        "image_count": images,
        "image_frequency": images / IMAGES,
        "held_out_token_count": images // 10,
        "silent_on_held_out": images < 10,
        **dict(zip(names, numbers, strict=True)),
        "kind.best_class": [CLASSES[i % 100] for i in range(LATENTS)],
        **{
            f"kind.{name}": rng.random(LATENTS)
            for name in ("auroc", "average_precision", "q_value", "purity", "entropy")
        },
    }
    partial.write_table("latents.parquet", pa.table(columns))
    rows = LATENTS * TOP
    image = rng.integers(0, IMAGES, rows)
    examples = {
        "latent": np.repeat(np.arange(LATENTS, dtype=np.int32), TOP),
        "group": pa.DictionaryArray.from_arrays(np.zeros(rows, np.int8), ["top"]),
        "interval": pa.nulls(rows, pa.int8()),
        "rank": np.tile(np.arange(TOP, dtype=np.int16), LATENTS),
        "image": image.astype(np.int32),
        "patch": rng.integers(0, 4, rows).astype(np.int32),
        "value": np.ones(rows, np.float32),
        "held_out": image % 10 == 0,
        "heat": pa.nulls(rows, pa.binary()),
        "heat_scale": np.ones(rows, np.float32),
    }
    partial.write_table("examples.parquet", pa.table(examples))
    statistics = {"latent": np.arange(LATENTS), "label": ["kind"] * LATENTS, "class": columns["kind.best_class"]}
    statistics |= {"images": [1000] * LATENTS, "firing_images": [10] * LATENTS, "mass_share": rng.random(LATENTS)}
    statistics |= {name: rng.random(LATENTS) for name in ("auroc", "auroc_low", "auroc_high", "average_precision")}
    partial.write_table("label_statistics.parquet", pa.table(statistics))
    partial.write_table("images.parquet", pa.table({"held_out": np.arange(IMAGES) % 10 == 0}))
    patches = {
        "latents": rng.integers(0, LATENTS, (IMAGES, 4, KEPT)).astype(np.int32),
        "values": rng.random((IMAGES, 4, KEPT)).astype(np.float32),
    }
    partial.write_tensors("patches.safetensors", {key: torch.from_numpy(value) for key, value in patches.items()})
    partial.write_tensors("tensors.safetensors", {"histogram_edges": torch.ones(3)})
    extra = {"n_latents": LATENTS, "d_in": 16, "intervals": 0, "counts": {"ok": LATENTS, "dead": 0}}
    return facts | extra | {"site": {"label": "layer 10"}}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    geometry = {"resize": "squash", "resize_to": [32, 32], "crop": [32, 32], "patch": [16, 16], "grid": [2, 2]}
    labels = [{"name": "kind", "kind": "category", "classes": CLASSES}]
    facts = {"images": IMAGES, "tokens": IMAGES * 4, "grid": [2, 2], "geometry": geometry, "labels": labels}
    table = {
        "path": [f"train/{i % 1000:04d}/picture-{i:06d}.jpeg" for i in range(IMAGES)],
        "kind": [CLASSES[i % 100] for i in range(IMAGES)],
        "width": np.full(IMAGES, 32, np.int32),
        "height": np.full(IMAGES, 32, np.int32),
        "digest": [str(i) for i in range(IMAGES)],
    }

    def store(partial):
        partial.write_table("images.parquet", pa.table(table))
        return facts | {"sites": [], "source": {"source": "many"}}

    made = run_stage(Stage("activations", {}, store), folder / "activations")
    model = {"settings": {"kind": "sparse"}, "d_in": 16, "n_latents": LATENTS, "site": {}}
    autoencoder = run_stage(Stage("autoencoder", {}, lambda _: model, (made,)), folder / "autoencoder")
    index = Stage("features", {}, lambda partial: write_features(partial, facts), (made, autoencoder))
    features = run_stage(index, folder / "features")
    settings = ReportSettings(latents=[0], max_images=1000, max_mb=20)  # the table has all; pages would take minutes
    return run_stage(report_stage(features, made, autoencoder, None, NoPictures(), settings), folder / "report")


@dataclasses.dataclass
class NoPictures:
    """A source that is never read: the budget leaves no room for thumbnails."""

    def __len__(self):
        return IMAGES

    def path(self, i):
        return f"train/{i % 1000:04d}/picture-{i:06d}.jpeg"

    def read(self, i):
        from PIL import Image

        from saetool.images import Picture

        return Picture(Image.new("L", (32, 32)), 32, 32, str(i))


def test_the_landing_page_takes_less_than_100_mb(open_site, large):
    reader = open_site(large.path)
    page = reader.open("index.html")
    assert page.locator("#count").inner_text() == "98,304 of 98,304"
    session = page.context.new_cdp_session(page)
    used = session.send("Runtime.getHeapUsage")
    session.send("HeapProfiler.collectGarbage")
    kept = session.send("Runtime.getHeapUsage")
    megabytes = [sum(one.get(key, 0) for key in ("usedSize", "backingStorageSize")) / 1e6 for one in (used, kept)]
    seconds = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd / 1e3")
    print(f"heap {megabytes[0]:.0f} MB, {megabytes[1]:.0f} MB after collection; scripts there after {seconds:.2f} s")
    assert max(megabytes) < 100
    assert page.locator(".body .row").count() < 60
    page.fill("#search", "picture-099999")
    page.wait_for_selector("#answers .thumb")
    assert page.locator("#answers .thumb").first.get_attribute("href") == "image.html#image=99999"


def test_the_last_image_has_a_page_with_its_latents(open_site, large):
    page = open_site(large.path).open("image.html#image=99999")
    assert page.locator("#image-latents li").count() == 12
    page = open_site(large.path).open("images.html")
    assert page.locator("#count").inner_text() == "100,000 of 100,000 images"
    assert page.locator(".thumb").count() == 60
