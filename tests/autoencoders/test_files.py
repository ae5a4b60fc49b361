"""What an autoencoder's file holds, by which names, and what is said of one that an older saetool wrote."""

import json

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import saetool
from saetool.artifacts.manifest import MANIFEST, id_of, render, seal_of
from saetool.cli import app
from saetool.errors import RequestError

ROWS = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
GIVEN = {"n_latents": 12, "tokens": 256, "batch_size": 64}


@pytest.mark.parametrize("kind", ["sparse", "linear"])
def test_the_four_tensors_have_the_fields_names_and_shapes_and_say_the_whole_map(kind, tmp_path):
    made = saetool.train(ROWS, kind=kind, normalize="none", **GIVEN, out=tmp_path / "model")
    tensors = load_file(made.file("model.safetensors"))
    shapes = {"W_enc": (12, 6), "b_enc": (12,), "W_dec": (12, 6), "b_dec": (6,)}
    assert {name: tuple(tensors[name].shape) for name in shapes} == shapes
    seen = ROWS - tensors["b_dec"] if kind == "sparse" else ROWS
    a = seen @ tensors["W_enc"].T + tensors["b_enc"]
    z = a.relu() if kind == "sparse" else a
    torch.testing.assert_close(saetool.load(made).encode(ROWS), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(saetool.load(made)(ROWS), z @ tensors["W_dec"] + tensors["b_dec"], atol=1e-5, rtol=1e-5)


def test_one_of_schema_1_is_refused_with_what_to_do_and_made_again_by_force(tmp_path):
    place = tmp_path / "model"
    saetool.train(ROWS, kind="sparse", **GIVEN, out=place)
    manifest = json.loads((place / MANIFEST).read_bytes())
    assert manifest["schema"] == 2
    manifest["schema"] = 1
    manifest["id"] = id_of(manifest)
    (place / MANIFEST).write_bytes(render(manifest | {"seal": seal_of(manifest)}))
    said = r"written in schema 1; this saetool reads schema 2\. .* or train it again \(--force\)\.$"
    for ask in (
        lambda: saetool.load(place),
        lambda: saetool.index(place, tmp_path / "activations", tmp_path / "features"),
        lambda: saetool.train(ROWS, kind="sparse", **GIVEN, out=place),
    ):
        with pytest.raises(RequestError, match=said):
            ask()
    looked_at = CliRunner().invoke(app, ["verify", str(place)])
    assert looked_at.exit_code == 1
    assert "schema 1" in looked_at.output
    assert "DAMAGED" not in looked_at.output
    again = saetool.train(ROWS, kind="sparse", **GIVEN, out=place, force=True)
    assert saetool.load(again).n_latents == 12
