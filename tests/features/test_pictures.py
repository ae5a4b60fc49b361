"""From pictures on disk to an index and back to the pictures: skipped files, class tokens, contact sheets."""

import io
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from saetool.activations import ActivationStore, CacheSettings, cache
from saetool.activations.thumbnails import StoredThumbnails
from saetool.errors import RequestError
from saetool.features import Features, index
from saetool.features.sheet import Cell, Strip
from saetool.images import ImageSettings
from saetool.vision import wrap

SCRIPT = Path(__file__).parents[2] / "scripts" / "browse_features.py"


class Tiny(nn.Module):
    """Four patches of an 8 × 8 picture and a class token before them, one block."""

    def __init__(self, d: int = 6):
        super().__init__()
        self.embed = nn.Conv2d(3, d, 4, stride=4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, d))
        self.blocks = nn.ModuleList([nn.Linear(d, d)])

    def forward(self, images):
        x = self.embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        return self.blocks[0](x)[:, 1:].mean(1)


@pytest.fixture
def indexed(tmp_path, identity_autoencoder):
    """Return a function that indexes eight pictures, one of them corrupt and skipped, over some tokens."""

    def make(tokens: str, thumbnails: bool = False) -> Features:
        rng = np.random.default_rng(0)
        for i in range(8):
            (tmp_path / "images" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / "ab"[i % 2] / f"{i}.png")
        (tmp_path / "images" / "a" / "4.png").write_bytes(b"no picture")
        torch.manual_seed(0)
        backbone = wrap(Tiny(), [1], tokens, image_size=8)
        images = ImageSettings(source=str(tmp_path / "images"), on_error="skip")
        settings = CacheSettings(dtype="float32", batch_size=3, thumbnails=thumbnails)
        store = ActivationStore(cache(backbone, images, None, tmp_path / "activations", settings, on_error="skip"))
        autoencoder = identity_autoencoder(tmp_path / "autoencoder", store)
        return Features(index(autoencoder, store.artifact, tmp_path / "features"))

    return make


@pytest.mark.parametrize("tokens", ["patches", "all"])
def test_skipped_pictures_and_class_tokens_keep_every_row_in_its_place(indexed, tokens):
    features = indexed(tokens)
    store = ActivationStore(features.artifact.find_input("activations"))
    z = store.site().rows(0, 7).clamp_min(0).numpy()
    assert z.shape[1] == (4 if tokens == "patches" else 5)
    assert features.content["images"] == 7
    paths = features.images["path"].to_pylist()
    assert paths == ["a/0.png", "a/2.png", "a/6.png", "b/1.png", "b/3.png", "b/5.png", "b/7.png"]
    for j in range(z.shape[2]):
        assert features.latent(j)["token_count"] == (z[:, :, j] > 0).sum()
        best = z[:, :, j].max(1)
        order = sorted(np.flatnonzero(best), key=lambda image: (-best[image], image))
        top = features.top(j)
        assert top.column("path") == [paths[image] for image in order]
        assert top.column("value") == best[order].tolist()
        for row in top:
            if tokens == "patches":
                assert row["patch"] == z[row["image"], :, j].argmax()
                assert features.heat(row).shape == (2, 2)
            else:
                assert (row["patch"], row["heat"]) == (None, None)
    for image, path in enumerate(paths):
        assert features.firing(path).column("value") == sorted(z[image].max(0)[z[image].max(0) > 0], reverse=True)


def browse(monkeypatch, features: Features, *question: object) -> None:
    monkeypatch.setattr(sys, "argv", ["browse_features.py", str(features.artifact.path), *map(str, question)])
    # run_script turns a RequestError into an exit; the test wants the error.
    monkeypatch.setattr("saetool.program.run_script", lambda main: main())
    runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.mark.parametrize("thumbnails", [False, True])
def test_a_strip_shows_where_a_latent_fires_on_its_images(indexed, thumbnails, tmp_path):
    features = indexed("patches", thumbnails=thumbnails)
    strip = features.show(2, count=3)
    top, kept = features.top(2, 3), StoredThumbnails(features.artifact.find_input("activations"))
    assert [caption.partition(":")[0] for caption in strip.captions] == top.column("path")
    for row, drawn in zip(top, strip.images, strict=True):
        file = io.BytesIO(kept.read(row["image"])) if thumbnails else tmp_path / "images" / row["path"]
        before = np.asarray(Image.open(file), np.float32)
        moved = np.abs(np.asarray(drawn, np.float32) - before).max(2)  # by the color of a firing patch
        opacity = np.rint(features.heat(row) / row["heat_scale"] * 0.75 * 255) / 255
        wanted = (np.abs(np.array([255, 80, 0]) - before) * np.kron(opacity, np.ones((4, 4)))[..., None]).max(2)
        assert np.abs(moved - wanted).max() < 1.1
    strip.save(tmp_path / "strip.png")
    assert Image.open(tmp_path / "strip.png").width == 3 * 160
    assert strip._repr_html_().count("data:image/jpeg;base64,") == 3
    assert repr(strip).splitlines()[0] == "latent 2, top"
    with pytest.raises(RequestError, match=r"There is no latent \[1\]"):
        features.show([1])


def test_what_data_says_is_escaped_in_a_notebook():
    cell = Cell(Image.new("RGB", (8, 8)), "<script>x</script>")
    shown = Strip("<b>", [cell], None, "<i>")._repr_html_()
    assert not any(text in shown for text in ("<script>", "<b><", "<i>"))
    assert "&lt;script&gt;x" in shown


def test_moved_pictures_are_found_where_they_are_said_to_be(indexed, tmp_path):
    features = indexed("patches")
    (tmp_path / "images").rename(tmp_path / "moved")
    with pytest.raises(RequestError, match="images"):
        features.show(0)
    assert len(features.show(0, images=tmp_path / "moved").images) > 0


def test_sheets_are_written_and_moved_or_changed_pictures_are_named(indexed, tmp_path, monkeypatch, capsys):
    features = indexed("patches")
    sheet = tmp_path / "sheet.png"
    for question, rows in [
        (["--latent", 0, 2], 2),
        (["--label", "class=a", "--count", 3], 3),
        (["--similar", 1, "--count", 2], 3),
        (["--image", "b/1.png"], 1),
        (["--image", 0], 1),
    ]:
        browse(monkeypatch, features, *question, "--sheet", sheet)
        assert Image.open(sheet).height == rows * (160 + 28)
        sheet.unlink()
    capsys.readouterr()
    browse(monkeypatch, features, "--similar", 1, "--count", 2)
    assert len(capsys.readouterr().out.strip().splitlines()) == 3
    (tmp_path / "images").rename(tmp_path / "moved")
    browse(monkeypatch, features, "--latent", 0, "--sheet", sheet, "--root", tmp_path / "moved")
    assert sheet.exists()
    Image.new("RGB", (8, 8)).save(tmp_path / "moved" / "b" / "1.png")
    (tmp_path / "moved" / "b" / "3.png").unlink()
    for image, words in (("b/1.png", "content differs"), ("b/3.png", "not in the source")):
        with pytest.raises(RequestError, match=words):
            browse(monkeypatch, features, "--image", image, "--sheet", sheet, "--root", tmp_path / "moved")
    with pytest.raises(RequestError, match=r"b/[13]\.png"):
        browse(monkeypatch, features, *["--latent", *range(6)], "--sheet", sheet, "--root", tmp_path / "moved")
