"""A synthetic run with awkward data: dead latents, nulls, hostile labels, pictures and grids that are not square."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image, ImageDraw

from saetool.artifacts import Artifact, Stage, digest_bytes, run_stage
from saetool.report import ReportSettings, report_stage
from saetool.vision.geometry import Geometry

HOSTILE = [
    "plain",
    '</script><script>document.title="pwned"</script>',
    '"><img src=x onerror="document.title=\'pwned\'">',
    'it\'s "quoted" & <b>bold</b> \\ back\u2028slash',
    "🦊 emoji 👩‍🚀",
    "שלום עולם \u202e reversed",
    "long " + "x" * 4_995,
]
PATHS = [
    "a b.png",
    "50%.png",
    "what?.png",
    "sharp#1.png",
    "ünï/ço de.png",
    "<b>.png",
    "quote'\".png",
    "deep/er/img.png",
]
SIZES = [(90, 60), (60, 90), (80, 80), (120, 50)]
HELD_OUT = 5
"""Every so many images are held out of training."""
STATUSES = ["dead", "rare", "ok", "dense"]


@dataclass(frozen=True)
class Shape:
    """How large a synthetic run is."""

    n_latents: int = 70
    n_images: int = 24
    grid: tuple[int, int] = (4, 6)
    top: int = 6
    intervals: int = 2
    seed: int = 0


@dataclass(frozen=True)
class Picture:
    image: Image.Image
    width: int
    height: int
    digest: str


@dataclass
class Pictures:
    """An image source in memory: every picture shows its own number, on a gradient."""

    n: int
    sizes: list[tuple[int, int]] = field(default_factory=lambda: SIZES)

    def __len__(self) -> int:
        return self.n

    def path(self, i: int) -> str:
        return f"{i:05d} {PATHS[i % len(PATHS)]}"

    def size(self, i: int) -> tuple[int, int]:
        return self.sizes[i % len(self.sizes)]

    def read(self, i: int) -> Picture:
        width, height = self.size(i)
        ramp = np.linspace(40, 200, width, dtype=np.uint8)[None, :].repeat(height, 0)
        image = Image.fromarray(np.stack([ramp, ramp[:, ::-1], np.full_like(ramp, (i * 37) % 255)], -1))
        draw = ImageDraw.Draw(image)
        draw.ellipse((width * 0.3, height * 0.3, width * 0.6, height * 0.7), fill=((i * 91) % 255, 180, 60))
        draw.text((3, 3), str(i), fill="white")
        return Picture(image, width, height, digest_bytes(image.tobytes()))


@dataclass(frozen=True)
class Run:
    """The artifacts of one synthetic run and the dense activations [images, patches, latents] behind them."""

    store: Artifact
    autoencoder: Artifact
    features: Artifact
    pictures: Pictures
    shape: Shape
    z: np.ndarray

    def stage(self, command: str | None = "saetool run synthetic", **settings) -> Stage:
        """Return the report's stage under some settings."""
        chosen = ReportSettings(**settings)
        return report_stage(self.features, self.store, self.autoencoder, None, self.pictures, chosen, command)


def build_run(folder: Path, shape: Shape = Shape(), z: np.ndarray | None = None) -> Run:
    """Make a store, an autoencoder and a features artifact below `folder` as the other stages would."""
    pictures = Pictures(shape.n_images)
    z = activations(shape) if z is None else z
    images = images_table(shape, pictures)
    rows, columns = shape.grid
    geometry = Geometry("shortest", (32, 32), (32, 48), (8, 8), (rows, columns)).describe()
    labels = [
        {"name": "kind.of <thing>", "kind": "category", "classes": HOSTILE},
        {"name": "__proto__", "kind": "number", "classes": None},
    ]
    site = {"folder": "layer-10", "layer": 10, "module": "blocks.9", "d": 16, "digest": "xxh3-128:00"}
    facts = {"images": shape.n_images, "tokens": shape.n_images * rows * columns, "grid": list(shape.grid)}
    facts |= {"geometry": geometry, "labels": labels}

    def store(partial):
        partial.write_table("images.parquet", images)
        return facts | {
            "sites": [site],
            "source": {"source": "elpv"},
            "attribution": "By <Somebody> & others, CC BY-NC-SA 4.0",
        }

    def autoencoder(partial):
        for step in range(0, 1000, 10):
            loss = {"reconstruction": 50 * math.exp(-step / 200) + 5, "sparsity": 3.0}
            partial.append_log(
                "metrics.jsonl", {"step": step, "tokens": step * 64, "parts": loss, "l0": 40 - step / 50}
            )
            if step % 100 == 0:
                held_out = {"fvu": 0.1 + math.exp(-step / 300), "l0": 41 - step / 50, "dead_share": 0.01}
                partial.append_log("metrics.jsonl", {"step": step, "tokens": step * 64, "held_out": held_out})
        settings = {"kind": "sparse", "activation": {"kind": "relu"}, "penalty": {"kind": "l1"}, "expansion": 32}
        return {
            "settings": settings,
            "d_in": 16,
            "n_latents": shape.n_latents,
            "site": site,
            "final": {"fvu": 0.13, "l0": 24.5},
        }

    made = run_stage(Stage("activations", {"backbone": {"name": "demo/vits14"}}, store), folder / "activations")
    model = run_stage(Stage("autoencoder", {"seed": 0}, autoencoder, (made,)), folder / "autoencoder")
    index = Stage("features", {"top": shape.top}, lambda p: write_features(p, shape, z, facts, site), (made, model))
    return Run(made, model, run_stage(index, folder / "features"), pictures, shape, z)


def activations(shape: Shape) -> np.ndarray:
    """Return sparse activations [images, patches, latents]: a blob a (image, latent); every seventh latent is dead."""
    rng = np.random.default_rng(shape.seed)
    rows, columns = shape.grid
    z = np.zeros((shape.n_images, rows * columns, shape.n_latents), np.float32)
    for latent in range(shape.n_latents):
        if latent % 7 == 3:
            continue
        for image in rng.choice(shape.n_images, rng.integers(1, max(2, shape.n_images // 2)), replace=False):
            patches = rng.choice(rows * columns, rng.integers(1, max(2, rows * columns // 4)), replace=False)
            z[image, patches, latent] = rng.gamma(2.0, 2.0, len(patches))
    return z


def images_table(shape: Shape, pictures: Pictures) -> pa.Table:
    sizes = [pictures.size(i) for i in range(shape.n_images)]
    return pa.table(
        {
            "id": pa.array(range(shape.n_images), pa.int32()),
            "path": [pictures.path(i) for i in range(shape.n_images)],
            "kind.of <thing>": [HOSTILE[i % len(HOSTILE)] for i in range(shape.n_images)],
            "__proto__": pa.array(
                [None if i % 5 == 0 else i / shape.n_images for i in range(shape.n_images)], pa.float64()
            ),
            "width": pa.array([width for width, _ in sizes], pa.int32()),
            "height": pa.array([height for _, height in sizes], pa.int32()),
            "digest": [pictures.read(i).digest for i in range(shape.n_images)],
        }
    )


def latents_table(z: np.ndarray) -> pa.Table:
    images, patches, n = z.shape
    rng = np.random.default_rng(1)
    firing = (z > 0).sum((0, 1))
    dead = firing == 0

    def null(values: np.ndarray) -> pa.Array:
        return pa.array(np.asarray(values, np.float64), mask=dead)

    mean = z.sum((0, 1), dtype=np.float64) / (images * patches)
    share = firing / (images * patches)
    status = np.where(dead, 0, np.where(firing < 4, 1, np.where(share > 0.09, 3, 2)))
    label = "kind.of <thing>"
    count = pa.array((z > 0).any(1).sum(0), pa.int64())
    return pa.table(
        {
            "latent": pa.array(range(n), pa.int32()),
            "status": [STATUSES[i] for i in status],
            "token_count": pa.array(firing, pa.int64()),
            "token_frequency": share,
            "image_count": count,
            "image_frequency": (z > 0).any(1).sum(0) / images,
            "held_out_token_count": pa.array(firing // 10, pa.int64()),
            "silent_on_held_out": pa.array(firing < 10),
            "max": pa.array(z.max((0, 1)), pa.float32()),
            "mean_firing": null(mean * images * patches / np.maximum(firing, 1)),
            "mean": mean,
            "spatial_entropy": null(rng.random(n)),
            "encoder_decoder_cosine": pa.array(rng.random(n), pa.float32()),
            "decoder_norm": pa.array(np.ones(n), pa.float32()),
            "neighbor_similarity": pa.array(rng.random(n), pa.float32()),
            "coactivation_similarity": pa.array(rng.random(n), pa.float32()),
            "monosemanticity": null(rng.random(n) ** 2),
            "monosemanticity_excess": null(rng.normal(0.05, 0.1, n)),
            "monosemanticity_spread": null(rng.random(n) / 20),
            "top_excess": null(rng.normal(0.05, 0.1, n)),
            f"{label}.best_class": pa.array([HOSTILE[i % len(HOSTILE)] for i in range(n)], pa.string(), mask=dead),
            f"{label}.auroc": null(0.5 + rng.random(n) / 2),
            f"{label}.average_precision": null(rng.random(n)),
            f"{label}.p_value": null(rng.random(n) ** 8),
            f"{label}.q_value": null(rng.random(n) ** 4),
            f"{label}.purity": null(rng.random(n)),
            f"{label}.entropy": null(rng.random(n)),
            "__proto__.best_class": pa.nulls(n, pa.string()),
            "__proto__.auroc": null(rng.random(n)),
        }
    )


def examples_table(z: np.ndarray, shape: Shape) -> pa.Table:
    peak, rows = z.max(1), []
    for latent in range(z.shape[2]):
        order = [int(i) for i in np.argsort(-peak[:, latent], kind="stable") if peak[i, latent] > 0]
        scale = float(peak[:, latent].max())
        groups = [("top", None, image, rank) for rank, image in enumerate(order[: shape.top])]
        for interval in range(shape.intervals):
            low, high = scale * interval / shape.intervals, scale * (interval + 1) / shape.intervals
            members = [i for i in order if low < peak[i, latent] <= high][:3]
            groups += [("interval", interval, image, rank) for rank, image in enumerate(members)]
        groups += [("random", None, image, rank) for rank, image in enumerate(sorted(order)[:4])]
        unseen = [image for image in order if image % HELD_OUT == 0]
        groups += [("held_out", None, image, rank) for rank, image in enumerate(unseen[:8])]
        for group, interval, image, rank in groups:
            heat = np.ceil(z[image, :, latent] / scale * 255).astype(np.uint8)
            patch = int(z[image, :, latent].argmax())
            value = float(z[image, patch, latent])
            rows.append(
                (latent, group, interval, rank, image, patch, value, image % HELD_OUT == 0, heat.tobytes(), scale)
            )
    names = ["latent", "group", "interval", "rank", "image", "patch", "value", "held_out", "heat", "heat_scale"]
    kinds = [pa.int32(), pa.string(), pa.int8(), pa.int16(), pa.int32(), pa.int32(), pa.float32(), pa.bool_()]
    kinds += [pa.binary(), pa.float32()]
    data = zip(*rows, strict=True)
    return pa.table({name: pa.array(values, kind) for name, values, kind in zip(names, data, kinds, strict=True)})


def label_table(z: np.ndarray) -> pa.Table:
    rng = np.random.default_rng(2)
    rows = []
    for latent in np.flatnonzero(z.any((0, 1))):
        for name in HOSTILE:
            middle = float(rng.random())
            low, high = max(0.0, middle - 0.1), min(1.0, middle + 0.1)
            rows.append((int(latent), "kind.of <thing>", name, 4, 2, middle, low, high, float(rng.random()), 1 / 7))
    names = ["latent", "label", "class", "images", "firing_images", "auroc", "auroc_low", "auroc_high"]
    names += ["average_precision", "mass_share"]
    return pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


def write_features(partial, shape: Shape, z: np.ndarray, facts: dict, site: dict) -> dict:
    """Write the files of a features artifact computed from dense activations."""
    n = shape.n_latents
    latents = latents_table(z)
    partial.write_table("latents.parquet", latents)
    partial.write_table("examples.parquet", examples_table(z, shape))
    partial.write_table("label_statistics.parquet", label_table(z))
    held_out = [image % HELD_OUT == 0 for image in range(shape.n_images)]
    partial.write_table("images.parquet", pa.table({"image": range(shape.n_images), "held_out": held_out}))
    edges = np.geomspace(0.01, 100, 33).astype(np.float32)
    live = np.flatnonzero(z.any((0, 1)))
    neighbors = np.full((n, 10), -1, np.int32)
    neighbors[live, : min(10, len(live))] = live[:10]
    order = np.argsort(-z, axis=2, kind="stable")[..., :8]
    values = np.take_along_axis(z, order, 2)
    tensors = {
        "histogram": np.stack([np.histogram(z[..., i][z[..., i] > 0], edges)[0] for i in range(n)]).astype(np.int64),
        "histogram_edges": edges,
        "spatial_profile": z.mean(0).T.copy(),
        "neighbors_decoder": neighbors,
        "neighbors_decoder_value": np.linspace(0.9, 0.1, 10, dtype=np.float32)[None].repeat(n, 0),
        "neighbors_coactivation": neighbors[:, ::-1].copy(),
        "neighbors_coactivation_value": np.linspace(0.5, 0.1, 10, dtype=np.float32)[None].repeat(n, 0),
    }
    tensors |= {
        "sample_images": np.arange(shape.n_images, dtype=np.int32),
        "fires": np.packbits((z > 0).any(1).T, axis=1, bitorder="little"),
        "decoder_directions": np.random.default_rng(3).integers(-127, 128, (n, 16)).astype(np.int8),
    }
    partial.write_tensors("tensors.safetensors", {k: torch.from_numpy(v) for k, v in tensors.items()})
    patches = {"latents": np.where(values > 0, order, -1).astype(np.int32), "values": values}
    partial.write_tensors("patches.safetensors", {k: torch.from_numpy(v) for k, v in patches.items()})
    status = latents["status"].to_pylist()
    counts = {name: status.count(name) for name in STATUSES}
    extra = {"n_latents": n, "d_in": 16, "site": site, "top": shape.top, "intervals": shape.intervals, "counts": counts}
    return facts | extra | {"sparse_threshold": 0.0}


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Run:
    """A small run with every awkwardness."""
    return build_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def site(run) -> Artifact:
    """Its report."""
    return run_stage(run.stage(), run.features.path.parent / "report")


@pytest.fixture(scope="session")
def make_run():
    """Makes other runs: make_run(folder, n_latents=…, …)."""
    return lambda folder, **shape: build_run(folder, Shape(**shape))


class Reader:
    """A page that may not use the network; everything it complains about is kept."""

    def __init__(self, context, site: Path):
        self.site, self.complaints, self.requests = site, [], []
        self.page = context.new_page()
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}"))

    def open(self, name: str):
        """Go to a page of the site and return it when it has drawn itself."""
        before = self.page.url.partition("#")[0]
        self.page.goto(f"file://{self.site}/{name}")
        if self.page.url.partition("#")[0] == before:
            self.page.reload()  # else the sign of the page as it was would be taken for that of this one
        self.page.wait_for_selector("body[data-ready]")
        return self.page


@pytest.fixture
def open_site(browser):
    """Opens sites: open_site(path) is a Reader; at the end none may have complained or asked for anything elsewhere."""
    opened: list[Reader] = []

    def open_site(path: Path) -> Reader:
        context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
        opened.append(Reader(context, path))
        return opened[-1]

    yield open_site
    for reader in opened:
        reader.page.context.close()
        assert reader.complaints == []
        assert all(url.startswith((f"file://{reader.site}/", "data:")) for url in reader.requests)


@pytest.fixture
def reader(open_site, site):
    """The synthetic run's report, open."""
    return open_site(site.path)
