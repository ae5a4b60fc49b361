"""The trainer takes exactly the steps that a plain loop would, and says what happened."""

import math

import pytest
import torch

from saetool import seeding
from saetool.autoencoders.base import Step
from saetool.autoencoders.families import build
from saetool.autoencoders.sparse_settings import SparseSettings
from saetool.errors import WorkError
from saetool.training import TrainingSettings
from saetool.training.trainer import learn


def plain_loop(model, stream, settings, seed=3):
    """Train by hand: Adam, one phase."""
    generator = seeding.generator(seed, "training")
    with torch.no_grad():
        model.initialize(stream, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
    losses = []
    for step, x in zip(range(settings.steps), stream.batches(), strict=False):
        optimizer.zero_grad()
        loss = model.loss(x, Step(step), generator)
        loss.total.backward()
        optimizer.step()
        with torch.no_grad():
            model.after_update(optimizer, Step(step), generator, [loss])
        losses.append(loss.total.item())
    return losses


@pytest.fixture
def settings():
    return TrainingSettings(tokens=32 * 25, batch_size=32, log_every=10, evaluate_every=10, checkpoint_minutes=0)


def test_training_equals_a_plain_loop_and_logs_its_losses(toy, run_to_end, make_stream, settings, lines_of):
    expected = toy(two_phases=False)
    losses = plain_loop(expected, make_stream(), settings)
    run = run_to_end(toy(two_phases=False), settings)
    for name, value in run.learner.autoencoder.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name], rtol=1e-5, atol=1e-7)
    logged = [line["loss"] for line in lines_of(run, split="train")]
    assert logged == pytest.approx([sum(losses[:10]) / 10, sum(losses[10:20]) / 10, sum(losses[20:]) / 5], rel=1e-5)


def test_lines_say_where_training_stands(toy, run_to_end, settings, lines_of):
    run = run_to_end(toy(), settings)
    lines = lines_of(run)
    train, held_out = lines_of(run, split="train"), lines_of(run, split="held_out")
    assert [(line["step"], line["tokens"], line["phase"]) for line in train] == [
        (10, 320, "decoder"),
        (20, 640, "all"),
        (25, 800, "all"),
    ]
    assert [line["step"] for line in held_out] == [10, 20, 25]
    assert [bool(line.get("final")) for line in held_out] == [False, False, True]
    assert all(line["rows"] == 70 for line in held_out)
    assert run.final["fvu"] == lines[-1]["fvu"]
    for line in train:
        assert line["loss"] == pytest.approx(sum(line["parts"].values()), rel=1e-6)
        assert set(line["metrics"]) == {"l1"}
    assert train[-1]["fvu"] < train[0]["fvu"] < 50


def test_a_phase_trains_only_what_it_should_with_a_fresh_optimizer(toy, make_run, make_stream, settings):
    run = make_run(toy(), settings)
    start = run.learner.autoencoder.encoder.detach().clone()
    seen = []

    class Watched(type(make_stream())):
        def batches(self):
            for batch in super().batches():
                seen.append((run.learner.autoencoder.encoder.detach().clone(), run.learner.optimizer))
                yield batch

    stream = make_stream()
    stream.__class__ = Watched
    learn([run], stream)
    assert all(torch.equal(weights, start) for weights, _ in seen[:11])
    assert not torch.equal(seen[-1][0], start)
    assert len({id(optimizer) for _, optimizer in seen}) == 2


def test_pieces_of_a_batch_add_up_to_the_batch(toy, run_to_end, make_stream, lines_of):
    runs = []
    for pieces in (1, 4):
        settings = TrainingSettings(tokens=320, batch_size=32, accumulate=pieces, log_every=5)
        model = toy(dtype=torch.float64, noise=0.0)
        runs.append(run_to_end(model, settings, name=str(pieces), stream=make_stream(dtype=torch.float64)))
    one, four = (run.learner.autoencoder.state_dict() for run in runs)
    for name, value in one.items():
        torch.testing.assert_close(value, four[name], rtol=1e-10, atol=1e-12)
    one, four = (lines_of(run, split="train") for run in runs)
    for key in ("loss", "fvu", "l0"):
        assert [line[key] for line in four] == pytest.approx([line[key] for line in one], rel=1e-10)
    assert four[0]["parts"] == pytest.approx(one[0]["parts"], rel=1e-10)
    assert four[0]["metrics"] == pytest.approx(one[0]["metrics"], rel=1e-10)


def test_gains_learn_from_pieces_of_a_batch_as_from_the_whole(run_to_end, make_stream):
    keys = {"n_latents": 40, "activation": {"kind": "topk", "k": 5}, "initial_gain": 0.3}
    states = []
    for pieces in (1, 4):
        settings = TrainingSettings(tokens=320, batch_size=32, accumulate=pieces, lr=1e-2)
        run = run_to_end(build(SparseSettings(**keys), 8), settings, name=str(pieces), stream=make_stream())
        states.append(run.learner.autoencoder.state_dict() | run.learner.state()[0])
    assert sum("gain" in name for name in states[0]) == 1
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_clipping_bounds_the_gradient_and_logs_its_norm(toy, make_run, make_stream, monkeypatch, lines_of):
    settings = TrainingSettings(tokens=320, batch_size=32, clip_norm=0.01, log_every=5)
    norms = []
    original = toy.after_update

    def spy(self, optimizer, step, generator, losses):
        gradients = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
        norms.append(float(torch.cat(gradients).norm()))
        original(self, optimizer, step, generator, losses)

    monkeypatch.setattr(toy, "after_update", spy)
    run = make_run(toy(), settings)
    learn([run], make_stream())
    assert max(norms) <= 0.01 * (1 + 1e-5)
    assert all(line["grad_norm"] > 0.1 for line in lines_of(run, split="train"))


def test_without_held_out_rows_the_last_line_measures_training_rows(toy, run_to_end, make_stream, settings, lines_of):
    run = run_to_end(toy(), settings, stream=make_stream(held_out=0))
    assert lines_of(run, split="held_out") == []
    assert lines_of(run)[-1]["rows"] == 320
    assert run.final["split"] == "train"


def test_a_loss_that_is_not_finite_stops_with_step_loss_and_advice(toy, make_run, make_stream, settings, monkeypatch):
    original = toy.loss

    def bad(self, x, step, generator):
        loss = original(self, x, step, generator)
        loss.parts["reconstruction"] = loss.parts["reconstruction"] * (math.nan if step.number == 16 else 1)
        return loss

    monkeypatch.setattr(toy, "loss", bad)
    run = make_run(toy(), settings)
    with pytest.raises(WorkError, match=r"diverged at step 17: loss nan.*lower training.lr.*clip_norm") as caught:
        learn([run], make_stream())
    assert "last good checkpoint" in str(caught.value)
    kept = list((run.partial.path / ".scratch/checkpoint").glob("step-*.safetensors"))
    assert [path.name for path in kept] == ["step-00000010.safetensors"]


def test_a_reconstruction_that_explodes_stops_too(toy, run_to_end):
    settings = TrainingSettings(tokens=32 * 60, batch_size=32, lr=1e3, log_every=10)
    with pytest.raises(WorkError, match="diverged"):
        run_to_end(toy(two_phases=False), settings)


def test_a_closed_form_takes_no_step(toy, run_to_end, settings, monkeypatch, lines_of):
    def fit(self, stream):
        self.decoder.zero_()
        return True

    monkeypatch.setattr(toy, "fit", fit)
    run = run_to_end(toy(), settings)
    assert run.fitted
    assert int(run.learner.autoencoder.updates) == 0
    assert [(line["split"], line["step"], line["tokens"]) for line in lines_of(run)] == [("held_out", 0, 320)]
    assert run.final["fvu"] >= 1
