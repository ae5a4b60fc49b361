"""Anybody's pictures and rows go through the whole pipeline, up to a page that shows them."""

import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, IterableDataset

import saetool
from saetool.activations import ActivationStore, CacheSettings, write_store
from saetool.activations.thumbnails import StoredThumbnails
from saetool.artifacts import Artifact, run_stage, verify
from saetool.autoencoders.sparse_settings import SparseSettings
from saetool.errors import RequestError, WorkError
from saetool.evaluation import EvaluationSettings, evaluation_stage
from saetool.features import Features
from saetool.images import ImageSettings, open_cached, registry
from saetool.images.picture import thumbnail_of
from saetool.report import ReportSettings, check, report_stage
from saetool.training import TrainingSettings
from saetool.vision import BackboneSettings

SMALL = CacheSettings(batch_size=8, dtype="float32")


COLORS = np.array([(160, 0, 0), (0, 160, 0), (0, 0, 160), (0, 0, 0)], np.uint8)


def picture(i, side=16):
    """Noise in one of four colors, which is its class."""
    return np.random.default_rng(i).integers(0, 90, (side, side, 3), dtype=np.uint8) + COLORS[i % 4]


PICTURES = [picture(i) for i in range(40)]


class Convolutions(nn.Module):
    """Somebody's network: two convolutions and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 12, 4, 4)
        self.stage = nn.Sequential(nn.Conv2d(12, 16, 1), nn.GELU())
        self.head = nn.Linear(16, 3)

    def forward(self, images):
        return self.head(self.stage(self.stem(images)).mean((2, 3)))


class Maps(Dataset):
    def __len__(self):
        return len(PICTURES)

    def __getitem__(self, i):
        return torch.from_numpy(PICTURES[i]).permute(2, 0, 1).float() / 255, i % 4


class Streams(IterableDataset):
    def __iter__(self):
        return ({"image": pixels, "color": f"color {i % 4}"} for i, pixels in enumerate(PICTURES))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for i, pixels in enumerate(PICTURES):
        Image.fromarray(pixels).save(root / f"{i:02d}.png")
    rows = "".join(f"{i:02d}.png,{i % 4},{i / 7},{'left' if i % 2 else ''}\n" for i in range(40))
    (root.parent / f"{root.name}.csv").write_text("file,color,weight,side\n" + rows)
    return root


def through(store, out, source=None):
    """Train, index, evaluate and report on a store; return the index and the page's folder."""
    settings = SparseSettings(kind="sparse", n_latents=32, activation={"kind": "topk", "k": 4})
    model = saetool.train(store, settings, TrainingSettings(tokens=4000, batch_size=64, held_out=0.2), out / "model")
    index = saetool.index(model, store, out / "features")
    cheap = EvaluationSettings(bootstrap=20, clusters=4)
    evaluation = run_stage(evaluation_stage(model, store, cheap, features=index), out / "evaluation")
    if source is None and not StoredThumbnails.are_in(store):
        source = open_cached(store)
    page = run_stage(report_stage(index, store, model, evaluation, source, ReportSettings()), out / "report")
    assert check(out / "report") == []
    assert all(verify(artifact.path) == [] for artifact in (store, model, index, evaluation, page))
    return Features(index), Path(page.path)


def thumbnails_of(page):
    return list((page / "thumbs").rglob("*.webp"))


def tar_of(path):
    """The pictures as a webdataset tar: a PNG and a JSON a sample."""
    with tarfile.open(path, "w") as tar:
        for i, pixels in enumerate(PICTURES):
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, "PNG")
            for ending, content in (("png", png.getvalue()), ("json", json.dumps({"color": f"c{i % 4}"}).encode())):
                entry = tarfile.TarInfo(f"{i:04d}.{ending}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return path


def rows_of_a_hub():
    """The pictures as a Hugging Face Dataset in memory."""
    columns = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abcd"))}
    rows = {"image": [Image.fromarray(pixels) for pixels in PICTURES], "label": [i % 4 for i in range(len(PICTURES))]}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(columns))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "kind",
    [
        "torch map",
        "folder with a table",
        *(
            pytest.param(kind, marks=SLOW)
            for kind in ("torch iterable", "array", "list of paths", "tar", "rows of a hub")
        ),
    ],
)
def test_whatever_holds_pictures_goes_up_to_the_page(kind, folder, tmp_path):
    table = str(folder.parent / f"{folder.name}.csv")
    images, label = {
        "torch map": (Maps(), "label"),
        "torch iterable": (saetool.open_source(Streams(), first=40), "color"),
        "array": (np.stack(PICTURES), None),
        "list of paths": (sorted(folder.glob("*.png")), None),
        "tar": (tar_of(tmp_path / "set.tar"), "color"),
        "rows of a hub": (rows_of_a_hub(), "label"),
        "folder with a table": (ImageSettings(source=str(folder), labels=table), "color"),
    }[kind]
    backbone = saetool.wrap(Convolutions(), ["stage"], image_size=16)
    store = saetool.cache(backbone, images, None, tmp_path / "store", SMALL)
    assert store.content["grid"] == [4, 4]
    features, page = through(store, tmp_path)
    assert len(thumbnails_of(page)) == 40
    assert (page / "thumbs/0/5.webp").read_bytes() == thumbnail_of(Image.fromarray(PICTURES[5]))
    if label:
        best = features.latents[f"{label}.auroc"].to_numpy(zero_copy_only=False)
        assert np.nanmax(best) > 0.9  # some latent tells a color
    if kind == "folder with a table":
        assert features.images["weight"].to_pylist()[14] == 2.0
        assert features.images["side"].to_pylist()[:2] == [None, "left"]


def test_a_config_names_what_was_registered(tmp_path, monkeypatch):
    from saetool.config import build_config
    from saetool.pipeline import Run

    monkeypatch.setattr(registry, "_made", {})
    for name in ("known", "places"):
        monkeypatch.setattr(registry.SOURCES, name, {})
    saetool.register_source("mine", Maps)
    values = {
        "run": str(tmp_path / "run"),
        "images": {"source": "mine", "limit": 24},
        "backbone": {"name": "pixels", "image_size": 8, "layers": [1]},
        "cache": {"batch_size": 8},
        "autoencoder": {"kind": "sparse", "n_latents": 32, "activation": {"kind": "topk", "k": 4}},
        "training": {"tokens": 600, "batch_size": 16, "held_out": 0.25},
        "evaluation": {"bootstrap": 20, "clusters": 4},
    }
    Run(build_config(values, "a test"), "saetool run").make_all()
    assert len(thumbnails_of(tmp_path / "run/report")) == 24
    labels = ActivationStore(Artifact.open(tmp_path / "run/activations")).images["label"].to_pylist()
    assert [labels.count(str(color)) for color in range(4)] != [24, 0, 0, 0]


ROWS = torch.stack(
    [torch.from_numpy(p).float().reshape(4, 4, 4, 4, 3).permute(0, 2, 1, 3, 4).reshape(16, 48) for p in PICTURES]
)


@pytest.mark.parametrize(
    "given",
    [
        "folder",
        "thumbnails",
        *(pytest.param(given, marks=SLOW) for given in ("paths and root", "dictionaries and root", "array")),
    ],
)
def test_rows_made_elsewhere_get_a_page_with_their_pictures(given, folder, tmp_path):
    names = [f"{i:02d}.png" for i in range(40)]
    more = {
        "folder": {"images": folder},
        "paths and root": {"images": names, "root": folder},
        "dictionaries and root": {
            "images": [{"path": name, "color": str(i % 4)} for i, name in enumerate(names)],
            "root": folder,
            "labels": [{"name": "color", "kind": "category", "classes": list("0123")}],
        },
        "thumbnails": {"thumbnails": PICTURES},
        "array": {"images": np.stack(PICTURES)},
    }[given]
    rows = ROWS.numpy() if given in ("folder", "thumbnails") else ROWS
    store = write_store(tmp_path / "store", rows, grid=(4, 4), **more).artifact
    features, page = through(store, tmp_path)
    assert len(thumbnails_of(page)) == 40
    assert (page / "thumbs/0/7.webp").read_bytes() == thumbnail_of(Image.fromarray(PICTURES[7]))
    assert features.images["width"].to_pylist() == [16] * 40
    if given not in ("thumbnails", "array"):
        assert features.images["path"].to_pylist() == names
    if given == "dictionaries and root":
        assert features.content["labels"][0]["name"] == "color"


def test_one_row_an_image_is_one_token(tmp_path):
    store = write_store(tmp_path / "a", np.arange(12.0).reshape(4, 3))
    assert store.site().rows(0, 4).tolist() == np.arange(12.0).reshape(4, 1, 3).tolist()
    assert store.artifact.id == write_store(tmp_path / "b", np.arange(12.0).reshape(4, 1, 3)).artifact.id


def test_pictures_that_do_not_fit_the_rows_are_refused(folder, tmp_path):
    with pytest.raises(RequestError, match="40 images are described, 3 are given"):
        write_store(tmp_path / "a", ROWS[:3], images=folder)
    with pytest.raises(RequestError, match="2 thumbnails are given for 3 images"):
        write_store(tmp_path / "a", ROWS[:3], thumbnails=PICTURES[:2])
    with pytest.raises(RequestError, match="give each image its path below it"):
        write_store(tmp_path / "a", ROWS[:1], images=[{"width": 3}], root=folder)
    for more, message in [
        ({"thumbnails": 7}, "thumbnails are a list of pictures, not int"),
        ({"labels": 7}, "labels are a list of"),
        ({"labels": ["age"]}, "labels are a list of"),
        ({"grid": 7}, r"grid is \(rows, columns\), not 7"),
        ({"grid": "ab"}, r"grid is \(rows, columns\), not 'ab'"),
        ({"settings": {"dtipe": "float16"}}, r"cache\.dtipe: unknown key. Did you mean cache\.dtype"),
        ({"images": 7}, "open_source takes no int"),
    ]:
        with pytest.raises(RequestError, match=message):
            write_store(tmp_path / "a", ROWS[:3], **more)
    with pytest.raises(WorkError, match=r"thumbnail 0 holds no picture but int"):
        write_store(tmp_path / "a", ROWS[:1], thumbnails=[7])


def test_pictures_in_memory_leave_thumbnails_and_say_so_where_they_are_gone(tmp_path):
    backbone = saetool.load_backbone(BackboneSettings(name="pixels", image_size=8, layers=[1]))
    store = saetool.cache(backbone, np.stack(PICTURES), None, tmp_path / "store", SMALL)
    assert StoredThumbnails.are_in(store)
    with pytest.raises(RequestError, match=r"was made from pictures in memory \(ndarray\): give them again"):
        open_cached(store)
