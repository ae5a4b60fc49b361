"""The sparse products and their gradients equal those of the dense formulas, on every path."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from saetool.sparse import backends
from saetool.sparse.adam import RowRule, SparseAdam
from saetool.sparse.backends import backend_for
from saetool.sparse.codes import Support
from saetool.sparse.gradients import DeferredGradient
from saetool.sparse.ops import decode, gather, latent_sums, pre_activations, row_norms, squared_error
from saetool.sparse.weight import Weight


@pytest.fixture(params=["cpu", "reference"], autouse=True)
def backend(request, monkeypatch):
    """Run every test on the compiled backend (float64 is the reference's in any case) and on the reference."""
    monkeypatch.setenv(backends.SWITCH, request.param)


def random_support(rows, n_latents, share, seed):
    kept = torch.rand(rows, n_latents, generator=torch.Generator().manual_seed(seed)) < share
    return kept, Support.from_rows(*kept.nonzero(as_tuple=True), rows, n_latents)


shapes = st.tuples(st.integers(1, 30), st.integers(1, 12), st.integers(1, 40))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
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
        z = torch.where(kept, a, 0.0).tanh() * leaves["bias"]
        cost = (z.sum(0) ** 2).sum() + leaves["decoder"].norm(dim=1).sum()
        return (z @ leaves["decoder"] - target).square().sum() + cost

    def sparse(recipes):
        centered = x - leaves["center"].detach()
        values = ((centered @ leaves["encoder"].T + leaves["bias"]).detach())[kept]
        a = pre_activations(values, centered, leaves["center"], leaves["encoder"], leaves["bias"], support, recipes[0])
        z = a.tanh() * gather(leaves["bias"], support)
        x_hat = decode(z, Weight(leaves["decoder"]), support, recipes[1])
        cost = (latent_sums(z, support) ** 2).sum() + row_norms(leaves["decoder"], recipes[1]).sum()
        return (x_hat - target).square().sum() + cost

    expected = torch.autograd.grad(dense(), list(leaves.values()))
    found = torch.autograd.grad(sparse((None, None)), list(leaves.values()))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)

    recipes = (DeferredGradient(), DeferredGradient())
    rest = [leaves["bias"], leaves["center"]]
    deferred = torch.autograd.grad(sparse(recipes), [*rest, leaves["encoder"], leaves["decoder"]], allow_unused=True)
    assert deferred[2:] == (None, None)
    for recipe, whole in zip(recipes, (expected[0], expected[3]), strict=True):
        cut = n_latents // 2
        blocks = [recipe.block(a, b, backend_for(whole)) for a, b in ((0, cut), (cut, n_latents)) if b > a]
        torch.testing.assert_close(torch.cat(blocks), whole, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
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
    error, errors, found = squared_error(values, Weight(weight), bias, x, support)
    tolerance = {"rtol": 1e-4, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(found, residual.detach(), **tolerance)
    torch.testing.assert_close(error, residual.square().sum(), **tolerance)
    torch.testing.assert_close(errors, residual.detach().square().sum(1), **tolerance)
    torch.testing.assert_close(torch.autograd.grad(3 * error, leaves), expected, **tolerance)
    recipe = DeferredGradient()
    again = squared_error(values, Weight(weight), bias, x, support, recipe)[0]
    deferred = torch.autograd.grad(3 * again, leaves, allow_unused=True)
    assert deferred[1] is None
    torch.testing.assert_close(recipe.block(0, n_latents, backend_for(weight)), expected[1], **tolerance)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(shapes, st.integers(0, 99))
def test_dropping_entries_keeps_rows_offsets_and_the_order_by_latent(shape, seed):
    rows, _, n_latents = shape
    _, support = random_support(rows, n_latents, 0.5, seed)
    kept = torch.rand(support.rows.numel(), generator=torch.Generator().manual_seed(seed)) < 0.5
    some = support.where(kept)
    fresh = Support.from_rows(support.rows[kept], support.latents[kept], rows, n_latents)
    assert torch.equal(some.offsets, fresh.offsets)
    backend = backend_for(support.latents)
    for name in ("order", "rows", "offsets"):
        found, wanted = (getattr(each.by_latent(backend), name) for each in (some, fresh))
        assert torch.equal(found, wanted), name


def test_sparse_adam_continues_from_its_state():
    def run(steps, state=None, start=None):
        weight = torch.nn.Parameter(torch.ones(6, 3) if start is None else start)
        optimizer = SparseAdam([weight], {weight: RowRule(Weight(weight))}, 0.1, (0.9, 0.99), 1e-8)
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
