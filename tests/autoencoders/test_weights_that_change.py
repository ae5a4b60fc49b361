"""A sparse model computes with the weights that its module has, however they came there; and of equals, the lowest."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from saetool.autoencoders.families import build
from saetool.autoencoders.sparse_settings import SparseSettings
from saetool.errors import RequestError
from saetool.training.heldout import reconstruct

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))


def model_of(**settings):
    torch.manual_seed(0)
    made = build(SparseSettings(kind="sparse", n_latents=20, **settings), 6).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    return made


def formula(model, x):
    return ((x - model.b_dec) @ model.W_enc.T + model.b_enc).relu()


def test_exchanged_parameters_are_followed():
    model = model_of()
    model.encode(X)
    model.W_enc, model.W_dec = (nn.Parameter(torch.randn_like(p)) for p in (model.W_enc, model.W_dec))
    torch.testing.assert_close(model.encode(X), formula(model, X))
    codes = model.encode_sparse(X)
    torch.testing.assert_close(model.decode_sparse(codes), model.decode(codes.dense()))


def test_a_functional_call_takes_the_weights_it_is_given_and_leaves_the_models_own():
    model, other = model_of(), copy.deepcopy(model_of())
    own = model(X)
    state = {key: value.flip(0) for key, value in model.state_dict().items() if value.is_floating_point()}
    other.load_state_dict(state, strict=False)
    torch.testing.assert_close(torch.func.functional_call(model, state, (X,)), other(X))
    assert torch.equal(model(X), own)


def test_a_pruned_weight_is_the_one_that_encodes():
    model = model_of()
    prune.random_unstructured(model, "W_enc", 0.9)
    torch.testing.assert_close(model.encode(X), formula(model, X))


@pytest.mark.parametrize("sparse_below", [0.0, 1.0])
def test_rows_that_are_not_finite_have_no_codes_whoever_asks(sparse_below):
    model = model_of(sparse_below=sparse_below)
    rows = X.clone()
    rows[3, 2] = float("nan")
    for ask in (model, model.encode, model.encode_sparse, lambda x: reconstruct(model, x)):
        with pytest.raises(RequestError, match="not finite in 1 of 40 rows"):
            ask(rows)


def test_of_equal_latents_the_lowest_are_chosen_densely_and_sparsely():
    dense, sparse = (model_of(activation={"kind": "topk", "k": 3}, sparse_below=share) for share in (0.0, 1.0))
    for model in (dense, sparse):
        with torch.no_grad():
            model.W_enc[10:] = model.W_enc[:10]
            model.b_enc[10:] = model.b_enc[:10]
        model.load_state_dict(model.state_dict())
    torch.testing.assert_close(dense.encode(X), sparse.encode(X))
