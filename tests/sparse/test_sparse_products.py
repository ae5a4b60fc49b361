"""The sparse products and their gradients equal those of the dense formulas, on every path."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saetool.sparse import compiled, kernels
from saetool.sparse.adam import BlockAdam, BlockRule
from saetool.sparse.byte import ByteWeight, Race
from saetool.sparse.gradients import Along, Outer
from saetool.sparse.half import HalfWeight
from saetool.sparse.products import decode, pre_activations, row_norms, squared_error
from saetool.sparse.select import Encoder
from saetool.sparse.support import Support


@pytest.fixture(params=["compiled", "plain torch", "without sampled_addmm"], autouse=True)
def path(request, monkeypatch):
    """Run every test with the compiled kernels, without them, and without the kernel that needs MKL."""
    if request.param == "compiled":
        assert compiled.kernels() is not None
    else:
        monkeypatch.setattr(compiled, "kernels", lambda: None)
    if request.param == "without sampled_addmm":
        monkeypatch.setattr(kernels, "has_sampled_addmm", lambda device, dtype: False)
    return request.param


def random_support(rows, n_latents, share, seed):
    kept = torch.rand(rows, n_latents, generator=torch.Generator().manual_seed(seed)) < share
    return kept, Support(*kept.nonzero(as_tuple=True), rows, n_latents)


shapes = st.tuples(st.integers(1, 30), st.integers(1, 12), st.integers(1, 40))


@settings(max_examples=40, deadline=None)
@given(shapes, st.sampled_from([0.0, 0.1, 0.9]), st.integers(0, 99))
def test_gradients_equal_dense_autograd(shape, share, seed):
    rows, d_in, n_latents = shape
    g = torch.Generator().manual_seed(seed)
    kept, support = random_support(rows, n_latents, share, seed)
    x = torch.randn(rows, d_in, generator=g, dtype=torch.float64)
    sizes = {"encoder": (n_latents, d_in), "bias": (n_latents,), "center": (d_in,), "decoder": (n_latents, d_in)}
    leaves = {k: torch.randn(s, generator=g, dtype=torch.float64, requires_grad=True) for k, s in sizes.items()}
    target = torch.randn(rows, d_in, generator=g, dtype=torch.float64)

    def dense():
        a = (x - leaves["center"]) @ leaves["encoder"].T + leaves["bias"]
        x_hat = torch.where(kept, a, 0.0).tanh() @ leaves["decoder"]
        return (x_hat - target).square().sum() + leaves["decoder"].norm(dim=1).sum()

    def sparse(sinks):
        centered = x - leaves["center"].detach()
        values = ((centered @ leaves["encoder"].T + leaves["bias"]).detach())[kept]
        a = pre_activations(values, centered, leaves["center"], leaves["encoder"], leaves["bias"], support, sinks[0])
        x_hat = decode(a.tanh(), leaves["decoder"], support, sinks[1])
        return (x_hat - target).square().sum() + row_norms(leaves["decoder"], sinks[1]).sum()

    expected = torch.autograd.grad(dense(), list(leaves.values()))
    found = torch.autograd.grad(sparse((None, None)), list(leaves.values()))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)

    sinks = ([], [])
    rest = [leaves["bias"], leaves["center"]]
    deferred = torch.autograd.grad(sparse(sinks), [*rest, leaves["encoder"], leaves["decoder"]], allow_unused=True)
    assert deferred[2:] == (None, None)
    for sink, whole in zip(sinks, (expected[0], expected[3]), strict=True):
        cut = n_latents // 2
        blocks = [sum(t.block(a, b) for t in sink) for a, b in ((0, cut), (cut, n_latents)) if b > a]
        torch.testing.assert_close(torch.cat(blocks), whole, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(shapes, st.sampled_from([0.0, 0.1, 0.9]), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 99))
def test_the_squared_error_and_its_gradients_equal_dense_autograd(shape, share, dtype, seed):
    rows, d_in, n_latents = shape
    g = torch.Generator().manual_seed(seed)
    kept, support = random_support(rows, n_latents, share, seed)
    x, z, weight, bias = (
        torch.randn(s, generator=g, dtype=dtype) for s in ((rows, d_in), (rows, n_latents), (n_latents, d_in), (d_in,))
    )
    values = z[kept].requires_grad_()
    leaves = [values, weight.requires_grad_(), bias.requires_grad_()]
    residual = x - torch.zeros_like(z).masked_scatter(kept, values) @ weight - bias
    expected = torch.autograd.grad(3 * residual.square().sum(), leaves, materialize_grads=True)
    error, found = squared_error(values, weight, bias, x, support)
    tolerance = {"rtol": 1e-4, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(found, residual.detach(), **tolerance)
    torch.testing.assert_close(error, residual.square().sum(), **tolerance)
    torch.testing.assert_close(torch.autograd.grad(3 * error, leaves), expected, **tolerance)
    sink = []
    deferred = torch.autograd.grad(3 * squared_error(*leaves, x, support, sink)[0], leaves, allow_unused=True)
    assert deferred[1] is None
    torch.testing.assert_close(sink[0].whole(), expected[1], **tolerance)


@settings(max_examples=20, deadline=None)
@given(shapes, st.integers(0, 99))
def test_dropping_entries_keeps_the_order_by_latent(shape, seed):
    rows, _, n_latents = shape
    _, support = random_support(rows, n_latents, 0.5, seed)
    assert support.by_latent is not None  # known before the entries are dropped
    kept = torch.rand(support.rows.numel(), generator=torch.Generator().manual_seed(seed)) < 0.5
    some = support.where(kept)
    fresh = Support(some.rows, some.latents, rows, n_latents).by_latent
    for name in ("order", "rows", "offsets"):
        assert torch.equal(getattr(some.by_latent, name), getattr(fresh, name)), name


def test_latents_sort_alike_as_int16_and_beyond():
    _, support = random_support(20, 300, 0.2, 0)
    wide = Support(support.rows, support.latents + 2**15, 20, 2**15 + 300)
    assert torch.equal(wide.by_latent.order, support.by_latent.order)
    assert torch.equal(support.latents[support.by_latent.order], support.latents.sort(stable=True).values)


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("terms", ["one", "two"])
def test_block_adam_is_adam(terms, unit, monkeypatch):
    """Twenty steps over deferred and ordinary gradients end where torch.optim.Adam and two lines around it end."""
    monkeypatch.setattr("saetool.sparse.adam.BLOCK", 7)
    g = torch.Generator().manual_seed(0)
    start, table = torch.randn(30, 45, generator=g), torch.randn(11, 45, generator=g)
    ours, bias = torch.nn.Parameter(start.clone()), torch.nn.Parameter(torch.zeros(5))
    theirs, their_bias = torch.nn.Parameter(start.clone()), torch.nn.Parameter(torch.zeros(5))
    encoder = Encoder(ours)
    encoder.half = HalfWeight.of(ours, None)
    rule = BlockRule(unit_rows=unit, encoder=encoder)
    optimizer = BlockAdam([ours, bias], {ours: rule}, 1e-2, (0.9, 0.99), 1e-8)
    adam = torch.optim.Adam([theirs, their_bias], 1e-2, (0.9, 0.99), 1e-8)
    for step in range(20):
        _, support = random_support(11, 30, 0.2, step)
        weights = torch.randn(support.rows.numel(), generator=g)
        by_latent = support.by_latent
        outer = Outer(by_latent.rows, weights[by_latent.order], by_latent.offsets, table)
        along = Along(ours.detach().clone(), torch.randn(30, generator=g))
        rule.sink += [outer] if terms == "one" else [outer, along]
        bias.grad = torch.randn(5, generator=g)
        theirs.grad = sum(term.whole() for term in rule.sink)
        if unit:
            theirs.grad -= (theirs.grad * theirs).sum(1, keepdim=True) * theirs.detach()
        their_bias.grad = bias.grad.clone()
        optimizer.step()
        adam.step()
        if unit:
            theirs.data /= theirs.data.norm(dim=1, keepdim=True)
        assert not rule.sink
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bias, their_bias)
    assert float(optimizer.state[ours]["step"]) == 20
    kept, fresh = HalfWeight.of(ours, encoder.half), HalfWeight.of(ours, None)
    assert kept is encoder.half
    assert torch.equal(kept.weight[:, :45], fresh.weight[:, :45])
    torch.testing.assert_close(kept.weight[:, 45:47], fresh.weight[:, 45:47], rtol=2**-7, atol=0)
    assert (kept.weight[:, 45].double() >= ours.double().norm(dim=1) * (1 - 1e-6)).all()


def test_the_optimizer_keeps_up_the_copy_that_the_next_selection_reads(path, monkeypatch):
    if path != "compiled" or not compiled.has_byte_unit():
        pytest.skip("int8 copies are for the compiled loops, on CPUs with a unit for products of bytes")
    monkeypatch.setattr("saetool.sparse.select.fast_half", lambda device: True)
    monkeypatch.setattr(Race, "takes_bytes", lambda race, rows=0: True)
    g = torch.Generator().manual_seed(0)
    weight, table = torch.nn.Parameter(torch.randn(30, 45, generator=g)), torch.randn(11, 45, generator=g)
    encoder = Encoder(weight)
    encoder.above(table, torch.zeros(30), torch.zeros(30))
    kept = encoder.byte
    optimizer = BlockAdam([weight], {weight: (rule := BlockRule(encoder=encoder))}, 0.1, (0.9, 0.99), 1e-8)
    for terms in (1, 2):  # in one pass over the latents, and in blocks
        _, support = random_support(11, 30, 0.3, terms)
        by_latent = support.by_latent
        outer = Outer(by_latent.rows, torch.ones(support.rows.numel()), by_latent.offsets, table)
        rule.sink += [outer] * terms
        optimizer.step()
        fresh = ByteWeight.of(weight, None)
        assert ByteWeight.of(weight, kept) is kept is encoder.kept
        for ours, theirs in zip(kept.coded.arrays(), fresh.coded.arrays(), strict=True):
            assert np.array_equal(ours, theirs)


def test_block_adam_continues_from_its_state():
    def run(steps, state=None, start=None):
        weight = torch.nn.Parameter(torch.ones(6, 3) if start is None else start)
        optimizer = BlockAdam([weight], {weight: BlockRule()}, 0.1, (0.9, 0.99), 1e-8)
        if state:
            optimizer.load_state_dict(state)
        for step in steps:
            weight.grad = torch.full_like(weight, float(step + 1))
            optimizer.step()
        return weight.detach(), optimizer.state_dict()

    whole, _ = run(range(5))
    half, state = run(range(3))
    rest, _ = run(range(3, 5), state, half)
    assert torch.equal(whole, rest)
    assert set(state["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
