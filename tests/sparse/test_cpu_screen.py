"""The CPU's screen: a bfloat16 product bounds the float32 one from above; what it lets through is decided exactly."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from saetool.sparse.backends import finish
from saetool.sparse.backends.cpu import backend
from saetool.sparse.backends.cpu.backend import Cpu
from saetool.sparse.backends.cpu.screen import HalfWeight, ceil_half
from saetool.sparse.weight import Weight


@pytest.fixture(params=["bfloat16 screen", "float32 product"], autouse=True)
def screen(request, monkeypatch):
    """Run every test on both ways, whatever this machine is fast at."""
    monkeypatch.setattr(backend, "has_fast_half", lambda: request.param == "bfloat16 screen")


def problem(rows, d_in, n_latents, seed=0, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, d_in, generator=g) * scale
    weight = torch.randn(n_latents, d_in, generator=g) / d_in**0.5
    return x, weight, torch.randn(n_latents, generator=g) - 1.0


def far_from(values, threshold):
    """Where float32 rounding cannot change the side of the threshold."""
    return (values - threshold).abs() > 1e-4


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 130), st.integers(0, 99))
def test_support_and_values_are_those_of_the_dense_formula(rows, d_in, n_latents, seed):
    x, weight, bias = problem(rows, d_in, n_latents, seed)
    cut = torch.full((n_latents,), 0.3)
    dense = x.double() @ weight.double().T + bias.double()
    support, values = finish(Cpu().search(x, Weight(weight), bias, "exact", cut=cut))
    found = torch.full_like(dense, -torch.inf)
    found[support.rows, support.latents] = values.double()
    above = dense > cut
    sure = far_from(dense, cut)
    assert torch.equal((found > cut)[sure], above[sure])
    torch.testing.assert_close(found[above & sure], dense[above & sure], rtol=1e-5, atol=1e-5)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.integers(1, 300), st.integers(1, 40), st.integers(2, 130), st.integers(1, 20), st.integers(0, 99))
def test_the_k_largest_are_those_of_the_dense_formula(rows, d_in, n_latents, k, seed):
    x, weight, bias = problem(rows, d_in, n_latents, seed)
    k = min(k, n_latents)
    dense = x.double() @ weight.double().T + bias.double()
    support, values = finish(Cpu().search(x, Weight(weight), bias, "exact", k=k))
    codes = support.codes(values).dense().double()
    kth = dense.topk(k, dim=1).values[:, -1:].clamp_min(0)
    expected = torch.where(dense >= kth, dense, 0.0).clamp_min(0)
    sure = far_from(dense, kth)
    torch.testing.assert_close(codes[sure], expected[sure], rtol=1e-5, atol=1e-5)
    assert ((codes > 0).sum(1) <= k).all()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.integers(1, 200), st.integers(0, 99), st.sampled_from([1e-3, 1.0, 1e3]))
def test_the_half_product_bounds_the_true_one_and_not_by_far(d_in, seed, scale):
    x, weight, bias = problem(32, d_in, 64, seed, scale)
    half = Weight(weight).copied(HalfWeight)
    half.set_bias(bias)
    extended = half.extend(x, bounding=True)
    above = extended.double() @ half.weight.double().T
    true = x.double() @ weight.double().T + bias.double()
    assert (above >= true).all()
    assert (above <= true + half.slack(extended).double()[:, None]).all()
    least = 2.0**-5 * x.norm(dim=1) * weight.norm(dim=1).max() + 2.0**-10 * bias.abs().max()
    assert (half.slack(extended) <= least).all()  # and is no blanket


def test_many_rows_are_shared_out_and_come_back_in_order():
    x, weight, bias = problem(1100, 16, 64)
    for found in (
        finish(Cpu().search(x, Weight(weight), bias, "exact", cut=torch.zeros(64))),
        finish(Cpu().search(x, Weight(weight), bias, "exact", k=64)),
    ):
        codes = found[0].codes(found[1])
        torch.testing.assert_close(codes.dense(), (x @ weight.T + bias).relu(), rtol=1e-4, atol=1e-5)
        assert torch.equal(codes.row_of_entry().diff() >= 0, torch.ones(len(codes.latents) - 1, dtype=torch.bool))


def test_rounding_to_half_is_directed():
    value = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 3
    assert (ceil_half(value).float() >= value).all()
    assert torch.equal(ceil_half(torch.tensor([1.5, -2.0, 0.0])).float(), torch.tensor([1.5, -2.0, 0.0]))


def test_ties_in_half_precision_go_to_the_lowest_latent():
    weight = torch.ones(64, 8)
    support, values = finish(Cpu().search(torch.ones(3, 8), Weight(weight), torch.zeros(64), "bf16", k=5))
    assert support.latents.view(3, 5).tolist() == [[0, 1, 2, 3, 4]] * 3
    assert torch.equal(values, torch.full((15,), 8.0))


def test_a_row_alone_has_the_code_it_has_in_company():
    x, weight, bias = problem(40, 32, 96)
    encoder = Weight(weight)
    support, values = finish(Cpu().search(x, encoder, bias, "exact", cut=torch.zeros(96)))
    together = support.codes(values)
    for i in (0, 17, 39):
        support, values = finish(Cpu().search(x[i : i + 1], encoder, bias, "exact", cut=torch.zeros(96)))
        latents, expected = together.row(i)
        assert torch.equal(support.codes(values).latents, latents)
        torch.testing.assert_close(support.codes(values).values, expected, rtol=1e-6, atol=1e-6)
