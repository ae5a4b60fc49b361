"""The learning rate has the value it should at every step, and the optimizer really gets it."""

import math
from itertools import pairwise

import pytest
from pydantic import ValidationError

from saetool.autoencoders.base import Phase
from saetool.errors import RequestError
from saetool.training import TrainingSettings
from saetool.training.schedules import lr_factor, phase_borders
from saetool.training.trainer import learn


def test_warm_up_rises_in_equal_steps_to_the_full_rate():
    factors = [lr_factor(step, 100, "constant", warmup=4) for step in range(6)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_falling_schedule_starts_full_and_ends_where_asked(schedule):
    factors = [lr_factor(step, 50, schedule, warmup=10, end=0.2) for step in range(50)]
    assert factors[10] == pytest.approx(1)
    assert factors[-1] == pytest.approx(0.2)
    assert all(later < earlier for earlier, later in pairwise(factors[10:]))


def test_cosine_is_half_way_down_in_the_middle_and_linear_falls_by_equal_steps():
    assert lr_factor(50, 101, "cosine") == pytest.approx(0.5)
    assert lr_factor(25, 101, "cosine") == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert lr_factor(25, 101, "linear") == pytest.approx(0.75)


def test_phases_share_the_steps_and_lose_none():
    phases = [Phase("a", 0.2), Phase("b", 0.3), Phase("c", 0.5)]
    assert phase_borders(phases, 10) == [2, 5, 10]
    assert phase_borders([Phase("a", 1 / 3)] * 3, 7)[-1] == 7


def test_the_optimizer_steps_with_the_scheduled_rate_in_every_phase(toy, make_run, make_stream, monkeypatch):
    settings = TrainingSettings(tokens=32 * 20, batch_size=32, lr=0.5e-3, schedule="linear", warmup_steps=3)
    seen = []
    original = toy.after_update

    def spy(self, optimizer, step, generator, losses):
        seen.append((step.number, optimizer.param_groups[0]["lr"]))
        original(self, optimizer, step, generator, losses)

    monkeypatch.setattr(toy, "after_update", spy)
    learn([make_run(toy(), settings)], make_stream())
    expected = [lr_factor(step, 8, "linear", 3) for step in range(8)]
    expected += [lr_factor(step, 12, "linear", 3) for step in range(12)]
    assert [step for step, _ in seen] == list(range(20))
    assert [lr / 0.5e-3 for _, lr in seen] == pytest.approx(expected)


def test_a_warm_up_that_swallows_a_phase_is_refused(toy, make_run):
    settings = TrainingSettings(tokens=32 * 20, batch_size=32, warmup_steps=8)
    with pytest.raises(RequestError, match=r"warmup_steps: 8 leaves nothing of the 8 steps of the phase"):
        make_run(toy(), settings)


def test_a_phase_without_a_step_is_refused(toy, make_run):
    with pytest.raises(RequestError, match=r"training\.tokens: 1 steps leave none for the phase 'decoder'"):
        make_run(toy(), TrainingSettings(tokens=32, batch_size=32))
    make_run(toy(), TrainingSettings(tokens=64, batch_size=32))


def test_settings_refuse_a_warm_up_longer_than_training_and_pieces_that_do_not_divide_the_batch():
    with pytest.raises(ValidationError, match="warmup_steps=30"):
        TrainingSettings(tokens=320, batch_size=32, warmup_steps=30)
    with pytest.raises(ValidationError, match="accumulate=3"):
        TrainingSettings(tokens=320, batch_size=32, accumulate=3)
