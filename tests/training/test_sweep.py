"""Models that share a stream come out as if each were trained alone, and loading is paid once."""

import pytest
import torch
from pydantic import TypeAdapter

from saetool.activations import TensorStream
from saetool.artifacts import Artifact
from saetool.autoencoders.families import AutoencoderSettings, load
from saetool.autoencoders.sparse import SparseAutoencoder
from saetool.errors import WorkError
from saetool.training import TrainingSettings, train, train_together, training_stage


class Counting(TensorStream):
    """Counts the batches that were made."""

    made = 0

    def batches(self):
        for batch in super().batches():
            self.made += 1
            yield batch


@pytest.fixture
def stream():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1200, 6, generator=draw) @ torch.randn(6, 16, generator=draw)
    return lambda: Counting(x[:1000], x[1000:], batch_size=50, seed=1)


def sparse(weight: float, n_latents: int = 48):
    penalty = {"kind": "l1", "weight": weight}
    settings = {"kind": "sparse", "n_latents": n_latents, "initial_l0": 8, "penalty": penalty}
    return TypeAdapter(AutoencoderSettings).validate_python(settings)


def how(**changes) -> TrainingSettings:
    values = {"tokens": 50 * 30, "batch_size": 50, "log_every": 6, "checkpoint_minutes": 0} | changes
    return TrainingSettings(**values)


VARIANTS = [(sparse(0.05), {}), (sparse(0.5), {"seed": 9}), (sparse(0.05, 32), {"lr": 3e-3, "schedule": "linear"})]


def test_each_member_equals_the_same_model_trained_alone(stream, tmp_path):
    shared = stream()
    stages = [training_stage(shared, settings, how(**changes)) for settings, changes in VARIANTS]
    together = train_together([(stage, tmp_path / f"together-{i}") for i, stage in enumerate(stages)])
    assert shared.made == 30
    for i, (settings, changes) in enumerate(VARIANTS):
        alone = train(stream(), settings, how(**changes), tmp_path / f"alone-{i}")
        assert together[i].id == alone.id
    assert len({artifact.id for artifact in together}) == 3


def test_members_on_different_data_are_trained_one_after_the_other(stream, tmp_path):
    stages = [training_stage(stream(), sparse(0.1), how(tokens=tokens)) for tokens in (500, 1000)]
    artifacts = train_together([(stage, tmp_path / str(i)) for i, stage in enumerate(stages)])
    assert [artifact.content["steps"] for artifact in artifacts] == [10, 20]


def test_a_member_that_diverges_does_not_take_the_others_along(stream, tmp_path):
    stages = [training_stage(stream(), sparse(0.1), how(lr=lr)) for lr in (1e-3, 1e30)]
    with pytest.raises(WorkError, match=r"bad: training diverged"):
        train_together([(stages[0], tmp_path / "good"), (stages[1], tmp_path / "bad")])
    assert Artifact.open(tmp_path / "good").id == train(stream(), sparse(0.1), how(), tmp_path / "alone").id
    assert not (tmp_path / "bad").exists()


def test_a_crash_that_left_members_at_different_steps_is_made_good(stream, tmp_path, monkeypatch):
    from saetool.training import checkpoints

    members = lambda: [  # noqa: E731
        (training_stage(stream(), settings, how(**changes)), tmp_path / f"{i}")
        for i, (settings, changes) in enumerate(VARIANTS)
    ]
    calls, original = [], checkpoints.save

    def crash_at_fifth(*args):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        original(*args)

    monkeypatch.setattr(checkpoints, "save", crash_at_fifth)
    with pytest.raises(KeyboardInterrupt):
        train_together(members())
    monkeypatch.undo()
    done = [next((tmp_path / f"{i}.partial" / ".scratch/checkpoint").glob("step-*")).name for i in range(3)]
    assert len(set(done)) == 2
    found = train_together(members())
    for i, (settings, changes) in enumerate(VARIANTS):
        assert found[i].id == train(stream(), settings, how(**changes), tmp_path / f"alone-{i}").id


def test_sealed_members_are_not_trained_again(stream, tmp_path):
    first = train(stream(), sparse(0.1), how(), tmp_path / "0")
    shared = stream()
    again = train_together([(training_stage(shared, sparse(0.1), how()), tmp_path / "0")])
    assert shared.made == 0
    assert again[0].id == first.id


def test_the_loaded_model_is_the_trained_one(stream, tmp_path):
    artifact = train(stream(), sparse(0.05), how(), tmp_path / "model", seed=4)
    model = load(tmp_path / "model")
    assert isinstance(model, SparseAutoencoder)
    assert not model.training
    rows = torch.cat([*stream().held_out()])
    with torch.no_grad():
        error = float((model(rows) - rows).square().sum(1).mean())
    assert artifact.content["final"]["mse"] == pytest.approx(error, rel=1e-5)
    assert artifact.content["held_out"] == {"seed": 4, "share": 0.1}
