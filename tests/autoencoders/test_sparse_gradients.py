"""Loss and gradients of every variant equal the formulas written out with dense autograd, in float64 and float32."""

import math

import pytest
import torch
from torch.nn.functional import one_hot

from saetool.autoencoders.base import UNKNOWN, Step
from saetool.autoencoders.sparse import SparseAutoencoder
from saetool.autoencoders.sparse_settings import SparseSettings
from saetool.sparse import backends

VARIANTS = {
    "relu": {"penalty": {"kind": "l1", "weight": 0.25, "warmup_steps": 0}},
    "relu weighted": {"penalty": {"kind": "l1", "weight": 0.25, "norm": "weighted", "warmup_steps": 0}},
    "relu alone": {},
    "relu matryoshka": {"penalty": {"kind": "l1", "weight": 0.125, "warmup_steps": 0}, "matryoshka": (3, 9)},
    "sigmoid": {"activation": {"kind": "sigmoid"}, "penalty": {"kind": "kl", "rho": 0.05, "weight": 0.75}},
    "one_minus_exp": {"activation": {"kind": "one_minus_exp"}, "penalty": {"kind": "kl", "rho": 0.1, "weight": 0.75}},
    "one_minus_exp l1": {
        "activation": {"kind": "one_minus_exp"},
        "penalty": {"kind": "l1", "weight": 0.25, "norm": "weighted", "warmup_steps": 0},
    },
    "topk": {"activation": {"kind": "topk", "k": 4}},
    "topk auxk": {"activation": {"kind": "topk", "k": 4}, "dead": {"kind": "auxk", "k": 3, "after_tokens": 10}},
    "batch_topk": {"activation": {"kind": "batch_topk", "k": 4}},
    "batch_topk matryoshka": {"activation": {"kind": "batch_topk", "k": 4}, "matryoshka": (5, 11)},
    "jump_relu": {
        "activation": {"kind": "jump_relu", "threshold": 0.2, "bandwidth": 0.3},
        "penalty": {"kind": "l0", "weight": 0.5, "warmup_steps": 0},
    },
    "jump_relu dead": {
        "activation": {"kind": "jump_relu", "threshold": 0.2, "bandwidth": 0.3},
        "penalty": {"kind": "l0", "weight": 0.5, "warmup_steps": 0},
        "dead": {"kind": "pre_activation", "weight": 0.2, "after_tokens": 10},
    },
    "gated": {"activation": {"kind": "gated"}, "penalty": {"kind": "l1", "weight": 0.25, "warmup_steps": 0}},
}
DEAD = {"topk auxk": 7, "jump_relu dead": 7}
"""Latents that count as dead before the step, from the last one on."""


def kl(rho, q):
    q = (1 - 2e-6) * q + 1e-6  # the smoothing that the docs state
    return rho * torch.log(rho / q) + (1 - rho) * torch.log((1 - rho) / (1 - q))


def dense_loss(model, x):
    """Return the loss as its papers write it, every latent of every row in one tensor."""
    settings, kind = model.settings, model.settings.activation.kind
    W_enc, W_dec, b_enc, b_dec = model.W_enc, model.W_dec, model.b_enc, model.b_dec
    rows, d_in, n_latents = len(x), x.shape[1], model.n_latents
    a = (x - b_dec) @ W_enc.T + b_enc
    cost = None
    if kind == "relu":
        z = cost = a.clamp_min(0)
    elif kind == "sigmoid":
        z = 1 / (1 + torch.exp(-a))
    elif kind == "one_minus_exp":
        z = cost = 1 - torch.exp(-a.clamp_min(0))
    elif kind == "topk":
        z = a.clamp_min(0) * one_hot(a.topk(4, dim=1).indices, n_latents).sum(1)
    elif kind == "batch_topk":
        z = a.clamp_min(0) * one_hot(a.flatten().topk(4 * rows).indices, a.numel()).sum(0).view_as(a)
    elif kind == "jump_relu":
        theta, eps = model.activation.log_threshold.exp(), 0.3 * math.sqrt(d_in)
        near = ((a - theta).abs() < eps / 2).to(a.dtype).detach()
        moved = theta - theta.detach()
        z = a * (a > theta) - theta.detach() / eps * near * moved
        cost = (a > theta).to(a.dtype) - near / eps * moved
    else:
        magnitude = model.activation.log_scale.exp() * (a - b_enc) + model.activation.magnitude_bias
        z, cost = magnitude.clamp_min(0) * (a > 0), a.clamp_min(0)
    ends = [*(settings.matryoshka or ()), n_latents]
    errors = [(x - z[:, :m] @ W_dec[:m] - b_dec).square().sum(1).mean() for m in ends]
    total = sum(errors) / len(errors)
    penalty = settings.penalty
    if penalty.kind == "l1":
        norms = W_dec.norm(dim=1) if penalty.norm == "weighted" else 1.0
        total = total + penalty.weight * math.sqrt(d_in) * (cost * norms).sum(1).mean()
    if penalty.kind == "l0":
        total = total + penalty.weight * d_in * cost.sum(1).mean()
    if penalty.kind == "kl":
        total = total + penalty.weight * d_in * kl(penalty.rho, z.mean(0)).sum()
        total = total + penalty.decoder_decay / 2 * W_dec.square().sum()
    if kind == "gated":
        total = total + (x - cost @ W_dec.detach() - b_dec.detach()).square().sum(1).mean()
    dead = model.silence.dead(UNKNOWN)
    if settings.dead.kind == "auxk" and dead.any():
        top = torch.where(dead, a, -torch.inf).topk(3, dim=1).indices
        estimate = (a.clamp_min(0) * one_hot(top, n_latents).sum(1) * dead) @ W_dec
        residual = (x - z @ W_dec - b_dec).detach()
        total = total + settings.dead.weight * (residual - estimate).square().sum(1).mean()
    if settings.dead.kind == "pre_activation" and dead.any():
        gap = (theta - (x.detach() - b_dec.detach()) @ W_enc.T - b_enc).clamp_min(0) * dead * W_dec.norm(dim=1).detach()
        total = total + settings.dead.weight * math.sqrt(d_in) * gap.sum(1).mean()
    return total


def make(name, d_in=6, n_latents=24, shift=0.0, **more):
    torch.manual_seed(len(name))
    # Toys are far denser than what the sparse step is for, and it is what is tested.
    keys = {"normalize": "none", "sparse_below": 1.0, "codes": "exact", **VARIANTS[name], **more}
    settings = SparseSettings(kind="sparse", n_latents=n_latents, **keys)
    model = SparseAutoencoder(settings, d_in)
    with torch.no_grad():
        for parameter in (model.W_enc, model.b_enc, model.b_dec):
            parameter += 0.3 * torch.randn_like(parameter)
        model.b_enc += shift
        if not model.unit_decoder:
            model.W_dec *= 1 + torch.rand(n_latents, 1)
        for parameter in model.activation.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.silence.silent_tokens[n_latents - DEAD.get(name, 0) :] = 10**9
    return model


def gradients(model, loss):
    for parameter in model.parameters():
        parameter.grad = None
    loss.backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}


def compare(model, x, rtol, atol):
    expected_loss = dense_loss(model, x)
    expected = gradients(model, expected_loss)
    record = model.loss(x, Step(0), torch.Generator())
    found = gradients(model, record.total)
    torch.testing.assert_close(record.total, expected_loss, rtol=rtol, atol=atol)
    for name, grad in expected.items():
        scale = float(grad.abs().max().clamp_min(1.0))
        torch.testing.assert_close(found[name], grad, rtol=rtol, atol=atol * scale, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("dense", [False, True], ids=["sparse step", "dense step"])
@pytest.mark.parametrize("name", VARIANTS)
def test_float64_equals_dense_autograd(name, dense):
    model = make(name).double()
    model._dense = dense or model.activation.dense_only
    for rows in (1, 7, 300):
        x = torch.randn(rows, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
        compare(model, x, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "sigmoid"])
def test_float32_equals_dense_autograd(name, backend, monkeypatch):
    monkeypatch.setenv(backends.SWITCH, backend)
    for d_in, n_latents, rows in ((6, 24, 50), (16, 67, 257)):
        model = make(name, d_in, n_latents)
        model._dense = False
        x = torch.randn(rows, d_in, generator=torch.Generator().manual_seed(rows))
        compare(model, x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "sigmoid"])
def test_on_a_gpu_gradients_are_those_of_dense_autograd_but_for_bfloat16_tables(name, monkeypatch):
    """In exact mode the support is the same; decoder, inputs and residuals are read in bfloat16."""
    pytest.importorskip("triton")
    monkeypatch.setenv(backends.SWITCH, "cuda")
    model = make(name)
    model._dense = False
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(1))
    compare(model, x, rtol=2e-2, atol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["relu weighted", "relu matryoshka", "one_minus_exp", "jump_relu dead", "gated"])
def test_the_dense_step_compiles_to_the_same_numbers(name, monkeypatch):
    """As it is compiled on a GPU; here for the CPU."""
    monkeypatch.setattr("saetool.autoencoders.sparse.compiled_dense", lambda function, device: torch.compile(function))
    model = make(name, 16, 67)
    model._dense = True
    compare(model, torch.randn(50, 16, generator=torch.Generator().manual_seed(3)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_rows_and_batches_without_active_latents(name):
    model = make(name, shift=-50.0 if name != "sigmoid" else -5.0).double()
    x = torch.randn(9, 6, dtype=torch.float64)
    compare(model, x, rtol=1e-6, atol=1e-8)
    record = model.loss(x, Step(0), torch.Generator())
    found = gradients(model, record.total)
    assert all(torch.isfinite(g).all() for g in found.values())
    x[4] += 200.0 * model.W_enc[3].detach()  # one row wakes up
    record = model.loss(x, Step(0), torch.Generator())
    assert all(torch.isfinite(g).all() for g in gradients(model, record.total).values())


@pytest.mark.parametrize("name", VARIANTS)
def test_total_is_the_sum_of_the_parts(name):
    model = make(name)
    record = model.loss(torch.randn(20, 6), Step(0), torch.Generator())
    torch.testing.assert_close(record.total, sum(record.parts.values()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "gain"),
    [
        *((name, None) for name in ("relu", "relu weighted", "topk auxk", "one_minus_exp", "batch_topk matryoshka")),
        *((name, 0.3) for name in ("topk auxk", "batch_topk matryoshka")),
    ],
)
def test_deferred_gradients_train_the_same_model(name, gain, monkeypatch):
    """Ten steps with gradients built in the optimizer equal ten with gradients in memory, compiled or not."""
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    trained = []
    for defer, backend in ((False, "reference"), (True, "reference"), (False, "cpu"), (True, "cpu")):
        monkeypatch.setenv(backends.SWITCH, backend)
        model = make(name, initial_gain=gain)
        optimizer = model.make_optimizer(1e-2, (0.9, 0.999), 1e-8)
        for step in range(10):
            now = Step(step, optimizer=optimizer if defer else None)
            loss = model.loss(x, now, torch.Generator())
            loss.total.backward()
            assert (model.W_enc.grad is None) == defer
            model.before_update()
            optimizer.step()
            optimizer.zero_grad()
            model.after_update(optimizer, now, torch.Generator(), [loss])
        trained.append(model)
    for other in trained[1:]:
        for (n, ours), theirs in zip(trained[0].named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=lambda m, n=n: f"{n}: {m}")
