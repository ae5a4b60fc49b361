"""Combinations that cannot work are refused with the reason; all others build."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from saetool.autoencoders.base import Step
from saetool.autoencoders.families import AutoencoderSettings, build
from saetool.autoencoders.sparse_settings import SparseSettings
from saetool.errors import RequestError

L1 = {"kind": "l1", "weight": 0.1}
KL = {"kind": "kl", "rho": 0.05}
L0 = {"kind": "l0", "weight": 0.1}

REFUSED = {
    "relu with KL": ({"penalty": KL}, "probability"),
    "KL without decoder decay": (
        {"activation": {"kind": "sigmoid"}, "penalty": KL | {"decoder_decay": 0}},
        "decoder_decay",
    ),
    "KL with next to no decoder decay": (
        {"activation": {"kind": "sigmoid"}, "penalty": KL | {"decoder_decay": 1e-9}},
        "at least 1e-06",
    ),
    "bounded latents with unit rows": ({"activation": {"kind": "one_minus_exp"}, "penalty": L1}, "norm weighted"),
    "bounded latents without a penalty": ({"activation": {"kind": "one_minus_exp"}}, "norm weighted"),
    "TopK with target_l0": (
        {"activation": {"kind": "topk", "k": 4}, "penalty": {"kind": "l1", "target_l0": 4}},
        "target_l0",
    ),
    "TopK with L1": ({"activation": {"kind": "topk", "k": 4}, "penalty": L1}, "penalty none"),
    "sigmoid with L1": ({"activation": {"kind": "sigmoid"}, "penalty": L1}, "never zero"),
    "JumpReLU with L1": ({"activation": {"kind": "jump_relu"}, "penalty": L1}, "penalty l0"),
    "relu with L0": ({"penalty": L0}, "jump_relu"),
    "gated without L1": ({"activation": {"kind": "gated"}}, "penalty l1"),
    "gated with weighted norms": ({"activation": {"kind": "gated"}, "penalty": L1 | {"norm": "weighted"}}, "unit"),
    "weight and target": ({"penalty": L1 | {"target_l0": 5}}, "exactly one"),
    "neither weight nor target": ({"penalty": {"kind": "l1"}}, "exactly one"),
    "AuxK for relu": ({"penalty": L1, "dead": {"kind": "auxk"}}, "resample"),
    "resampling for TopK": ({"activation": {"kind": "topk", "k": 4}, "dead": {"kind": "resample"}}, "auxk"),
    "a cure for sigmoids": (
        {"activation": {"kind": "sigmoid"}, "penalty": KL, "dead": {"kind": "resample"}},
        "dead none",
    ),
    "gains for relu": ({"penalty": L1, "initial_gain": 0.3}, "topk and batch_topk, not with relu"),
    "prefixes out of order": ({"matryoshka": [8, 4]}, "ascend"),
    "prefixes beyond the width": ({"matryoshka": [8, 400]}, "exceeds"),
    "gated prefixes": ({"activation": {"kind": "gated"}, "penalty": L1, "matryoshka": [4]}, "matryoshka"),
    "two widths": ({"expansion": 4}, "exactly one"),
    "an unknown key": ({"lambda": 4}, "lambda"),
    "rho beyond 1": ({"activation": {"kind": "sigmoid"}, "penalty": {"kind": "kl", "rho": 1.5}}, "rho"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_impossible_combinations_are_refused_with_the_reason(name):
    keys, reason = REFUSED[name]
    with pytest.raises(ValidationError, match=reason):
        SparseSettings(kind="sparse", n_latents=32, **keys)


def test_layer_norm_of_one_coordinate_is_refused():
    with pytest.raises(RequestError, match="layer_norm divides by a row's deviation, and d_in is 1"):
        build(SparseSettings(kind="sparse", n_latents=4, normalize="layer_norm"), 1)


def test_no_width_is_refused():
    with pytest.raises(ValidationError, match="exactly one of n_latents and expansion"):
        SparseSettings(kind="sparse")


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"penalty": L1, "dead": {"kind": "resample"}},
        {"activation": {"kind": "one_minus_exp"}, "penalty": L1 | {"norm": "weighted"}},
        {"activation": {"kind": "one_minus_exp"}, "penalty": KL},
        {"activation": {"kind": "topk", "k": 9}, "dead": {"kind": "auxk"}, "matryoshka": [4, 16]},
        {"activation": {"kind": "jump_relu"}, "penalty": L0, "dead": {"kind": "pre_activation"}},
        {"activation": {"kind": "gated"}, "penalty": L1, "dead": {"kind": "resample"}, "codes": "bf16"},
    ],
)
def test_legal_combinations_build(keys):
    model = build(SparseSettings(kind="sparse", n_latents=32, **keys), 8)
    assert model.n_latents == 32


def test_a_request_of_before_gains_is_the_same_request_still():
    old = SparseSettings(n_latents=8)
    assert "initial_gain" not in old.model_dump(mode="json")
    new = SparseSettings(n_latents=8, activation={"kind": "topk", "k": 2}, initial_gain=0.3)
    for settings in (old, new):
        assert SparseSettings.model_validate(settings.model_dump(mode="json")) == settings
    assert new.model_dump(mode="json")["initial_gain"] == 0.3


def test_gains_are_not_left_to_another_optimizer():
    model = build(SparseSettings(n_latents=8, activation={"kind": "topk", "k": 2}, initial_gain=0.3), 4)
    adam = torch.optim.Adam(model.parameters())
    with pytest.raises(RequestError, match="initial_gain needs SparseAdam, not Adam"):
        model.after_update(
            adam, Step(0), torch.Generator(), [model.loss(torch.randn(4, 4), Step(0), torch.Generator())]
        )


def test_prefixes_beyond_a_width_given_by_expansion_are_refused():
    settings = SparseSettings(kind="sparse", expansion=2, matryoshka=(8, 40))
    with pytest.raises(RequestError, match=r"matryoshka prefix 40 exceeds .* 20"):
        build(settings, 10)


def test_expansion_multiplies_the_input_width():
    assert build(SparseSettings(kind="sparse", expansion=2.5), 10).n_latents == 25


def test_more_active_latents_than_latents_are_refused():
    with pytest.raises(ValidationError, match="k 9 exceeds the 8 latents"):
        SparseSettings(kind="sparse", n_latents=8, activation={"kind": "topk", "k": 9})
    with pytest.raises(RequestError, match="k 9 exceeds the 8 latents"):
        build(SparseSettings(kind="sparse", expansion=2, activation={"kind": "topk", "k": 9}), 4)


@pytest.mark.parametrize("x", [torch.zeros(5), torch.zeros(()), torch.zeros(2, 5), [[0.0] * 4]])
def test_what_is_no_batch_of_activations_is_refused(x):
    model = build(SparseSettings(kind="sparse", n_latents=8), 4)
    for encode in (model.encode, model.encode_sparse):
        with pytest.raises(RequestError, match=r"must be a tensor \[\.\.\., 4\], got"):
            encode(x)


@pytest.mark.parametrize("kind", ["sparse", "linear", "dense", "variational"])
def test_a_wrong_width_is_refused_by_every_family(kind):
    model = build(TypeAdapter(AutoencoderSettings).validate_python({"kind": kind, "n_latents": 3}), 4)
    for map_, width, what in ((model.encode, 4, "activations"), (model.decode, 3, "codes")):
        with pytest.raises(RequestError, match=rf"{what} must be a tensor \[\.\.\., {width}\], got \[2, 5\]"):
            map_(torch.zeros(2, 5))
        map_(torch.zeros(2, width, dtype=torch.float64))


def test_an_empty_batch_has_an_empty_code():
    model = build(SparseSettings(kind="sparse", n_latents=8), 4)
    assert model.encode_sparse(torch.zeros(0, 4)).offsets.tolist() == [0]
    assert model.encode(torch.zeros(0, 4)).shape == (0, 8)
