"""What is written for another tool is what that tool opened when the structures were recorded, and computes the same.

That the tools do open it and compute the same is checked by make_data.py, in their own environments.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import saetool
from saetool import cli
from saetool.errors import RequestError
from saetool.exchange import formats
from saetool.exchange.model import from_model, to_model
from saetool.exchange.plain import without_normalization
from saetool.training.heldout import reconstruct

sys.path.insert(0, str(Path(__file__).parent))
from exported import KINDS, random_model, sealed, structure

DATA = Path(__file__).parent / "data"
RECORDED = json.loads((DATA / "exports.json").read_text())
X = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)) * 2
SITE = {
    "backbone": "demo/vits14",
    "layer": 10,
    "module": "blocks.9",
    "tokens": "patches",
    "label": "layer 10 (blocks.9)",
}


def exported(tmp_path, kind, format, site=None):
    model = random_model(kind)
    artifact = sealed(model, tmp_path / "autoencoder", site)
    said = saetool.export_autoencoder(artifact, tmp_path / "out", format)
    return model, said, tmp_path / "out"


def test_both_tools_opened_what_they_can_hold():
    assert set(RECORDED["sae_lens"]) == set(KINDS)
    assert set(RECORDED["sparsify"]) == {"topk", "topk_scale"}


@pytest.mark.parametrize(("format", "kind"), [(f, k) for f in RECORDED for k in RECORDED[f]])
def test_structures_are_those_that_the_tools_opened(tmp_path, format, kind):
    _, _, out = exported(tmp_path, kind, format)
    assert structure(out) == RECORDED[format][kind]


@pytest.mark.parametrize(
    ("format", "kind"),
    [(f, k) for f in RECORDED for k in RECORDED[f]] + [("safetensors", k) for k in KINDS],
)
def test_read_back_it_computes_the_same(tmp_path, format, kind):
    model, said, out = exported(tmp_path, kind, format)
    codes, x_hat = reconstruct(model, X)
    again = formats.read(out).model
    codes_again, x_hat_again = reconstruct(again, X)
    assert torch.equal(codes_again.dense() > 0, codes.dense() > 0)
    assert codes.values.numel() > 0
    for found, wanted in ((codes_again.values, codes.values), (x_hat_again.detach(), x_hat.detach())):
        assert float((found - wanted).abs().max()) <= 2e-6 * float(wanted.abs().max())
    folded = "scale" in str(KINDS[kind].get("normalize")) and format != "safetensors"
    assert ("folded" in said.get("normalization", "")) == folded


TOOLS = [place for tool in ("sae_lens", "sparsify") for place in sorted((DATA / tool).iterdir())]


@pytest.mark.parametrize("place", TOOLS, ids=lambda place: place.name)
def test_a_tools_file_imported_and_exported_again_is_still_what_the_tool_computes(tmp_path, place):
    wanted = load_file(place / "expected.safetensors")
    model = formats.read(place).model
    saetool.export_autoencoder(sealed(model, tmp_path / "autoencoder"), tmp_path / "out", place.parent.name)
    codes, x_hat = reconstruct(formats.read(tmp_path / "out").model, wanted["x"])
    assert torch.equal(codes.dense() > 0, wanted["codes"] > 0)
    for found, tools in ((codes.dense(), wanted["codes"]), (x_hat.detach(), wanted["x_hat"])):
        assert float((found - tools).abs().max()) <= 1e-6 * float(tools.abs().max())


def test_folding_a_power_of_two_changes_no_bit():
    plain = replace(from_model(random_model("topk_scale"), "model"), factor=2.0)
    codes = to_model(plain).encode_sparse(X)
    folded = to_model(without_normalization(plain)).encode_sparse(X)
    assert torch.equal(codes.latents, folded.latents)
    assert torch.equal(without_normalization(plain).W_enc, plain.W_enc * 2)


def test_facts_of_the_training_go_into_the_metadata(tmp_path):
    _, _, out = exported(tmp_path, "topk", "sae_lens", SITE)
    metadata = json.loads((out / "cfg.json").read_text())["metadata"]
    assert (metadata["model_name"], metadata["hook_name"]) == ("demo/vits14", "blocks.9")
    assert metadata["saetool"]["final"] == {"fvu": 0.25, "l0": 4.0, "dead_share": 0.125}
    assert metadata["saetool"]["training"] == {"lr": 0.001}
    claim = formats.read(out).plain.claim
    assert (claim.model, claim.layer) == ("demo/vits14", 10)


@pytest.mark.parametrize(
    ("kind", "format", "reason"),
    [
        ("relu", "sparsify", "sparsify holds TopK autoencoders only"),
        ("gated", "sparsify", "sparsify holds TopK autoencoders only"),
        ("topk", "onnx", "--format onnx: none of sae_lens, sparsify, safetensors"),
    ],
)
def test_what_a_target_cannot_hold_is_refused_and_nothing_written(tmp_path, kind, format, reason):
    with pytest.raises(RequestError, match=reason):
        exported(tmp_path, kind, format)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_what_stands_there_is_not_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(RequestError, match="is there already"):
        exported(tmp_path, "topk", "sae_lens")
    assert (tmp_path / "out/notes.txt").read_text() == "mine"


def test_the_command_says_what_was_folded(tmp_path, monkeypatch, capsys):
    sealed(random_model("topk"), tmp_path / "autoencoder")
    arguments = [
        "saetool",
        "export",
        str(tmp_path / "autoencoder"),
        "--format",
        "sparsify",
        "--out",
        str(tmp_path / "o"),
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    cli.main()
    assert "center_scale (factor 0.7) folded into W_enc, W_dec and b_dec" in capsys.readouterr().out
    assert (tmp_path / "o/sae.safetensors").is_file()


@pytest.mark.parametrize(
    ("format", "changed", "reason"),
    [
        ("sparsify", {"normalization": "layer_norm", "mean": None, "factor": 1.0}, "normalizes nothing"),
        ("sparsify", {"relu": False}, "holds TopK autoencoders only"),
        ("sae_lens", {"relu": False}, "no TopK that keeps negative values"),
    ],
)
def test_a_topk_that_a_target_would_compute_otherwise_is_refused(tmp_path, format, changed, reason):
    plain = replace(from_model(random_model("topk"), "model"), **changed)
    with pytest.raises(RequestError, match=reason):
        formats.WRITERS[format].write(plain, {})


def test_unfinished_work_and_finished_artifacts_are_left_alone(tmp_path):
    sealed(random_model("topk"), tmp_path / "autoencoder")
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial/step-1.safetensors").write_text("a checkpoint")
    with pytest.raises(RequestError, match=r"out\.partial: unfinished work"):
        saetool.export_autoencoder(tmp_path / "autoencoder", tmp_path / "out", "safetensors")
    assert (tmp_path / "out.partial/step-1.safetensors").read_text() == "a checkpoint"
    with pytest.raises(RequestError, match=r"lies within .*autoencoder, which is finished"):
        saetool.export_autoencoder(tmp_path / "autoencoder", tmp_path / "autoencoder/plain", "safetensors")
    saetool.export_autoencoder(tmp_path / "autoencoder", tmp_path / "new/out", "safetensors")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["out"]
