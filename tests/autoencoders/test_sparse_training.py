"""What happens around the steps: initialization, warm-up, steering, thresholds, dead latents, evaluation."""

import copy
import math
import pickle

import pytest
import torch
from torch.nn.functional import normalize

from saetool import distributed
from saetool.activations import TensorStream
from saetool.autoencoders import sparse_activations, sparse_penalties
from saetool.autoencoders.base import UNKNOWN, Normalizer, Step, Training
from saetool.autoencoders.sparse import SparseAutoencoder
from saetool.autoencoders.sparse_dead import due, resample_directions
from saetool.autoencoders.sparse_penalties import kl_bernoulli, kl_penalty
from saetool.autoencoders.sparse_settings import SparseSettings
from saetool.errors import RequestError
from saetool.statistics import Statistics

L1 = {"kind": "l1", "weight": 0.15, "warmup_steps": 0}


def make(d_in=16, n_latents=128, **keys):
    return SparseAutoencoder(SparseSettings(kind="sparse", n_latents=n_latents, **keys), d_in)


def data(rows=4096, d_in=16, seed=0):
    """Return rows that are sparse sums of 40 directions, far from the origin."""
    g = torch.Generator().manual_seed(seed)
    directions = normalize(torch.randn(40, d_in, generator=g), dim=1)
    active = torch.rand(rows, 40, generator=g).topk(3).indices
    return torch.zeros(rows, 40).scatter_(1, active, torch.rand(rows, 3, generator=g) + 0.5) @ directions * 7 + 3


def started(**keys):
    model, x = make(**keys), data()
    model.initialize(TensorStream(x, batch_size=256), torch.Generator().manual_seed(0))
    return model, x


def take(model, batch, step, optimizer, generator=None, training=UNKNOWN):
    now = Step(step, training)
    record = model.loss(batch, now, generator or torch.Generator().manual_seed(step))
    record.total.backward()
    model.before_update()
    optimizer.step()
    optimizer.zero_grad()
    model.after_update(optimizer, now, generator or torch.Generator().manual_seed(step), [record])
    model.after_step(now)
    return record


def train(model, x, steps, lr=3e-3, batch=256):
    optimizer = model.make_optimizer(lr, (0.9, 0.999), 1e-8)
    for step in range(steps):
        start = step * batch % (len(x) - batch)
        record = take(model, x[start : start + batch], step, optimizer)
    return record, optimizer


@pytest.mark.parametrize(
    ("keys", "wanted", "scale"),
    [
        ({"penalty": L1, "initial_l0": 9}, 9, 2),
        ({"activation": {"kind": "gated"}, "penalty": L1, "initial_l0": 9}, 9, 1),
        ({"activation": {"kind": "jump_relu"}, "penalty": {"kind": "l0", "weight": 0.1}, "initial_l0": 9}, 9, 1),
        ({"activation": {"kind": "topk", "k": 5}}, 5, 1),
        ({"activation": {"kind": "topk", "k": 5}, "initial_norm": 0.6}, 5, 0.6),
        ({"penalty": L1, "initial_l0": 9, "initial_norm": 1.2}, 9, 1.2),
        ({"activation": {"kind": "batch_topk", "k": 5}}, 5, 1),
        ({"penalty": L1, "normalize": "none", "initial_l0": 9}, 9, 2),
    ],
)
def test_training_starts_at_the_wanted_l0_with_a_tied_encoder(keys, wanted, scale):
    model, x = started(**keys)
    record = model.loss(x, Step(0), torch.Generator())
    assert float(record.metrics["l0"]) == pytest.approx(wanted, rel=0.1)
    torch.testing.assert_close(model.W_dec.norm(dim=1), torch.ones(128))
    torch.testing.assert_close(model.W_enc, scale * model.W_dec)


def test_normalization_belongs_to_the_model():
    """Raw rows go in and come out: scaling the data scales reconstructions and leaves codes and loss alone."""
    small, x = started(penalty=L1)
    large = make(penalty=L1)
    large.initialize(TensorStream(x * 100 + 5, batch_size=256), torch.Generator().manual_seed(0))
    torch.testing.assert_close(small.encode(x[:50]), large.encode(x[:50] * 100 + 5), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(small(x[:50]) * 100 + 5, large(x[:50] * 100 + 5), rtol=1e-3, atol=1e-1)
    z = small.encode(x[:1])
    moved = x[:1] + 1e-3 * torch.randn(1, 16, generator=torch.Generator().manual_seed(1))
    a = (moved - x[:1]) @ small.encoder_directions().T
    torch.testing.assert_close(
        a, (small.normalizer(moved) - small.normalizer(x[:1])) @ small.W_enc.T, rtol=1e-2, atol=1e-4
    )
    one = small.decode(z + torch.nn.functional.one_hot(torch.tensor([7]), 128)) - small.decode(z)
    torch.testing.assert_close(one[0], small.decoder_directions()[7], rtol=1e-4, atol=1e-4)


def test_codes_from_all_doors_agree():
    for keys in (
        {"penalty": L1},
        {"activation": {"kind": "topk", "k": 5}},
        {"activation": {"kind": "batch_topk", "k": 5}},
    ):
        model, x = started(**keys)
        train(model, x, 5)
        model.eval()
        codes = model.encode_sparse(x[:300])
        assert torch.equal(codes.dense(), model.encode(x[:300]))
        assert (codes.values > 0).all()
        torch.testing.assert_close(model.decode_sparse(codes), model(x[:300]), rtol=1e-4, atol=1e-4)


def test_codes_in_evaluation_do_not_depend_on_the_batch():
    model, x = started(activation={"kind": "batch_topk", "k": 5})
    train(model, x, 60, lr=1e-4)
    model.eval()
    together = model.encode(x[:100])
    for i in (0, 31, 99):
        torch.testing.assert_close(model.encode(x[i : i + 1])[0], together[i], rtol=1e-5, atol=1e-5)
    assert float((together > 0).sum(1).float().mean()) == pytest.approx(5, rel=0.3)
    assert len(set((together > 0).sum(1).tolist())) > 1


def test_batch_topk_keeps_k_times_batch_and_remembers_the_cut():
    model, x = started(activation={"kind": "batch_topk", "k": 5})
    optimizer = model.make_optimizer(0.0, (0.9, 0.999), 1e-8)
    cuts = []
    for step in range(3):
        batch = x[step * 256 : step * 256 + 256]
        a = (model.normalizer(batch) - model.b_dec) @ model.W_enc.T + model.b_enc
        cuts.append(float(a.detach().flatten().topk(5 * 256).values.min()))
        record = take(model, batch, step, optimizer)
        assert float(record.metrics["l0"]) == 5
    weights = [0.99**2, 0.99, 1.0]
    expected = sum(w * c for w, c in zip(weights, cuts, strict=True)) / sum(weights)
    assert float(model.activation.threshold()) == pytest.approx(expected, rel=1e-4)
    assert "activation.running" in model.state_dict()


def test_batch_topk_takes_the_mean_cut_of_the_pieces_of_a_batch():
    cuts = []
    for pieces in ([0], [1], [0, 1]):
        model, x = started(activation={"kind": "batch_topk", "k": 5})
        losses = [model.loss(x[256 * piece : 256 * piece + 256], Step(0), torch.Generator()) for piece in pieces]
        model.activation.after_update([loss.kept.smallest for loss in losses])
        cuts.append(float(model.activation.threshold()))
    assert cuts[0] != cuts[1]
    assert cuts[2] == pytest.approx((cuts[0] + cuts[1]) / 2, rel=1e-5)


def test_batch_topk_looks_lower_when_its_guess_was_too_high():
    model, x = started(activation={"kind": "batch_topk", "k": 5})
    for guess in (0.0, 1e3):
        model.activation.guess.fill_(guess)
        assert float(model.loss(x[:256], Step(0), torch.Generator()).metrics["l0"]) == 5


def test_the_global_cut_is_the_kth_largest_of_all_processes(monkeypatch):
    """The search over bits that several processes use finds what sorting everything finds."""
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    alone = sparse_activations.global_kth_largest(values, 20)
    assert alone == values.sort(descending=True).values[19]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda t: t)
    assert torch.equal(sparse_activations.global_kth_largest(values, 20), alone)


def test_warm_up_reaches_the_loss():
    model, x = started(penalty={"kind": "l1", "weight": 0.2, "warmup_steps": 10})
    parts = [float(model.loss(x[:64], Step(step), torch.Generator()).parts["sparsity"]) for step in (0, 4, 9, 50)]
    assert parts[1] == pytest.approx(5 * parts[0])
    assert parts[2] == pytest.approx(10 * parts[0])
    assert parts[3] == pytest.approx(parts[2])


def test_l1_is_the_weight_times_root_d_times_the_sum_of_latents():
    model, x = started(penalty=L1)
    record = model.loss(x[:64], Step(0), torch.Generator())
    assert float(record.parts["sparsity"]) == pytest.approx(0.15 * 4 * float(record.metrics["l1"]), rel=1e-5)


PADDED = {
    "l1": {"penalty": L1},
    "weighted l1": {"penalty": L1 | {"norm": "weighted"}},
    "l0": {
        "activation": {"kind": "jump_relu", "threshold": 0.02, "bandwidth": 0.05},
        "penalty": {"kind": "l0", "weight": 0.01, "warmup_steps": 0},
    },
    "kl": {"activation": {"kind": "sigmoid"}, "penalty": {"kind": "kl", "rho": 0.05}},
}


@pytest.mark.parametrize("name", PADDED)
def test_a_weight_means_the_same_when_inputs_are_padded(name):
    """32 → 128 dimensions, the new ones 0: the whole loss and its gradients grow by 4, so L0 settles where it did."""
    x = data(d_in=32)
    narrow = make(32, **PADDED[name])
    narrow.initialize(TensorStream(x, batch_size=256), torch.Generator().manual_seed(0))
    padded, pad = make(128, **PADDED[name]), torch.nn.functional.pad
    padded.normalizer.fit(TensorStream(pad(x, (0, 96)), batch_size=256).statistics())
    assert float(padded.normalizer.factor) == pytest.approx(2 * float(narrow.normalizer.factor), rel=1e-5)
    # The same model in units twice as large: latents grow with them, unless they are probabilities.
    bounded = name == "kl"
    with torch.no_grad():
        padded.W_enc.copy_(pad(narrow.W_enc, (0, 96)) / (2 if bounded else 1))
        padded.b_enc.copy_(narrow.b_enc * (1 if bounded else 2))
        padded.W_dec.copy_(pad(narrow.W_dec, (0, 96)) * (2 if bounded else 1))
        padded.b_dec.copy_(pad(narrow.b_dec, (0, 96)) * 2)
    records = [m.loss(rows, Step(0), torch.Generator()) for m, rows in ((narrow, x), (padded, pad(x, (0, 96))))]
    for part, value in records[0].parts.items():
        assert float(records[1].parts[part]) == pytest.approx(4 * float(value), rel=1e-3), part
    assert float(records[1].metrics["l0"]) == pytest.approx(float(records[0].metrics["l0"]), rel=1e-3)
    if name == "l0":
        for record in records:
            record.total.backward()
        grads = [m.activation.log_threshold.grad for m in (narrow, padded)]
        torch.testing.assert_close(grads[1], 4 * grads[0], rtol=0.02, atol=0.02 * float(grads[1].abs().max()))


def test_weighted_l1_does_not_change_when_latents_shrink_and_decoder_rows_grow():
    model, x = started(penalty=L1 | {"norm": "weighted"})
    model, x = model.double(), x.double()
    before = float(model.loss(x[:64], Step(0), torch.Generator()).parts["sparsity"])
    with torch.no_grad():
        model.W_dec *= 3
        model.W_enc /= 3
        model.b_enc /= 3
    assert float(model.loss(x[:64], Step(0), torch.Generator()).parts["sparsity"]) == pytest.approx(before, rel=1e-6)


def test_unit_rows_stay_unit_and_gradients_do_not_point_along_them():
    model, x = started(penalty=L1)
    model.loss(x[:64], Step(0), torch.Generator()).total.backward()
    model.before_update()
    assert (model.W_dec.grad * model.W_dec).sum(1).abs().max() < 1e-4
    train(model, x, 20)
    torch.testing.assert_close(model.W_dec.norm(dim=1), torch.ones(128))


@pytest.mark.parametrize(("kind", "sparse_below"), [("topk", 1.0), ("batch_topk", 1.0), ("topk", 0.0)])
def test_gains_train_a_decoder_of_free_norms(kind, sparse_below):
    """As Adam over W, b and D of x_hat = D h + b_dec, h = W x' + b where h_j ‖D_j‖ is among the largest."""
    gain, k, rate = 0.3, 4, 1e-2
    model, x = started(activation={"kind": kind, "k": k}, initial_gain=gain, sparse_below=sparse_below)
    assert torch.allclose(model.W_enc.norm(dim=1), torch.tensor(0.1))
    W, b, D = (p.detach().double() for p in (model.W_enc / gain, model.b_enc / gain, model.W_dec * gain))
    weights = [torch.nn.Parameter(p) for p in (W, b, D, model.b_dec.detach().double())]
    adam, optimizer = torch.optim.Adam(weights, rate), model.make_optimizer(rate, (0.9, 0.999), 1e-8)
    for number in range(5):
        batch = x[number * 256 :][:256]
        W, b, D, b_dec = weights
        rows = model.normalizer(batch).double()
        h = (rows - b_dec) @ W.T + b
        sizes = (h * D.norm(dim=1)).detach().relu()
        wanted = k * len(batch) if kind == "batch_topk" else k
        found = sizes.flatten() if kind == "batch_topk" else sizes
        cut = found.topk(wanted).values[..., -1:]
        loss = ((h * (sizes >= cut)) @ D + b_dec - rows).square().sum() / len(batch)
        adam.zero_grad()
        loss.backward()
        adam.step()
        assert take(model, batch, number, optimizer).total.item() == pytest.approx(loss.item(), rel=1e-4)
    norms = weights[2].detach().norm(dim=1)
    assert norms.std() > 1e-3
    for ours, theirs in (
        (model.W_dec, weights[2] / norms[:, None]),
        (model.W_enc, weights[0] * norms[:, None]),
        (model.b_enc, weights[1] * norms),
        (optimizer.state[model.W_dec]["gain"], norms),
    ):
        torch.testing.assert_close(ours.detach().double(), theirs.detach(), rtol=1e-3, atol=1e-3)


def test_steering_gives_way_while_l0_falls():
    def moved(l0, mean):
        steered = make(penalty={"kind": "l1", "target_l0": 50, "warmup_steps": 0}).penalty_weight
        start = float(steered.weight)
        steered.after_update(Step(0), torch.tensor(l0), torch.tensor(mean))
        return float(steered.weight) / start

    assert moved(50.0, 50.0) == pytest.approx(1)
    assert moved(80.0, 80.0) == pytest.approx(1.6**0.02)
    assert moved(80.0, 100.0) == pytest.approx(1.6**0.02 * 0.8**0.1)
    assert moved(80.0, 100.0) < 1
    assert 0 < moved(0.0, 0.0) < 1


@pytest.mark.parametrize("target", [2.0, 3.5])
def test_target_l0_is_met(target):
    model, x = started(penalty={"kind": "l1", "target_l0": target, "warmup_steps": 10}, initial_l0=12)
    train(model, x, 400)
    l0 = float(model.loss(x, Step(1000), torch.Generator()).metrics["l0"])
    assert l0 == pytest.approx(target, rel=0.15)


def test_kl_has_the_values_of_the_tutorial():
    q = torch.tensor([0.01, 0.05, 0.1, 0.2, 0.5], dtype=torch.float64)
    expected = torch.tensor([0.04129, 0.0, 0.01671, 0.09394, 0.49463], dtype=torch.float64)
    torch.testing.assert_close(kl_bernoulli(0.05, q), expected, rtol=0, atol=5e-6)
    q.requires_grad_()
    kl_bernoulli(0.05, q).sum().backward()
    torch.testing.assert_close(q.grad, (-0.05 / q + 0.95 / (1 - q)).detach())


def test_kl_of_two_processes_is_that_of_their_common_mean(monkeypatch):
    """Averaging the processes' gradients gives the gradient of KL(ρ‖mean q)."""
    mine, other = torch.tensor([0.02, 0.3]), torch.tensor([0.1, 0.5])
    grads = []
    for own, foreign in ((mine, other), (other, mine)):
        monkeypatch.setattr(distributed, "all_reduce_mean", lambda t, f=foreign: (t + f) / 2)
        q = own.clone().requires_grad_()
        value = kl_penalty(0.05, q)
        value.backward()
        grads.append(q.grad)
    common = ((mine + other) / 2).requires_grad_()
    kl_bernoulli(0.05, common).sum().backward()
    assert float(value) == pytest.approx(float(kl_bernoulli(0.05, common).sum()), rel=1e-4)
    torch.testing.assert_close(grads[0], common.grad, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(grads[1], grads[0])


def test_kl_of_a_silent_latent_is_finite_and_has_a_gradient():
    q = torch.zeros(1, requires_grad=True)
    kl_penalty(0.05, q).backward()
    assert torch.isfinite(q.grad).all()
    assert float(q.grad) < -1000


def test_silence_is_counted_in_tokens():
    model, x = started(penalty=L1, dead={"kind": "resample", "after_tokens": 600})
    with torch.no_grad():
        model.b_enc[:5] = -1e4
    train(model, x, 3, lr=0.0)
    assert model.silence.silent_tokens[:5].tolist() == [768] * 5
    assert model.silence.dead(UNKNOWN)[:5].all()
    assert float(model.loss(x, Step(3), torch.Generator()).metrics["dead"]) >= 5 / 128


def test_the_dead_window_is_a_fifth_of_the_training_at_most_ten_million():
    model = make(penalty=L1)
    assert model.silence.window(Training(tokens=1_000_000)) == 200_000
    assert model.silence.window(Training(tokens=10**9)) == 10_000_000
    assert model.silence.window(UNKNOWN) == 10_000_000


def test_auxk_gives_dead_latents_a_gradient_in_the_encoder():
    model, x = started(activation={"kind": "topk", "k": 3}, dead={"kind": "auxk", "after_tokens": 1})
    with torch.no_grad():
        model.b_enc[:20] = -3.0  # never among the three largest, but often positive
        model.W_enc[:20] *= 3
        model.silence.silent_tokens[:20] = 10
        model.silence.silent_tokens[20:] = 0
    record = model.loss(x[:256], Step(0), torch.Generator())
    assert float(record.parts["auxiliary"]) > 0
    auxiliary = torch.autograd.grad(
        record.parts["auxiliary"], [model.W_enc, model.b_enc, model.W_dec], allow_unused=True
    )
    for grad in auxiliary:
        assert grad[:20].abs().sum() > 0
        assert grad[20:].abs().sum() == 0


def test_resampling_changes_dead_rows_and_clears_their_moments():
    model, x = started(penalty=L1, dead={"kind": "resample", "after_tokens": 500, "every_steps": 3})
    with torch.no_grad():
        model.b_enc[:4] = -1e4
    before = model.W_dec[:4].clone()
    optimizer = model.make_optimizer(1e-3, (0.9, 0.999), 1e-8)
    for step in range(3):
        take(model, x[step * 256 : step * 256 + 256], step, optimizer)
    assert ((model.W_dec[:4] - before).norm(dim=1) > 0.1).all()
    torch.testing.assert_close(model.W_dec[:4].norm(dim=1), torch.ones(4))
    assert torch.equal(model.b_enc[:4], torch.zeros(4))
    alive = model.W_enc[4:].norm(dim=1).mean()
    torch.testing.assert_close(model.W_enc[:4].norm(dim=1), (0.2 * alive).expand(4), rtol=0.05, atol=0)
    assert float(optimizer.state[model.W_enc]["exp_avg"][:4].abs().sum()) == 0
    assert float(optimizer.state[model.W_enc]["exp_avg"][4:].abs().sum()) > 0
    assert ((model.encode(x)[:, :4] > 0).sum(0) > 0).all()  # they fire


@pytest.mark.parametrize(
    ("dead", "reason"),
    [
        ({"kind": "resample", "every_steps": 1000}, r"every_steps 1000.*80% of 635 steps"),
        ({"kind": "resample", "after_tokens": 1_290_000}, r"after_tokens 1,290,000"),
    ],
)
def test_a_cure_that_cannot_act_is_refused(dead, reason):
    model = make(penalty=L1, dead=dead)
    with pytest.raises(RequestError, match=reason):
        model.initialize(TensorStream(data(), batch_size=256), torch.Generator(), Training(635, 635 * 2048))


def test_resampling_is_due_every_tenth_of_a_training_until_its_end():
    cure = make(penalty=L1, dead={"kind": "resample"}).settings.dead
    whole = Training(635, 635 * 32)
    steps = [step for step in range(635) if due(cure, Step(step, whole), torch.tensor((step + 1) * 32))]
    assert steps == [63, 127, 191, 255, 319, 383, 447]


def test_resampling_of_errors_that_are_not_finite_draws_nothing():
    errors = torch.tensor([torch.nan, torch.inf, 1.0, 0.0])
    drawn = resample_directions(errors, torch.eye(4), 3, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, torch.eye(4)[2:3])


@pytest.mark.parametrize(("given", "steps", "expected"), [(None, 293, 29), (None, 50_000, 500), (400, 293, 400)])
def test_warm_up_ends_within_the_training_unless_it_is_given(given, steps, expected):
    model = make(penalty={"kind": "l1", "weight": 0.2, "warmup_steps": given})
    weight, whole = model.penalty_weight, Training(steps)
    assert weight.warmup_steps(whole) == expected
    assert float(weight.at(Step(expected - 1, whole))) == pytest.approx(0.2)
    assert float(weight.at(Step(0, whole))) == pytest.approx(0.2 / expected)


def test_activations_that_are_not_finite_are_no_silence():
    model = make().eval()
    x = torch.randn(4, model.d_in)
    x[1, 0], x[3, 2] = torch.nan, torch.inf
    for ask in (model.encode, model):
        with pytest.raises(RequestError, match="not finite in 2 of 4 rows"):
            ask(x)


def test_resampling_ends_with_its_share_of_the_training():
    model, x = started(penalty=L1, dead={"kind": "resample", "after_tokens": 100, "every_steps": 1, "stop_share": 0.5})
    with torch.no_grad():
        model.b_enc[:4] = -1e4
    optimizer = model.make_optimizer(0.0, (0.9, 0.999), 1e-8)
    model.tokens_seen.fill_(3 * 256)
    take(model, x[:256], 0, optimizer, training=Training(tokens=4 * 256))
    assert float(model.b_enc[0]) == -1e4


def test_a_huge_penalty_silences_everything_and_reconstructs_the_bias():
    model, x = started(penalty={"kind": "l1", "weight": 1e3, "warmup_steps": 0})
    train(model, x, 300, lr=3e-2)
    model.eval()
    x = x[:2560]  # all seen in training
    assert model.encode_sparse(x).values.numel() == 0
    expected = model.normalizer.inverse(model.b_dec).expand(len(x), -1)
    torch.testing.assert_close(model(x), expected)


def test_a_dense_start_moves_to_the_sparse_step():
    model, _ = started(penalty=L1, initial_l0=1e9)
    assert model.is_dense()  # a quarter of all latents
    model.mean_l0.fill_(5.0)
    model.after_step(Step(98))
    assert model.is_dense()
    model.after_step(Step(99))  # every hundredth step decides
    assert not model.is_dense()


def test_a_batch_much_too_dense_for_the_sparse_step_is_taken_densely_at_once():
    model, x = started(penalty=L1, initial_l0=5)
    calm = float(model.loss(x[:64], Step(0), torch.Generator()).total.detach())
    assert not model.is_dense()
    with torch.no_grad():
        model.b_enc += 20.0  # everything is active
    dense = take(model, x[:64], 0, model.make_optimizer(0.0, (0.9, 0.999), 1e-8))
    assert bool(model.use_dense)
    assert model.is_dense()
    assert float(dense.metrics["l0"]) == 128
    with torch.no_grad():
        model.b_enc -= 20.0
    assert float(model.loss(x[:64], Step(0), torch.Generator()).total.detach()) == pytest.approx(calm, rel=1e-5)


def test_autocast_rounds_the_dense_steps_products_only():
    for sparse_below in (1.0, 0.0):
        model, x = started(penalty=L1, initial_l0=5, sparse_below=sparse_below)
        exact = model.loss(x[:256], Step(0), torch.Generator())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model.loss(x[:256], Step(0), torch.Generator())
        for name, part in exact.parts.items():
            assert half.parts[name].dtype == torch.float32
            assert torch.equal(half.parts[name], part) == (sparse_below == 1.0)
            torch.testing.assert_close(half.parts[name], part, rtol=0.02, atol=0)


def test_saved_and_loaded_is_the_same_model():
    model, x = started(activation={"kind": "batch_topk", "k": 5})
    train(model, x, 10)
    other = make(activation={"kind": "batch_topk", "k": 5})
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval().encode(x[:50]), model.eval().encode(x[:50]))


def test_penalty_weight_of_a_steered_model_stays_within_its_limits():
    weight = sparse_penalties.PenaltyWeight(
        SparseSettings(kind="sparse", n_latents=4, penalty={"kind": "l1", "target_l0": 5}).penalty
    )
    for _ in range(5000):
        weight.after_update(Step(10_000), torch.tensor(0.0), torch.tensor(0.0))
    assert math.isclose(float(weight.weight), 1e-6, rel_tol=1e-3)


@pytest.mark.parametrize("keys", [{"penalty": L1}, {"activation": {"kind": "topk", "k": 5}}], ids=["relu", "topk"])
def test_a_model_in_bfloat16_encodes_decodes_and_learns(keys):
    model, x = started(**keys)
    wanted = model.encode(x[:32])
    model = model.to(torch.bfloat16)
    z = model.encode(x[:32])
    assert z.dtype == torch.bfloat16
    assert ((z.float() - wanted).abs() < 0.2).float().mean() > 0.99  # at the border bfloat16 may choose another
    loss = model.loss(x[:32], Step(0), torch.Generator()).total
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(model.W_enc.grad).all()


def test_a_copy_and_exchanged_weights_compute_with_their_own():
    model, x = started(penalty=L1)
    model._compiled = lambda *arguments: None  # stands for what is compiled for this model alone
    other = copy.deepcopy(model)
    assert other._compiled is None
    with torch.no_grad():
        other.W_enc.zero_()
    other.b_enc.data.fill_(-1.0)
    assert other.encode(x[:4]).sum() == 0
    assert model.encode(x[:4]).sum() > 0
    model.load_state_dict({name: value.clone() for name, value in other.state_dict().items()}, assign=True)
    assert model.encode(x[:4]).sum() == 0


def test_a_model_goes_to_another_process_and_computes_the_same_there():
    model, x = started(penalty=L1)
    other = pickle.loads(pickle.dumps(model))
    assert torch.equal(other.encode(x[:4]), model.encode(x[:4]))
    other.load_state_dict({name: torch.zeros_like(value) for name, value in other.state_dict().items()}, assign=True)
    assert other.encode(x[:4]).sum() == 0


@pytest.mark.parametrize("normalize", ["center_scale", "scale"])
def test_rows_too_small_for_float32_are_refused_in_a_sentence(normalize):
    rows = torch.full((10, 4), 1e-40)
    rows[::2] = 2e-40
    with pytest.raises(RequestError, match=r"differ by .* only, too little for float32.*Multiply the rows first"):
        Normalizer(4, normalize).fit(Statistics.of(rows))
