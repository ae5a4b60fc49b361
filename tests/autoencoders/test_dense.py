"""Dense autoencoders: shapes, losses, greedy pretraining, and where non-linearity pays."""

import json
import math
from itertools import product

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load, save
from torch.autograd import gradcheck

from saetool.autoencoders.base import Step
from saetool.autoencoders.dense import Dense, DenseSettings
from saetool.autoencoders.layers import Chain
from saetool.autoencoders.linear import principal_components
from saetool.errors import RequestError
from saetool.training import TrainingSettings
from saetool.training.learner import Learner


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_of(model, x, phase="train"):
    return model.loss(x, Step(0, phase=phase), torch.Generator().manual_seed(0))


ACTIVATIONS = ["sigmoid", "tanh", "relu", "identity"]
OUTPUTS = [("mse", None), ("mse", "relu"), ("mse", "sigmoid"), ("cross_entropy", None)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("error", "output"), OUTPUTS)
@pytest.mark.parametrize(("tied", "n_latents"), product([False, True], [3, 5, 9]))
def test_one_layer_is_the_lectures_formula(activation, output, tied, error, n_latents):
    settings = DenseSettings(n_latents=n_latents, activation=activation, output=output, tied=tied, error=error)
    model, x = Dense(settings, 5).double(), uniform(7, 5)
    functions = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu, "identity": lambda a: a}
    w, b = model.encoder.weights[0], model.encoder.biases[0]
    w_back = w.T if tied else model.decoder.weights[0]
    z = functions[activation](x @ w.T + b)
    logits = z @ w_back.T + model.decoder.biases[0]
    x_hat = functions[output or ("sigmoid" if error == "cross_entropy" else "identity")](logits)
    torch.testing.assert_close(model.encode(x), z)
    torch.testing.assert_close(model(x), x_hat)
    if error == "mse":
        expected = ((x - x_hat) ** 2).sum(1).mean()
    else:
        expected = -(x * x_hat.log() + (1 - x) * (1 - x_hat).log()).sum(1).mean()
    torch.testing.assert_close(loss_of(model, x).total, expected)


@pytest.mark.parametrize("error", ["mse", "cross_entropy"])
@pytest.mark.parametrize("tied", [False, True])
def test_gradients_are_right(error, tied):
    settings = DenseSettings(n_latents=2, hidden=(4,), activation="tanh", error=error, tied=tied)
    model, x = Dense(settings, 3).double(), uniform(5, 3)
    names, values = zip(*model.named_parameters(), strict=True)

    def total(*parameters):
        swapped = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(_Losing(model), {f"model.{n}": p for n, p in swapped.items()}, (x,))

    assert gradcheck(total, values)


class _Losing(torch.nn.Module):
    """A module whose forward is the loss of `model`."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return loss_of(self.model, x).total


def test_cross_entropy_reports_its_excess_over_the_entropy():
    model = Dense(DenseSettings(n_latents=2, error="cross_entropy"), 4).double()
    x = torch.tensor([[0.0, 1.0, 0.25, 0.5]], dtype=torch.float64)
    least = 0.25 * math.log(4) + 0.75 * math.log(4 / 3) + math.log(2)
    with torch.no_grad():
        model.decoder.weights[0].zero_()
        model.decoder.biases[0].copy_(torch.tensor([-40.0, 40.0, math.log(1 / 3), 0.0]))
    loss = loss_of(model, x)
    assert float(loss.metrics["entropy"]) == pytest.approx(least)
    assert float(loss.total.detach()) == pytest.approx(least)
    assert float(loss.metrics["excess"]) == pytest.approx(0, abs=1e-12)
    assert float(loss_of(Dense(DenseSettings(n_latents=2, error="cross_entropy"), 4).double(), x).metrics["excess"]) > 0


@pytest.mark.parametrize("wrong", [1.0001, -0.01, math.nan])
def test_cross_entropy_refuses_inputs_outside_the_unit_interval(wrong, rows_stream):
    model, x = Dense(DenseSettings(n_latents=2, error="cross_entropy"), 3), torch.full((4, 3), 0.5)
    x[2, 1] = wrong
    with pytest.raises(RequestError, match=r"cross_entropy needs every input in \[0, 1\]"):
        loss_of(model, x)
    with pytest.raises(RequestError, match="use error: mse"):
        model.initialize(rows_stream(x), torch.Generator())
    loss_of(Dense(DenseSettings(n_latents=2), 3), x)


def test_saved_and_loaded_it_answers_the_same(rows_stream):
    settings = DenseSettings(n_latents=3, hidden=(6,), normalize="center_scale", tied=True)
    model, rows = Dense(settings, 5), uniform(100, 5).float() * 9 - 2
    model.initialize(rows_stream(rows), torch.Generator().manual_seed(7))
    other = Dense(settings, 5)
    other.load_state_dict(load(save(model.state_dict())))
    assert torch.equal(other(rows), model(rows))
    assert torch.equal(other.encode(rows[:1]), model.encode(rows[:1]))  # a row does not depend on its batch


def test_directions_are_in_raw_units(rows_stream):
    rows = uniform(200, 5) * 9 - 2
    model = Dense(DenseSettings(n_latents=4, normalize="center_scale", activation="relu"), 5).double()
    model.initialize(rows_stream(rows), torch.Generator().manual_seed(7))
    z = torch.zeros(1, 4, dtype=torch.float64)
    for latent, direction in enumerate(model.decoder_directions()):
        unit = torch.eye(4, dtype=torch.float64)[latent]
        torch.testing.assert_close(model.decode(z + unit)[0] - model.decode(z)[0], direction)
    x = rows[:1].clone().requires_grad_()
    model.encode(x)[0, 1].backward()
    if float(model.encode(rows[:1])[0, 1].detach()) > 0:
        torch.testing.assert_close(x.grad[0], model.encoder_directions()[1])
    assert Dense(DenseSettings(n_latents=4, hidden=(3,)), 5).decoder_directions() is None
    assert Dense(DenseSettings(n_latents=4, hidden=(3,)), 5).encoder_directions() is None


# --- greedy pretraining ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("error", ["mse", "cross_entropy"])
def test_while_a_layer_trains_all_others_stand_still(digits, rows_stream, learn, tied, error):
    settings = DenseSettings(n_latents=4, hidden=(32, 16), pretrain=True, tied=tied, error=error)
    seen = {}

    def record(phase, model):
        seen[phase] = {name: value.clone() for name, value in model.state_dict().items()}

    learn(Dense(settings, 64), rows_stream(digits[0]), 40, on_step=record)
    assert list(seen) == ["level-1", "level-2", "level-3", "fine-tune"]
    for before, after, level in (("level-1", "level-2", 2), ("level-2", "level-3", 3)):
        changed = {name for name in seen[after] if not torch.equal(seen[before][name], seen[after][name])}
        expected = {f"encoder.weights.{level - 1}", f"encoder.biases.{level - 1}", f"decoder.biases.{3 - level}"}
        assert changed == expected | (set() if tied else {f"decoder.weights.{3 - level}"})
    changed = {n for n in seen["fine-tune"] if not torch.equal(seen["level-3"][n], seen["fine-tune"][n])}
    assert changed == set(seen["fine-tune"]) - {"normalizer.mean", "normalizer.factor"}


def test_a_level_reconstructs_the_clean_codes_below_it(digits):
    x = digits[0][:50].double()
    model = Dense(DenseSettings(n_latents=4, hidden=(32, 16), activation="tanh", pretrain=True), 64).double()
    h1 = torch.tanh(x @ model.encoder.weights[0].T + model.encoder.biases[0])
    h2 = torch.tanh(h1 @ model.encoder.weights[1].T + model.encoder.biases[1])
    h1_hat = torch.tanh(h2 @ model.decoder.weights[1].T + model.decoder.biases[1])
    torch.testing.assert_close(loss_of(model, x, "level-2").total, (h1 - h1_hat).square().sum(1).mean())
    x_hat = h1 @ model.decoder.weights[2].T + model.decoder.biases[2]
    torch.testing.assert_close(loss_of(model, x, "level-1").total, (x - x_hat).square().sum(1).mean())


def test_the_unrolled_stack_is_the_composition_of_its_levels(digits):
    x = digits[0][:50].double()
    model = Dense(DenseSettings(n_latents=4, hidden=(32, 16), activation="tanh"), 64).double()
    z, levels = x, [range(level, level + 1) for level in model.levels]
    for level in levels:
        z = model.encode_levels(z, level)
    assert torch.equal(z, model.encode(x))
    for level in reversed(levels):
        z = model.decode_levels(z, level)
    assert torch.equal(z, model(x))


def test_entering_a_phase_again_changes_nothing():
    model = Dense(DenseSettings(n_latents=4, hidden=(8,), pretrain=True), 64)
    model.enter("level-2")
    before = ({n: v.clone() for n, v in model.state_dict().items()}, [p.requires_grad for p in model.parameters()])
    model.enter("level-2")
    assert all(torch.equal(value, before[0][name]) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == before[1]
    model.enter("fine-tune")
    assert all(p.requires_grad for p in model.parameters())
    assert sum(phase.share for phase in model.phases()) == pytest.approx(1)


@pytest.mark.parametrize("stopped", [7, 10, 20, 33])  # in the first level, at two borders, in the fine-tuning
def test_training_resumes_to_the_same_weights_within_and_between_levels(digits, rows_stream, stopped):
    shape = DenseSettings(n_latents=4, hidden=(16,), pretrain=True)
    settings = TrainingSettings(tokens=40 * 256, batch_size=256, lr=1e-2, schedule="cosine")
    record, weights = None, []
    for resumed in (False, True):
        stream = rows_stream(digits[0])
        learner = Learner(Dense(shape, 64), settings, 0, torch.device("cpu"))
        if resumed:
            tensors, rest, position = record
            stream.seek(position)
            learner.restore(tensors, rest)
        else:
            learner.initialize(stream)
        batches = stream.batches()
        while learner.done < settings.steps:
            learner.enter_phase()
            learner.step(next(batches))
            if not resumed and learner.done == stopped:
                tensors, rest = learner.state()
                record = {n: t.clone() for n, t in tensors.items()}, json.loads(json.dumps(rest)), stream.position()
        weights.append(learner.autoencoder.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


# --- what dense autoencoders can do ----------------------------------------------------------------------------------


def arc(rows, seed):
    """Points on 3/4 of the unit circle with noise of .02, float32 [rows, 2]."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.rand(rows, generator=generator) * 1.5 * math.pi
    return torch.stack([angle.cos(), angle.sin()], 1) + 0.02 * torch.randn(rows, 2, generator=generator)


@pytest.mark.slow
def test_a_curved_line_is_one_dimensional_to_a_deep_model_only(rows_stream, learn):
    stream, test = rows_stream(arc(4000, 0)), arc(2000, 1)
    settings = DenseSettings(n_latents=1, hidden=(32, 16), activation="tanh", code_activation="identity")
    model = learn(Dense(settings, 2), stream, 4000, lr=1e-2)
    error = float((model(test) - test).square().sum(1).mean().detach())
    assert error <= 0.2 * principal_components(stream).error(1)


def test_no_affine_decoder_beats_the_trailing_eigenvalues(digits, rows_stream, learn):
    rows, stream = digits[0], rows_stream(digits[0], batch_size=512)
    settings = DenseSettings(n_latents=8, hidden=(), activation="tanh")
    model = learn(Dense(settings, 64), stream, 400, lr=1e-2)
    error = float((model(rows) - rows).square().sum(1).mean().detach())
    best = principal_components(stream).error(8)
    assert best * (1 - 1e-6) <= error < 1.5 * best


def test_eight_patterns_fit_through_three_units(rows_stream, learn):
    patterns = torch.eye(8)
    settings = DenseSettings(n_latents=3, error="cross_entropy")
    model = learn(Dense(settings, 8), rows_stream(patterns, batch_size=64), 800, lr=5e-2)
    assert torch.equal(model(patterns).argmax(1), torch.arange(8))
    assert torch.equal((model(patterns) > 0.5).float(), patterns)
    codes = model.encode(patterns).detach()
    assert float(torch.pdist(codes).min()) > 0.3  # eight codes, well apart


@pytest.mark.slow
def test_one_latent_can_memorize_forty_points(rows_stream, learn):
    """Width alone does not make a code meaningful: with enough capacity one number indexes the training set."""
    generator = torch.Generator().manual_seed(0)
    points, fresh = torch.randn(40, 2, generator=generator), torch.randn(200, 2, generator=generator)
    settings = DenseSettings(n_latents=1, hidden=(128, 128), activation="tanh", code_activation="identity")
    stream = rows_stream(points, batch_size=40)
    model = learn(Dense(settings, 2), stream, 6000, lr=3e-3)
    remembered = float((model(points) - points).square().sum(1).mean().detach())
    unseen = float((model(fresh) - fresh).square().sum(1).mean().detach())
    assert remembered < 0.05 * principal_components(stream).error(1)
    assert unseen > 10 * remembered


def test_one_hidden_layer_approximates_a_sine_the_better_the_wider():
    x = torch.linspace(-math.pi, math.pi, 256, dtype=torch.float64)[:, None]
    errors = []
    for width in (4, 16, 64):
        net, generator = Chain([1, width, 1], ["tanh", "identity"]).double(), torch.Generator().manual_seed(0)
        net.reset(generator)
        with torch.no_grad():  # bends spread over the whole interval
            net.weights[0].mul_(6)
            net.biases[0].uniform_(-6, 6, generator=generator)
        optimizer = torch.optim.LBFGS(net.parameters(), max_iter=200, line_search_fn="strong_wolfe", history_size=30)

        def error(net=net):
            return (net(x) - torch.sin(3 * x)).square().mean()

        def closure(error=error, optimizer=optimizer):
            optimizer.zero_grad()
            value = error()
            value.backward()
            return value

        optimizer.step(closure)
        errors.append(float(error().detach()))
    assert errors[0] > 10 * errors[1] > 10 * errors[2]
    assert errors[1] < 1e-3


def test_bad_requests_are_named():
    with pytest.raises(ValidationError, match=r"n_latents\n.*greater than 0"):
        DenseSettings(n_latents=0)
    with pytest.raises(ValidationError, match="needs output: sigmoid, not relu"):
        DenseSettings(n_latents=2, error="cross_entropy", output="relu")
    with pytest.raises(ValidationError, match="use normalize: none or error: mse"):
        DenseSettings(n_latents=2, error="cross_entropy", normalize="center_scale")
    with pytest.raises(ValidationError, match="nothing to pretrain"):
        DenseSettings(n_latents=2, pretrain=True)
    with pytest.raises(ValidationError, match="hidden"):
        DenseSettings(n_latents=2, hidden=(0,))
