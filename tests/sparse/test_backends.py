"""Every backend computes what the formulas written out densely in float64 give: values, gradients, support, updates.

Triton's kernels run in its interpreter here, on CPU tensors; on a GPU `scripts/check_gpu.py` does the same.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from saetool.errors import RequestError
from saetool.sparse import backends
from saetool.sparse.backends import AdamStep, Backend, backend_for, finish
from saetool.sparse.backends.cpu import backend as cpu
from saetool.sparse.backends.plain import Scales
from saetool.sparse.codes import Support
from saetool.sparse.gradients import Along, DeferredGradient, Outer
from saetool.sparse.weight import Weight


@dataclass
class Case:
    """Rows, a dictionary, and what stands at the seams: see `CASES`."""

    x: Tensor
    weight: Tensor
    bias: Tensor

    @property
    def outputs(self) -> Tensor:
        return self.x.double() @ self.weight.double().T + self.bias.double()


def case(rows=5, d_in=21, n_latents=45, seed=0) -> Case:
    g = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(rows, d_in, generator=g), torch.randn(n_latents, d_in, generator=g) / d_in**0.5
    return Case(x, weight, torch.randn(n_latents, generator=g) - 1.0)


def ragged():
    return case(3, 300, 77, seed=1)  # more columns than a tile, and no multiple of anything


def one_row_one_latent():
    return case(1, 1, 1)


def silent_rows():
    made = case()
    made.x[[0, 4]] = 0.0
    made.bias -= 2.0
    return made


def all_dead():
    made = case()
    made.bias[:] = -100.0
    return made


def always_on():
    made = case(12, 8, 24)
    made.bias[3] = 50.0
    return made


def ties():
    """Eighths, whose sums of products are exact in any order: elsewhere even equal columns may differ in a last bit."""
    made = case()
    made.x, made.weight = (made.x * 8).round() / 8, (made.weight * 8).round() / 8
    made.weight[:] = made.weight[0]
    made.bias[:] = 0.25
    return made


def not_a_number():
    made = case()
    made.x[2] = torch.nan
    made.weight[5] = torch.nan
    return made


CASES = [case, ragged, one_row_one_latent, silent_rows, all_dead, always_on, ties, not_a_number]


@pytest.fixture(params=["reference", "reference float64", "cpu", "cpu without bfloat16", "cuda"])
def backend(request, monkeypatch) -> Backend:
    if request.param == "cuda":
        pytest.importorskip("triton")
    monkeypatch.setenv(backends.SWITCH, request.param.split()[0])
    monkeypatch.setattr(cpu, "has_fast_half", lambda: "without" not in request.param)
    dtype = torch.float64 if "64" in request.param else torch.float32
    found = backend_for(torch.zeros(1, dtype=dtype))
    assert found.name == request.param.split()[0]
    found_dtype[found.name] = dtype
    return found


found_dtype: dict[str, torch.dtype] = {}
STEPS = {"reference": 4, "cpu": 4, "cuda": 2}
"""Steps of an update: in the interpreter, which is slow, one and another that starts from its moments."""


def cast(backend: Backend, *tensors: Tensor) -> list[Tensor]:
    return [t.to(found_dtype[backend.name]) for t in tensors]


def dense(support: Support, values: Tensor) -> Tensor:
    z = torch.zeros(support.n_rows, support.n_latents, dtype=torch.float64)
    return z.index_put((support.rows, support.latents), values.double(), accumulate=True)


def check_support(support: Support) -> None:
    """Offsets, rows and latents tell one story, and latents ascend where values are not padding."""
    assert support.offsets[0] == 0
    assert support.offsets[-1] == support.latents.numel()
    counted = torch.repeat_interleave(torch.arange(support.n_rows), support.offsets.diff())
    assert torch.equal(support.rows, counted)


@pytest.mark.parametrize("made", CASES)
def test_what_exceeds_the_threshold_is_found(backend, made):
    data = made()
    x, weight, bias = cast(backend, data.x, data.weight, data.bias)
    cut = torch.linspace(-0.2, 0.4, len(bias), dtype=bias.dtype)
    support, values = finish(backend.search(x, Weight(weight), bias, "exact", cut=cut))
    check_support(support)
    found = torch.full(data.outputs.shape, -torch.inf, dtype=torch.float64)
    found[support.rows, support.latents] = values.double()
    above = data.outputs > cut
    sure = (data.outputs - cut).abs() > 1e-5
    assert torch.equal((found > cut)[sure], above[sure])
    torch.testing.assert_close(found[above & sure], data.outputs[above & sure], rtol=1e-5, atol=1e-5)
    assert not above[data.outputs.isnan()].any()
    assert (support.latents.numel() > 0) == bool(above.any())


@pytest.mark.parametrize("k", [4, 45])
@pytest.mark.parametrize("made", CASES)
def test_the_k_largest_are_found_and_of_equals_the_first(backend, made, k):
    data = made()
    x, weight, bias = cast(backend, data.x, data.weight, data.bias)
    k = min(k, len(bias))
    support, values = finish(backend.search(x, Weight(weight), bias, "exact", k=k))
    check_support(support)
    found = dense(support, values)
    outputs = data.outputs.nan_to_num(-1.0)
    order = torch.sort(outputs, dim=1, descending=True, stable=True).indices[:, :k]
    wanted = torch.zeros_like(outputs).scatter(1, order, outputs.gather(1, order)).clamp_min(0)
    kth = outputs.gather(1, order)[:, -1:]
    sure = ((outputs - kth).abs() > 1e-5) | (made is ties)
    torch.testing.assert_close(found[sure], wanted[sure], rtol=1e-5, atol=1e-5)
    assert ((found > 0).sum(1) <= k).all()
    codes = support.codes(values)
    assert torch.equal(codes.dense().double(), found)
    assert (torch.diff(codes.latents)[torch.diff(codes.row_of_entry()) == 0] > 0).all()


@pytest.mark.parametrize("made", [case, ragged, always_on])
def test_bfloat16_decides_within_its_rounding(backend, made):
    data = made()
    x, weight, bias = cast(backend, data.x, data.weight, data.bias)
    reach = data.x.norm(dim=1, keepdim=True) * data.weight.norm(dim=1) + data.bias.abs()
    margin = 2.0**-7 * reach.double()
    support, values = finish(backend.search(x, Weight(weight), bias, "bf16", cut=torch.zeros_like(bias)))
    found = dense(support, values)
    assert (found > 0)[data.outputs > margin].all()
    assert not (found > 0)[data.outputs < -margin].any()
    there = found > 0
    assert ((found - data.outputs).abs() <= margin)[there].all()
    support, values = finish(backend.search(x, Weight(weight), bias, "bf16", k=4))
    found = dense(support, values)
    kth = data.outputs.topk(4, dim=1).values[:, -1:].clamp_min(0)
    assert (found > 0)[data.outputs > kth + 2 * margin.amax(1, keepdim=True)].all()
    assert not (found > 0)[data.outputs < kth - 2 * margin.amax(1, keepdim=True)].any()


@pytest.mark.parametrize("apart", [1e-3, 1e-4])
def test_exact_mode_finds_what_16_bits_misjudge(backend, apart):
    """Dozens of latents within ± 4 · apart of the threshold."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 64, generator=g)
    weight = torch.randn(64, generator=g) / 8 + apart * torch.randn(150, 64, generator=g)
    bias = -(x[0] @ weight[0]).expand(150).contiguous()
    data = Case(x, weight, bias)
    assert (data.outputs[0].abs() < 4 * apart).sum() > 30
    x, weight, bias = cast(backend, x, weight, bias)
    for k, bound in ((None, torch.zeros(1)), (20, data.outputs.topk(20, dim=1).values[:, -1:])):
        if k is None:
            support, values = finish(backend.search(x, Weight(weight), bias, "exact", cut=torch.zeros_like(bias)))
        else:
            support, values = finish(backend.search(x, Weight(weight), bias, "exact", k=k))
        sure = (data.outputs - bound).abs() > 1e-5
        wanted = (data.outputs >= bound) & (data.outputs > 0)
        assert torch.equal((dense(support, values) > 0)[sure], wanted[sure])


@pytest.mark.parametrize("scale", [1e5, 1e-7])
def test_exact_mode_finds_what_16_bits_do_not_hold(backend, scale):
    data = case()
    x, weight = cast(backend, data.x * scale, data.weight)
    bias = weight.new_zeros(len(weight))
    outputs = (data.x * scale).double() @ data.weight.double().T
    sure = outputs.abs() > 1e-5 * scale
    support, values = finish(backend.search(x, Weight(weight), bias, "exact", cut=bias))
    found = dense(support, values.clamp_min(0))
    torch.testing.assert_close(found[sure], outputs.clamp_min(0)[sure], rtol=1e-4, atol=1e-6 * scale)
    support, values = finish(backend.search(x, Weight(weight), bias, "exact", k=4))
    wanted = torch.where(outputs >= outputs.topk(4, dim=1).values[:, -1:], outputs, 0.0).clamp_min(0)
    torch.testing.assert_close(dense(support, values)[sure], wanted[sure], rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize("wanted", ["threshold", "k"])
@pytest.mark.parametrize("precision", ["exact", "bf16"])
def test_room_behind_the_entries_changes_nothing(monkeypatch, precision, wanted):
    pytest.importorskip("triton")
    from saetool.sparse.backends.cuda import launch

    monkeypatch.setenv(backends.SWITCH, "cuda")
    monkeypatch.setattr(launch, "CHUNK", 8)
    data = always_on()
    backend, weight, bias = backend_for(data.x), Weight(data.weight), data.bias
    given = {"cut": torch.zeros_like(bias)} if wanted == "threshold" else {"k": 5}
    results = []
    for more in (None, 40):
        search = backend.search(data.x, weight, bias, precision, **given)
        numbers = search.numbers.tolist()
        support, values = search.found(numbers, None if more is None else numbers[0] + more)
        if more and wanted == "threshold":
            assert len(support.latents) == numbers[0] + more
            assert (values[numbers[0] :] < -1e20).all()
        z = values.relu()
        error, residual, slopes = backend.squared_error(support, z, weight, data.x[0], data.x)
        total = int(support.offsets[-1])
        sums = backend.latent_sums(support, z), backend.latent_gradient(support, z, data.x, 0, len(bias))
        codes = support.codes(values)
        results.append([error, residual, slopes[:total], *sums, codes.offsets, codes.latents, codes.values])
    for plain, roomy in zip(*results, strict=True):
        assert torch.equal(plain, roomy)


def test_a_row_that_no_width_holds_is_decided_all_the_same(monkeypatch):
    pytest.importorskip("triton")
    from saetool.sparse.backends.cuda import launch

    monkeypatch.setenv(backends.SWITCH, "cuda")
    monkeypatch.setattr(launch, "WIDEST", 16)
    data = ties()
    support, values = finish(backend_for(data.x).search(data.x, Weight(data.weight), data.bias, "exact", k=5))
    found = dense(support, values)
    assert ((found > 0)[:, :5] == (data.outputs[:, :1] > 0)).all()
    assert not (found > 0)[:, 5:].any()


def random_codes(rows, n_latents, share, seed) -> tuple[Support, Tensor]:
    g = torch.Generator().manual_seed(seed)
    kept = torch.rand(rows, n_latents, generator=g) < share
    kept[:, 3 % n_latents] = share > 0  # a latent active on every row
    kept[0] = False
    support = Support.from_rows(*kept.nonzero(as_tuple=True), rows, n_latents)
    return support, torch.randn(support.latents.numel(), generator=g)


@pytest.mark.parametrize(("rows", "d_in", "n_latents", "share"), [(9, 21, 45, 0.2), (40, 5, 7, 0.6), (6, 260, 9, 0.0)])
def test_sums_over_entries_are_those_of_the_dense_formulas(backend, rows, d_in, n_latents, share, monkeypatch):
    if backend.name == "cuda":
        from saetool.sparse.backends.cuda import launch

        monkeypatch.setattr(launch, "CHUNK", 16)  # so that some latents are longer than one
    data = case(rows, d_in, n_latents)
    support, values = random_codes(rows, n_latents, share, 2)
    z = dense(support, values)
    x, weight, values, bias = cast(backend, data.x, data.weight, values, data.x[0])
    # A GPU reads the tables that many entries gather from in bfloat16.
    close = {"rtol": 1e-5, "atol": 1e-5} if backend.name != "cuda" else {"rtol": 2**-6, "atol": 2**-6 * rows**0.5}
    exact = {"rtol": 1e-5, "atol": 1e-5}
    by_latent = support.by_latent(backend)
    assert torch.equal(support.latents[by_latent.order], support.latents.sort(stable=True).values)
    assert torch.equal(by_latent.rows, support.rows[by_latent.order])
    assert torch.equal(by_latent.offsets.diff(), torch.bincount(support.latents, minlength=n_latents))
    found = backend.decode(support, values, Weight(weight))
    torch.testing.assert_close(found.double(), z @ data.weight.double(), **exact)
    found = backend.latent_sums(support, values)
    torch.testing.assert_close(found.double(), z.sum(0), **exact)
    found = backend.sampled_products(support, Weight(weight), x)
    products = data.x.double() @ data.weight.double().T
    torch.testing.assert_close(found.double(), products[support.rows, support.latents], **exact)
    for start, stop in ((0, n_latents), (2, 5)):
        found = backend.latent_gradient(support, values, x, start, stop)
        torch.testing.assert_close(found.double(), (z.T @ data.x.double())[start:stop], **close)
    errors, residual, slopes = backend.squared_error(support, values, Weight(weight), bias, x)
    r = data.x.double() - data.x[0].double() - z @ data.weight.double()
    torch.testing.assert_close(residual.double(), r, **close)
    torch.testing.assert_close(errors.double(), r.square().sum(1), **(close | {"atol": close["atol"] * d_in}))
    slopes_there = (r @ data.weight.double().T)[support.rows, support.latents]
    torch.testing.assert_close(slopes.double(), slopes_there, **(close | {"atol": close["atol"] * 2}))
    weights = torch.linspace(-1, 1, rows, dtype=x.dtype)
    torch.testing.assert_close(backend.column_sums(x), x.sum(0), **exact)
    torch.testing.assert_close(backend.column_sums(x, weights), (weights[:, None] * x).sum(0), **exact)


def test_centering_is_the_formula(backend):
    data = case(7, 33)
    x, mean, bias = data.x.bfloat16(), data.weight[0, :21].repeat(2)[:33], data.weight[1, :21].repeat(2)[:33]
    mean, bias, factor = cast(backend, mean, bias, torch.tensor(1.7))
    for given in (mean, None):
        units, centered = backend.center(x, given, factor, bias)
        wanted = x.to(bias) if given is None else (x.to(bias) - mean) * factor
        torch.testing.assert_close(units, wanted)
        torch.testing.assert_close(centered, wanted - bias)


def recipe(backend, table, other, count):
    """Return a gradient as a recipe, of one term or (with `other`) of two, and the same in float64."""
    support, weights = random_codes(11, 30, 0.2, count)
    (weights,) = cast(backend, weights)
    gradient, whole = DeferredGradient([Outer(support, weights, table)]), dense(support, weights).T @ table.double()
    if other is None:
        return gradient, whole
    gradient.terms.append(Along(other, torch.ones(30, dtype=other.dtype)))
    return gradient, whole + other


def assert_copy_has_followed(weight, backend):
    """The copy of a weight, where one was asked for, is that of its rows as they are now."""
    if weight.copy is not None:
        kept = weight.copied(type(weight.copy))
        fresh = Weight(weight.tensor.detach().clone()).copied(type(weight.copy))
        assert kept is weight.copy
        for name in ("half",) if backend.name == "cuda" else ("weight",):
            torch.testing.assert_close(getattr(kept, name), getattr(fresh, name), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("terms", ["deferred", "two terms", "in memory"])
def test_an_update_is_adams(backend, terms, unit):
    """A few steps end where torch.optim.Adam and two lines around it end, and the weight's copy has followed."""
    g = torch.Generator().manual_seed(0)
    start, table = torch.randn(30, 45, generator=g), torch.randn(11, 45, generator=g).bfloat16().float()
    other = torch.randn(30, 45, generator=g)
    start, table, other = cast(backend, torch.nn.functional.normalize(start, dim=1), table, other)
    ours, theirs = Weight(torch.nn.Parameter(start.clone())), torch.nn.Parameter(start.double())
    moments = torch.zeros_like(start), torch.zeros_like(start)
    adam = torch.optim.Adam([theirs], 1e-2, (0.9, 0.99), 1e-8)
    if backend.name != "reference":
        finish(backend.search(table, ours, table.new_zeros(30), "exact", cut=table.new_zeros(30)))
        assert ours.copy is not None or not cpu.has_fast_half()
    for count in range(1, STEPS[backend.name] + 1):
        gradient, whole = recipe(backend, table, other if terms == "two terms" else None, count)
        grad = torch.cat([gradient.block(0, 13, backend), gradient.block(13, 30, backend)]).double()
        torch.testing.assert_close(grad, whole, rtol=1e-4, atol=1e-4)
        theirs.grad = whole - ((whole * theirs).sum(1, keepdim=True) * theirs.detach() if unit else 0)
        if terms == "in memory":
            gradient = DeferredGradient(dense=gradient.block(0, 30, backend))
        backend.update(ours, gradient, moments, AdamStep(1e-2, (0.9, 0.99), 1e-8, count), unit)
        adam.step()
        if unit:
            theirs.data /= theirs.data.norm(dim=1, keepdim=True)
    torch.testing.assert_close(ours.tensor.double(), theirs, rtol=1e-3, atol=1e-4)
    state = adam.state[theirs]
    torch.testing.assert_close(moments[1].double(), state["exp_avg_sq"], rtol=1e-3, atol=1e-6)
    assert_copy_has_followed(ours, backend)


LOOSE = {"rtol": 1e-3, "atol": 1e-4}


@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("terms", ["deferred", "two terms"])
def test_a_scaled_update_moves_what_the_scales_leave(backend, terms, unit):
    """W = before · V: Adam moves V, with before · dW; then W = after · V', or V' / ‖V'‖ and after = ‖V'‖."""
    g = torch.Generator().manual_seed(0)
    start, table = torch.randn(30, 45, generator=g), torch.randn(11, 45, generator=g).bfloat16().float()
    scales = torch.rand(2, 30, generator=g) + 0.2
    start, table, other, *scales = cast(backend, start / start.norm(dim=1, keepdim=True), table, start.flip(0), *scales)
    ours, moments = Weight(torch.nn.Parameter(start.clone())), (torch.zeros_like(start), torch.zeros_like(start))
    theirs = torch.nn.Parameter(start.double() / scales[0][:, None])
    adam, before = torch.optim.Adam([theirs], 1e-2, (0.9, 0.99), 1e-8), scales[0]
    if backend.name != "reference":
        finish(backend.search(table, ours, table.new_zeros(30), "exact", cut=table.new_zeros(30)))
    for count in range(1, STEPS[backend.name] + 1):
        gradient, whole = recipe(backend, table, other if terms == "two terms" else None, count)
        theirs.grad = whole * before[:, None]
        after = torch.zeros_like(before) if unit else scales[count % 2]
        step = AdamStep(1e-2, (0.9, 0.99), 1e-8, count)
        backend.update(ours, gradient, moments, step, unit, Scales(before, after))
        adam.step()
        if unit:
            torch.testing.assert_close(after.double(), theirs.detach().norm(dim=1), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(ours.tensor.double() / after[:, None] ** (-1 if unit else 1), theirs, **LOOSE)
        before = after.reciprocal() if unit else after
    torch.testing.assert_close(moments[1].double(), adam.state[theirs]["exp_avg_sq"], **LOOSE)
    assert_copy_has_followed(ours, backend)


def test_a_vector_is_updated_like_a_row(backend):
    (start,) = cast(backend, torch.randn(1500, generator=torch.Generator().manual_seed(0)))
    ours, theirs = start.clone(), torch.nn.Parameter(start.clone())
    moments = torch.zeros_like(start), torch.zeros_like(start)
    adam = torch.optim.Adam([theirs], 1e-2)
    for count in range(1, 4):
        theirs.grad = torch.sin(start * count)
        step = AdamStep(1e-2, (0.9, 0.999), 1e-8, count)
        backend.update(Weight(ours), DeferredGradient(dense=theirs.grad), moments, step, False)
        adam.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-5)


def test_a_changed_weight_is_copied_again(backend):
    data = case()
    x, tensor, bias = cast(backend, data.x, data.weight, data.bias)
    weight, cut = Weight(tensor), torch.zeros_like(bias)
    finish(backend.search(x, weight, bias, "exact", cut=cut))
    tensor.mul_(-1.0)
    support, values = finish(backend.search(x, weight, bias, "exact", cut=cut))
    wanted = (x @ tensor.T + bias).double().clamp_min(0)
    torch.testing.assert_close(dense(support, values).clamp_min(0), wanted, rtol=1e-5, atol=1e-5)


def test_each_kind_of_copy_follows_the_weight():
    pytest.importorskip("triton")
    from saetool.sparse.backends.cuda.launch import FineCopy, HalfCopy

    weight = Weight(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)))
    half, fine = weight.copied(HalfCopy), weight.copied(FineCopy)
    weight.tensor.mul_(2.0)
    half.half.copy_(weight.tensor)  # as an optimizer does that has the rows at hand
    weight.mark_current(half)
    half.half[0, 0] = 99.0
    assert weight.copied(HalfCopy).half[0, 0] == 99.0, "renewed though it was said to be current"
    assert torch.equal(weight.copied(FineCopy).half, weight.tensor.half())
    assert weight.copied(FineCopy) is fine
    assert weight.copied(HalfCopy) is half


def test_the_choice_is_made_in_one_place_and_can_be_overridden(monkeypatch):
    x = torch.zeros(1)
    monkeypatch.delenv(backends.SWITCH, raising=False)
    assert backend_for(x).name == "cpu"
    assert backend_for(x.double()).name == "reference"
    assert backend_for(x, x.double()).name == "reference"
    assert backends.default_precision(x.device) == "exact"
    monkeypatch.setenv(backends.SWITCH, "reference")
    assert backend_for(x).name == "reference"
    monkeypatch.setenv(backends.SWITCH, "gpu")
    with pytest.raises(RequestError, match="SAETOOL_BACKEND is 'gpu'; it can be reference, cpu, cuda"):
        backend_for(x)


def test_without_numba_the_reference_serves_and_says_why(monkeypatch):
    from saetool.sparse.backends import cpu

    monkeypatch.delenv(backends.SWITCH, raising=False)
    monkeypatch.setattr(cpu, "missing", lambda: "pip install 'saetool[cpu]' compiles the loops and is faster")
    backends._choice.cache_clear()
    try:
        assert backend_for(torch.zeros(1)).name == "reference"
        assert "sparse backend reference (pip install 'saetool[cpu]'" in backends.describe(torch.device("cpu"))
        monkeypatch.setenv(backends.SWITCH, "cpu")
        with pytest.raises(RequestError, match="SAETOOL_BACKEND is 'cpu', but pip install"):
            backend_for(torch.zeros(1))
    finally:
        backends._choice.cache_clear()
