"""A store of tensors: any folder name and any finite value, or one sentence that names what cannot be stored."""

import os

import pytest
import torch
from safetensors.torch import load

from saetool.activations import ActivationStore, write_store
from saetool.artifacts import verify
from saetool.errors import RequestError

FILES = ["images.parquet", "manifest.json"]
ROWS = torch.randn(12, 4, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["work", "journal", "checkpoint", "x.tmp", "logs", "new", "x.partial", "ä b", "a:b"])
def test_a_site_may_be_called_like_anything_of_ours(tmp_path, name):
    store = write_store(tmp_path / "s", {name: ROWS})
    assert torch.equal(store.site(name).rows(0, 12), ROWS)
    assert sorted(os.listdir(tmp_path / "s")) == sorted(["images.parquet", "manifest.json", name])
    assert verify(tmp_path / "s") == []


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".scratch", "a/b", "/tmp/outside", "a\\b", "nul\0", "\x1b[2J", "\ud800", "a" * 201, 3, *FILES],
)
def test_a_name_that_no_folder_can_have_is_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(RequestError, match="cannot name a site's folder"):
        write_store(tmp_path / "s", {name: ROWS})
    assert os.listdir(tmp_path) == []


def labeled(kind, values, **more):
    images = [{"x": value} for value in values]
    return {"images": images, "labels": [{"name": "x", "kind": kind, **more}]}


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        (ROWS[:, :0], {}, r"rows: shape \[12, 0, 6\] has no tokens"),
        (ROWS[:, :, :0], {}, r"rows: shape \[12, 4, 0\] has no tokens or no width"),
        ({}, {}, "not nothing"),
        (ROWS.to(torch.complex64), {}, "takes tensors or numpy arrays .*, not torch.complex64"),
        (ROWS, {"grid": (3, 3)}, "A grid of 3 × 3 has other than 4 tokens"),
        (ROWS, labeled("category", "ababababababx", classes=["a", "b"]), "13 images are described, 12 are given"),
        (
            ROWS,
            labeled("category", "abababababax", classes=["a", "b"]),
            "Image 11: x is 'x', which is none of",
        ),
        (ROWS, labeled("category", [0, 1] * 6, classes=["0", "1"]), "Image 0: x is a column of classes"),
        (ROWS, labeled("category", "abababababab"), "Label 'x': give its classes"),
        (ROWS, labeled("category", [0, 1] * 6, classes=[0, 1]), "Label 'x': give its classes"),
        (ROWS, labeled("kind", "abababababab"), "A label is"),
        (ROWS, labeled("number", "abababababab"), "Image 0: x is a column of numbers"),
        (ROWS, {"images": [{"path": "\ud800"}] * 12}, "Image 0: .* is no text"),
    ],
)
def test_what_cannot_be_stored_is_refused_in_a_sentence(tmp_path, rows, more, message):
    with pytest.raises(RequestError, match=message):
        write_store(tmp_path / "s", rows, **more)
    assert not (tmp_path / "s").exists()


def test_a_label_that_is_not_a_number_is_missing(tmp_path):
    store = write_store(tmp_path / "s", ROWS, **labeled("number", [float("nan"), 2.0] * 6))
    assert store.images["x"].to_pylist() == [None, 2.0] * 6


@pytest.mark.parametrize("value", [1e16, -1e17])
def test_a_large_finite_value_is_stored_with_its_moments(tmp_path, value):
    rows = ROWS.clone()
    rows[3, 1, 2] = value
    store = ActivationStore.open(write_store(tmp_path / "s", rows).artifact.path)
    found = load(store.artifact.read_bytes("rows/stats.safetensors"))
    norms = torch.linalg.vector_norm(rows.double(), dim=2)
    torch.testing.assert_close(found["mean_norm"], norms.mean(), rtol=1e-6, atol=0)
    assert float(found["max_abs"]) == abs(float(torch.tensor(value)))
    assert bool(found["variance"].isfinite().all())
