"""Refitted values are the best ones for the latents that an autoencoder chose."""

import pytest
import torch

from saetool.autoencoders.sparse import SparseAutoencoder
from saetool.autoencoders.sparse_settings import SparseSettings
from saetool.evaluation.references import Refitted
from saetool.training import reconstruct


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = SparseAutoencoder(SparseSettings(kind="sparse", n_latents=40, activation={"kind": "topk", "k": 5}), 12)
    with torch.no_grad():
        made.b_enc.sub_(0.3)
        made.b_dec.normal_()
        made.normalizer.mean.normal_()
        made.normalizer.factor.fill_(1.7)
    return made.eval()


@pytest.mark.parametrize("together", [1, 7, 64])
def test_values_are_those_of_least_squares_row_by_row(model, monkeypatch, together):
    monkeypatch.setattr(Refitted, "rows_at_once", 13)
    monkeypatch.setattr("saetool.evaluation.references.REFITTED_ROWS", together)
    with torch.no_grad():
        model.b_enc.sub_(1.2)
    x = torch.randn(20, 12, generator=torch.Generator().manual_seed(1))
    x[3] = model.normalizer.inverse(model.b_dec.detach())  # nothing to say of it
    codes, x_hat = reconstruct(Refitted(model), x)
    chosen = model.encode_sparse(x)
    assert {0, 5} < set(chosen.offsets.diff().tolist())
    assert torch.equal(codes.offsets, chosen.offsets)
    assert torch.equal(codes.latents, chosen.latents)
    offset = model.decode(torch.zeros(1, 40))[0].double()
    for i, row in enumerate(x.double()):
        latents, values = codes.row(i)
        directions = model.decoder_directions()[latents].double()
        best = torch.linalg.lstsq(directions.T, (row - offset)[:, None]).solution[:, 0]
        torch.testing.assert_close(values.double(), best, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(x_hat[i].double(), offset + best @ directions, rtol=1e-4, atol=1e-4)
    assert (x_hat - x).square().sum() < (model(x) - x).square().sum()


def test_latents_that_repeat_one_another_are_no_trouble(model):
    with torch.no_grad():
        model.W_enc[:] = model.W_enc[0]
        model.W_dec[:] = model.W_dec[0]
    x = torch.randn(4, 12, generator=torch.Generator().manual_seed(1)) * 3
    codes, x_hat = reconstruct(Refitted(model), x)
    assert codes.values.isfinite().all()
    assert x_hat.isfinite().all()
