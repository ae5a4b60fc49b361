"""Tables of images × latents and patches × latents: equal to what the dense codes say, whatever the cut."""

import json

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from scipy.sparse import load_npz
from typer.testing import CliRunner

import saetool
from saetool.cli import app
from saetool.errors import RequestError

TOKENS = 4


@pytest.fixture(scope="module")
def made(build_index, tmp_path_factory):
    """Codes [images, tokens, latents] with ties, silent images and a silent latent; and their index."""
    rng = np.random.default_rng(0)
    z = rng.integers(1, 5, (11, TOKENS, 6)) / 3 * (rng.random((11, TOKENS, 6)) < 0.3)
    z[3] = 0
    z[10] = 0
    z[:, :, 2] = 0
    codes = torch.from_numpy(z).float()
    return codes.numpy(), build_index(codes, where=tmp_path_factory.mktemp("made"))


def dense(codes, value):
    return {"max": codes.max(1), "sum": codes.astype(np.float64).sum(1), "count": (codes > 0).sum(1)}[value]


@pytest.mark.parametrize("value", ["max", "sum", "count"])
def test_images_by_latents_are_what_the_dense_codes_say(made, value):
    codes, features = made
    array = saetool.table(features, value=value)
    assert array.shape == (11, 6)
    np.testing.assert_array_equal(array.toarray(), dense(codes, value))
    assert array.nnz == (codes.max(1) > 0).sum()


def test_patches_by_latents_are_the_codes(made):
    codes, features = made
    array = saetool.table(features, rows="patches")
    np.testing.assert_array_equal(array.toarray(), codes.reshape(-1, 6))
    assert array.nnz == (codes > 0).sum()


def test_the_files_hold_the_same(made, tmp_path):
    codes, features = made
    images = parquet.read_table(saetool.table(features, out=tmp_path / "images.parquet"))
    image, latent = np.nonzero(codes.max(1))
    assert images["image"].to_pylist() == image.tolist()
    assert images["latent"].to_pylist() == latent.tolist()
    for value in ("max", "sum", "count"):
        np.testing.assert_array_equal(images[value].to_numpy(), dense(codes, value)[image, latent])
    said = json.loads(images.schema.metadata[b"saetool"])
    assert (said["rows"], said["n_rows"], said["n_latents"]) == ("images", 11, 6)
    patches = parquet.read_table(saetool.table(features, out=tmp_path / "patches.parquet", rows="patches"))
    expected = np.argwhere(codes > 0)
    columns = [patches[name].to_numpy() for name in ("image", "patch", "latent")]
    np.testing.assert_array_equal(np.stack(columns, 1), expected)
    np.testing.assert_array_equal(patches["value"].to_numpy(), codes[codes > 0])
    array = load_npz(saetool.table(features, out=tmp_path / "sums.npz", value="sum"))
    np.testing.assert_array_equal(array.toarray(), dense(codes, "sum"))


def test_the_cut_into_chunks_makes_no_difference(made, tmp_path, monkeypatch):
    _, features = made
    files = []
    for rows in (TOKENS, 5 * TOKENS, 2048):
        monkeypatch.setattr("saetool.features.encoding.CHUNK_ROWS", rows)
        files.append(saetool.table(features, out=tmp_path / f"{rows}.parquet").read_bytes())
    assert files[0] == files[1] == files[2]


def test_an_autoencoder_and_a_store_do_as_well(made):
    codes, features = made
    model, store = features.find_input("autoencoder"), features.find_input("activations")
    np.testing.assert_array_equal(saetool.table(model, store).toarray(), codes.max(1))
    with pytest.raises(RequestError, match="this is an autoencoder alone"):
        saetool.table(model)
    with pytest.raises(RequestError, match="this is activations"):
        saetool.table(store)


def test_one_command_writes_the_file(made, tmp_path):
    codes, features = made
    command = ["table", str(features.path.parent), "--out", str(tmp_path / "a.npz"), "--value", "count"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0
    assert "images × latents:" in done.output
    np.testing.assert_array_equal(load_npz(tmp_path / "a.npz").toarray(), dense(codes, "count"))
    with pytest.raises(RequestError, match="is there already; give --force"):
        saetool.table(features, out=tmp_path / "a.npz")
    saetool.table(features, out=tmp_path / "a.npz", force=True)
    np.testing.assert_array_equal(load_npz(tmp_path / "a.npz").toarray(), dense(codes, "max"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"out": "a.csv"}, r"a\.csv is written as \.parquet or \.npz"),
        ({"out": "none/a.npz"}, "there is no folder none"),
        ({"rows": "latents"}, "rows are images or patches"),
        ({"value": "mean"}, "values max, sum or count"),
    ],
)
def test_wrong_requests_end_before_any_work(made, more, message):
    with pytest.raises(RequestError, match=message):
        saetool.table(made[1], **more)
