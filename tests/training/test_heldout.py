"""Held-out numbers equal the obvious computation on all rows at once, however the rows are cut."""

import pytest
import torch

from saetool.evaluation.reconstruction import held_out_sums
from saetool.training.heldout import evaluate, reconstruct


@pytest.fixture
def model(toy):
    model = toy().double()
    with torch.no_grad():
        model.bias.copy_(torch.linspace(-40, 3, 12))  # some latents die, some are always on
    return model


@pytest.fixture
def x():
    return torch.randn(333, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 + 1


@pytest.mark.parametrize("block", [333, 100, 7, 1])
def test_measures_equal_the_whole_matrix_computation(model, x, block):
    z = torch.relu(x @ model.encoder.T + model.bias).detach()
    x_hat = (z @ model.decoder).detach()
    found = evaluate(model, x.split(block), torch.zeros(8))
    assert found.rows == 333
    assert found.fvu == pytest.approx(float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum()), rel=1e-12)
    assert found.mse == pytest.approx(float((x - x_hat).square().sum(1).mean()), rel=1e-12)
    assert found.l0 == pytest.approx(float((z > 0).sum(1).double().mean()))
    assert found.l1 == pytest.approx(float(z.sum(1).mean()))
    active = (z > 0).double().mean(0)
    assert found.dead == int((active == 0).sum()) > 0
    assert found.dense == int((active > 0.1).sum()) > 0


def test_the_center_changes_nothing_and_saves_digits_far_from_the_origin(model, x):
    far = x + 1e6
    with torch.no_grad():
        model.bias.zero_()
        model.encoder.zero_()
    spread = float((far - far.mean(0)).square().sum())
    expected = float(far.square().sum()) / spread
    assert evaluate(model, [far], far.mean(0)).fvu == pytest.approx(expected, rel=1e-9)
    assert evaluate(model, [x], torch.zeros(8)).fvu == pytest.approx(evaluate(model, [x], x[0]).fvu, rel=1e-12)


def test_perfect_and_constant_reconstructions_have_fvu_0_and_1(model, x, monkeypatch):
    monkeypatch.setattr(type(model), "decode", lambda self, z: torch.cat(list(x.split(50)))[: len(z)])
    assert evaluate(model, [x], x[0]).fvu == 0
    monkeypatch.setattr(type(model), "decode", lambda self, z: x.mean(0).expand(len(z), 8))
    assert evaluate(model, x.split(50), x[0]).fvu == pytest.approx(1)


def test_latents_below_the_threshold_are_not_counted_but_still_reconstruct(model, x):
    everything = evaluate(model, [x], x[0])
    model.active_above = 2.0
    counted = evaluate(model, [x], x[0])
    assert counted.fvu == pytest.approx(everything.fvu)
    z = model.encode(x)
    assert counted.l0 == pytest.approx(float((z > 2).sum(1).double().mean()))
    assert counted.l0 < everything.l0
    codes, x_hat = reconstruct(model, x)
    assert torch.equal(x_hat, model.decode(z))
    assert codes.values.min() > 2


def test_rows_that_do_not_vary_have_no_fvu(model):
    assert evaluate(model, [torch.ones(5, 8)], torch.ones(8)).fvu is None


@pytest.mark.parametrize("mode", [True, False])
def test_an_error_in_an_evaluation_leaves_the_mode_as_it_was(model, monkeypatch, mode):
    model.train(mode)

    def fails(x):
        assert model.training == mode
        raise ValueError("in encode")

    monkeypatch.setattr(model, "encode", fails)
    with pytest.raises(ValueError, match="in encode"):
        evaluate(model, [torch.ones(5, 8)], torch.ones(8))
    with pytest.raises(ValueError, match="in encode"):
        held_out_sums(model, [torch.ones(1, 5, 8)], torch.ones(8))
    assert model.training == mode
