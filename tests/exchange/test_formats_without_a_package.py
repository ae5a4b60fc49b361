"""Formats whose tools are on no package index: saev after 0.1.0, ViT-Prisma's autoencoders, OpenAI's layout.

Their files are written here as their published sources write them, and compared with the formula that those sources
have; a file of the tools' own has not been read.
"""

import dataclasses
import json
import sys
import types

import pytest
import torch

from saetool.errors import RequestError
from saetool.exchange import formats
from saetool.training.heldout import reconstruct

D, N, K = 6, 16, 4
DRAW = torch.Generator().manual_seed(11)
X = torch.randn(30, D, generator=DRAW) * 2 + 0.5
W_ENC, W_DEC = torch.randn(D, N, generator=DRAW), torch.randn(N, D, generator=DRAW)
B_ENC, B_DEC = torch.randn(N, generator=DRAW), torch.randn(D, generator=DRAW)
STATE = {"W_enc": W_ENC, "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC}


def agrees(place, z, x_hat, given=None):
    found = formats.read(place, None, given)
    codes, again = reconstruct(found.model, X)
    assert torch.equal(codes.dense() != 0, z != 0)
    for mine, theirs in ((codes.dense(), z), (again.detach(), x_hat)):
        assert float((mine - theirs).abs().max()) <= 2e-6 * float(theirs.abs().max())
    return found


def topk(pre, relu=True):
    values, places = pre.topk(K, dim=1)
    return torch.zeros_like(pre).scatter(1, places, values.relu() if relu else values)


def layer_normed(x):
    centered = x - x.mean(-1, keepdim=True)
    deviation = centered.std(-1, keepdim=True)
    return centered / (deviation + 1e-5), x.mean(-1, keepdim=True), deviation


# --- saev ------------------------------------------------------------------------------------------------------------


def saev(path, schema, activation, state=STATE, **config):
    header = {"schema": schema, "cfg": {"d_model": D, "d_sae": N, "activation": activation, **config}, "lib": "0.2.0"}
    with path.open("wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        torch.save(state, file)
    return path


def test_saev_does_not_subtract_the_decoder_bias_any_more(tmp_path):
    z = (X @ W_ENC + B_ENC).relu()
    found = agrees(saev(tmp_path / "sae.pt", 5, {"cls": "Relu", "params": {}}), z, z @ W_DEC + B_DEC)
    assert "W_enc b_dec was added" in found.plain.converted["decoder bias"]


def test_saev_topk_keeps_negative_values(tmp_path):
    state = {**STATE, "b_enc": B_ENC - 6}  # some rows have fewer than k positive ones
    z = topk(X @ W_ENC + B_ENC - 6, relu=False)
    assert (z < 0).any()
    agrees(saev(tmp_path / "sae.pt", 2, {"cls": "TopK", "params": {"top_k": K}}, state), z, z @ W_DEC + B_DEC)


def test_saev_batch_topk_cuts_at_its_threshold(tmp_path):
    pre = X @ W_ENC + B_ENC
    for theta in (1.5, -1.0):
        z = torch.where(pre > max(theta, 0), pre, 0.0)
        state = {**STATE, "activation.threshold": torch.tensor(theta)}
        place = saev(tmp_path / f"{theta}.pt", 5, {"cls": "BatchTopK", "params": {"top_k": K}}, state)
        agrees(place, z, z @ W_DEC + B_DEC)


@pytest.mark.parametrize(
    ("schema", "activation", "message"),
    [
        (1, {"cls": "Relu", "params": {}}, "schema 1 of saev"),
        (6, {"cls": "Relu", "params": {}}, "schema 6 of saev"),
        (2, {"cls": "BatchTopK", "params": {"top_k": K}}, "depends on the batch"),
        (5, {"cls": "Softplus", "params": {}}, "activation 'Softplus'"),
    ],
)
def test_saev_files_that_cannot_be_represented_are_refused(tmp_path, schema, activation, message):
    with pytest.raises(RequestError, match=message):
        formats.read(saev(tmp_path / "sae.pt", schema, activation))


# --- ViT-Prisma ------------------------------------------------------------------------------------------------------

PRISMA = {
    "architecture": "standard",
    "d_in": D,
    "d_sae": N,
    "model_name": "open-clip:laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K",
    "hook_point_layer": 9,
    "layer_subtype": "hook_resid_post",
    "activation_fn_str": "relu",
    "activation_fn_kwargs": {},
    "normalize_activations": "layer_norm",
    "cls_token_only": False,
    "use_patches_only": True,
}


def prisma(folder, state=STATE, **config):
    (folder / "config.json").write_text(json.dumps({**PRISMA, **config}))
    torch.save(state, folder / "weights.pt")
    return folder


def test_prisma_normalizes_each_row_and_names_its_site(tmp_path):
    x, mean, deviation = layer_normed(X)
    z = ((x - B_DEC) @ W_ENC + B_ENC).relu()
    found = agrees(prisma(tmp_path), z, (z @ W_DEC + B_DEC) * deviation + mean)
    assert found.format == "prisma"
    claim = found.plain.claim
    assert (claim.backbone, claim.layer, claim.tokens) == ("timm/vit_base_patch32_clip_224.datacompxl", 10, "patches")


def test_prisma_topk_without_normalization(tmp_path):
    z = topk((X - B_DEC) @ W_ENC + B_ENC)
    place = prisma(tmp_path, activation_fn_str="topk", activation_fn_kwargs={"k": K}, normalize_activations=None)
    agrees(place, z, z @ W_DEC + B_DEC)


def test_prisma_gated(tmp_path):
    r_mag, b_mag = B_ENC / 3, B_ENC.flip(0)
    state = {**STATE, "b_gate": B_ENC, "r_mag": r_mag, "b_mag": b_mag, "b_enc": torch.full((N,), 9.0)}
    x = X - B_DEC
    z = (x @ W_ENC + B_ENC > 0) * (x @ (W_ENC * r_mag.exp()) + b_mag).relu()
    agrees(prisma(tmp_path, state, architecture="gated", normalize_activations="none"), z, z @ W_DEC + B_DEC)


def test_prisma_config_object_inside_an_older_file_is_read_without_its_code(tmp_path, monkeypatch):
    module = types.ModuleType("vit_prisma.sae.config")
    Config = dataclasses.make_dataclass("VisionModelSAERunnerConfig", list(PRISMA))
    Config.__module__, module.VisionModelSAERunnerConfig = module.__name__, Config
    for name in ("vit_prisma", "vit_prisma.sae", "vit_prisma.sae.config"):
        monkeypatch.setitem(sys.modules, name, module)
    torch.save({"cfg": Config(**PRISMA), "state_dict": STATE}, tmp_path / "n_images_7.pt")
    monkeypatch.undo()
    x, mean, deviation = layer_normed(X)
    z = ((x - B_DEC) @ W_ENC + B_ENC).relu()
    agrees(tmp_path / "n_images_7.pt", z, (z @ W_DEC + B_DEC) * deviation + mean)


# --- OpenAI ----------------------------------------------------------------------------------------------------------


def openai(path, **more):
    statistics = {"stats_last_nonzero": torch.zeros(N, dtype=torch.long), "latents_mean_square": torch.zeros(N)}
    state = {"encoder.weight": W_ENC.T, "latent_bias": B_ENC, "decoder.weight": W_DEC.T, "pre_bias": B_DEC}
    torch.save({**state, **statistics, **more}, path)
    return path


def test_openai_topk_normalizes_each_row(tmp_path):
    x, mean, deviation = layer_normed(X)
    z = topk((x - B_DEC) @ W_ENC + B_ENC)
    place = openai(tmp_path / "5.pt", activation="TopK", activation_state_dict={"k": K, "postact_fn": "ReLU"})
    assert agrees(place, z, (z @ W_DEC + B_DEC) * deviation + mean).format == "openai"


def test_openai_relu_does_not(tmp_path):
    z = ((X - B_DEC) @ W_ENC + B_ENC).relu()
    agrees(openai(tmp_path / "v1.pt", activation="ReLU", activation_state_dict={}), z, z @ W_DEC + B_DEC)


def test_openai_topk_of_the_identity_keeps_negative_values(tmp_path):
    x, mean, deviation = layer_normed(X)
    z = topk((x - B_DEC) @ W_ENC + B_ENC - 6, relu=False)
    assert (z < 0).any()
    more = {"activation": "TopK", "activation_state_dict": {"k": K, "postact_fn": "Identity"}, "latent_bias": B_ENC - 6}
    agrees(openai(tmp_path / "i.pt", **more), z, (z @ W_DEC + B_DEC) * deviation + mean)


def test_openai_other_activations_are_refused(tmp_path):
    with pytest.raises(RequestError, match="activation 'Gelu'"):
        formats.read(openai(tmp_path / "g.pt", activation="Gelu"))
