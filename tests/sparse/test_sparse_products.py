"""The sparse products and their gradients equal those of the dense formulas, on every path."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saetool.sparse import kernels
from saetool.sparse.adam import BlockAdam, BlockRule
from saetool.sparse.gradients import Along, Outer
from saetool.sparse.products import decode, pre_activations, row_norms
from saetool.sparse.support import Support


@pytest.fixture(params=["as built", "without sampled_addmm"], autouse=True)
def path(request, monkeypatch):
    """Run every test with and without the kernel that needs MKL."""
    if request.param != "as built":
        monkeypatch.setattr(kernels, "has_sampled_addmm", lambda device, dtype: False)


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
def test_block_adam_is_adam(unit, monkeypatch):
    """Twenty steps over deferred and ordinary gradients end where torch.optim.Adam ends."""
    monkeypatch.setattr("saetool.sparse.adam.BLOCK", 7)
    g = torch.Generator().manual_seed(0)
    start, table = torch.randn(30, 5, generator=g), torch.randn(11, 5, generator=g)
    ours, bias = torch.nn.Parameter(start.clone()), torch.nn.Parameter(torch.zeros(5))
    theirs, their_bias = torch.nn.Parameter(start.clone()), torch.nn.Parameter(torch.zeros(5))
    project = (lambda w, grad: grad.mul_(0.5)) if unit else None
    restored = []
    rule = BlockRule(project=project, restore=(lambda a, b: restored.append((a, b))) if unit else None)
    optimizer = BlockAdam([ours, bias], {ours: rule}, 1e-2, (0.9, 0.99), 1e-8)
    adam = torch.optim.Adam([theirs, their_bias], 1e-2, (0.9, 0.99), 1e-8)
    for step in range(20):
        _, support = random_support(11, 30, 0.2, step)
        weights = torch.randn(support.rows.numel(), generator=g)
        by_latent = support.by_latent
        outer = Outer(by_latent.rows, weights[by_latent.order], by_latent.offsets, table)
        along = Along(ours.detach().clone(), torch.randn(30, generator=g))
        rule.sink += [outer, along]
        bias.grad = torch.randn(5, generator=g)
        theirs.grad = (outer.whole() + along.whole()) * (0.5 if unit else 1.0)
        their_bias.grad = bias.grad.clone()
        optimizer.step()
        adam.step()
        assert not rule.sink
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(bias, their_bias)
    assert float(optimizer.state[ours]["step"]) == 20
    assert restored[:5] == ([(0, 7), (7, 14), (14, 21), (21, 28), (28, 30)] if unit else [])


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
