"""Selection finds exactly what the dense float32 formula finds, however close to the threshold it is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saetool.sparse import compiled, select
from saetool.sparse.byte import Race
from saetool.sparse.half import HalfWeight, ceil_half, fast_half, floor_half
from saetool.sparse.select import Encoder, positive_places

CPU = torch.device("cpu")


@pytest.fixture(params=["int8, compiled", "bf16, compiled", "bf16", "float32"], autouse=True)
def path(request, monkeypatch):
    """Run every test on all ways to find candidates, whatever this machine is fast at; return which."""
    monkeypatch.setattr(select, "fast_half", lambda device: request.param != "float32")
    monkeypatch.setattr(Race, "takes_bytes", lambda race, rows=0: request.param == "int8, compiled")
    monkeypatch.setattr(select, "has_matrix_unit", lambda: request.param != "int8, compiled")
    if request.param.endswith("compiled"):
        assert compiled.kernels() is not None
        if request.param.startswith("int8") and not compiled.has_byte_unit():
            pytest.skip("this CPU has no unit for products of bytes")
    else:
        monkeypatch.setattr(compiled, "kernels", lambda: None)
    return request.param


def problem(rows, d_in, n_latents, seed=0, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, d_in, generator=g) * scale
    weight = torch.randn(n_latents, d_in, generator=g) / d_in**0.5
    return x, weight, torch.randn(n_latents, generator=g) - 1.0


def far_from(values, threshold):
    """Where float32 rounding cannot change the side of the threshold."""
    return (values - threshold).abs() > 1e-4


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 130), st.integers(0, 99))
def test_support_and_values_are_those_of_the_dense_formula(rows, d_in, n_latents, seed):
    x, weight, bias = problem(rows, d_in, n_latents, seed)
    cut = torch.full((n_latents,), 0.3)
    dense = x.double() @ weight.double().T + bias.double()
    support, values = Encoder(weight).above(x, bias, cut)
    found = torch.full_like(dense, -torch.inf)
    found[support.rows, support.latents] = values.double()
    above = dense > cut
    sure = far_from(dense, cut)
    assert torch.equal((found > cut)[sure], above[sure])
    torch.testing.assert_close(found[above & sure], dense[above & sure], rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(2, 130), st.integers(1, 20), st.integers(0, 99))
def test_the_k_largest_are_those_of_the_dense_formula(rows, d_in, n_latents, k, seed):
    x, weight, bias = problem(rows, d_in, n_latents, seed)
    k = min(k, n_latents)
    dense = x.double() @ weight.double().T + bias.double()
    support, values = Encoder(weight).largest(x, bias, k)
    codes = support.codes(values).dense().double()
    kth = dense.topk(k, dim=1).values[:, -1:].clamp_min(0)
    expected = torch.where(dense >= kth, dense, 0.0).clamp_min(0)
    sure = far_from(dense, kth)
    torch.testing.assert_close(codes[sure], expected[sure], rtol=1e-5, atol=1e-5)
    assert ((codes > 0).sum(1) <= k).all()


def test_candidates_are_found_where_bfloat16_alone_is_wrong_in_most_rows(path):
    """A hundred latents a row within ± 0.004 of the threshold: bf16 misjudges many, exact mode none."""
    x, weight, _ = problem(64, 64, 2048)
    weight[1:] = weight[0] + 1e-3 * torch.randn(2047, 64, generator=torch.Generator().manual_seed(1))
    bias = -(x[0] @ weight[0]).expand(2048).contiguous()
    dense = x[:1].double() @ weight.double().T + bias.double()
    assert ((dense.abs() < 0.004).sum()) > 100
    support, values = Encoder(weight).above(x[:1], bias, torch.zeros(2048))
    exact = support.codes(values).dense() > 0
    sure = far_from(dense, 0)
    assert torch.equal(exact[sure], (dense > 0)[sure])
    support, values = Encoder(weight, "bf16").above(x[:1], bias, torch.zeros(2048))
    rough = support.codes(values).dense() > 0
    if path == "int8, compiled":  # only what is likely, yet decided by float32
        assert torch.equal(rough[sure], (dense > 0)[sure])
    else:
        assert (rough != (dense > 0)).sum() > 20


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200), st.integers(0, 99), st.sampled_from([1e-3, 1.0, 1e3]))
def test_the_half_product_bounds_the_true_one_and_not_by_far(d_in, seed, scale):
    x, weight, bias = problem(32, d_in, 64, seed, scale)
    half = HalfWeight.of(weight, None)
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
    for found in (Encoder(weight).above(x, bias, torch.zeros(64)), Encoder(weight).largest(x, bias, 64)):
        codes = found[0].codes(found[1])
        torch.testing.assert_close(codes.dense(), (x @ weight.T + bias).relu(), rtol=1e-4, atol=1e-5)
        assert torch.equal(codes.row_of_entry().diff() >= 0, torch.ones(len(codes.latents) - 1, dtype=torch.bool))


def test_rounding_to_half_is_directed():
    value = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 3
    assert (ceil_half(value).float() >= value).all()
    assert (floor_half(value).float() <= value).all()
    assert torch.equal(ceil_half(torch.tensor([1.5, -2.0, 0.0])).float(), torch.tensor([1.5, -2.0, 0.0]))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 21), st.integers(0, 99))
def test_positive_places_looks_at_every_entry(rows, columns, seed):
    pre = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).bfloat16()
    expected = (pre.flatten() > 0).nonzero().squeeze(1)
    assert torch.equal(positive_places(pre), expected)


def test_ties_in_half_precision_go_to_the_lowest_latent():
    weight = torch.ones(64, 8)
    support, values = Encoder(weight, "bf16").largest(torch.ones(3, 8), torch.zeros(64), 5)
    assert support.latents.view(3, 5).tolist() == [[0, 1, 2, 3, 4]] * 3
    assert torch.equal(values, torch.full((15,), 8.0))


def test_rows_without_positive_outputs_have_no_entries():
    x, weight, bias = problem(300, 16, 64)
    bias = torch.full_like(bias, -100.0)
    for support, values in (
        Encoder(weight).above(x, bias, torch.zeros(64)),
        Encoder(weight).largest(x, bias, 4),
    ):
        assert support.codes(values).latents.numel() == 0
        assert support.codes(values).offsets.tolist() == [0] * 301


def test_a_changed_weight_is_copied_again():
    x, weight, bias = problem(20, 16, 64)
    encoder = Encoder(weight)
    encoder.above(x, bias, torch.zeros(64))
    weight.mul_(-1.0)
    support, values = encoder.above(x, bias, torch.zeros(64))
    expected = (x @ weight.T + bias).clamp_min(0)
    torch.testing.assert_close(support.codes(values).dense(), expected, rtol=1e-4, atol=1e-5)


def test_a_row_alone_has_the_code_it_has_in_company():
    x, weight, bias = problem(40, 32, 96)
    encoder = Encoder(weight)
    support, values = encoder.above(x, bias, torch.zeros(96))
    together = support.codes(values)
    for i in (0, 17, 39):
        support, values = encoder.above(x[i : i + 1], bias, torch.zeros(96))
        latents, expected = together.row(i)
        assert torch.equal(support.codes(values).latents, latents)
        torch.testing.assert_close(support.codes(values).values, expected, rtol=1e-6, atol=1e-6)


def test_fast_half_is_a_capability_and_not_a_timing():
    assert fast_half(CPU) == fast_half(CPU)
    assert not fast_half(torch.device("mps"))
