"""Steps that a GPU takes from recordings: on a CPU the same steps run unrecorded, in Triton's interpreter.

That a recorded step has the same bits is shown where there is a GPU, by `scripts/check_gpu.py`.
"""

import pytest
import torch

from saetool.activations import TensorStream
from saetool.autoencoders.base import Step
from saetool.autoencoders.sparse import SparseAutoencoder
from saetool.autoencoders.sparse_settings import SparseSettings
from saetool.sparse import backends
from saetool.training import TrainingSettings
from saetool.training.learner import Learner

STEPS = 4
KINDS = {
    "ReLU + L1": {"penalty": {"kind": "l1", "weight": 0.1, "warmup_steps": 2}},
    "TopK": {"activation": {"kind": "topk", "k": 4}},
    "TopK with gains": {"activation": {"kind": "topk", "k": 4}, "initial_gain": 0.3},
    "BatchTopK": {"activation": {"kind": "batch_topk", "k": 4}},
    "Matryoshka": {"activation": {"kind": "batch_topk", "k": 4}, "matryoshka": [6, 12]},
    "JumpReLU": {"activation": {"kind": "jump_relu"}, "penalty": {"kind": "l0", "weight": 0.01, "warmup_steps": 2}},
    "gated": {"activation": {"kind": "gated"}, "penalty": {"kind": "l1", "weight": 0.1, "warmup_steps": 2}},
}


@pytest.fixture
def on_the_gpus_backend(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv(backends.SWITCH, "cuda")


def taught(keys, codes="exact", steps=STEPS):
    """Return a learner after some steps on four rows each, their losses and numbers."""
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(4 * steps, 10, generator=g) @ torch.randn(10, 10, generator=g)
    torch.manual_seed(0)
    settings = SparseSettings(kind="sparse", n_latents=24, codes=codes, sparse_below=1.0, **keys)
    training = TrainingSettings(tokens=4 * steps, batch_size=4, lr=1e-2)
    learner = Learner(SparseAutoencoder(settings, 10), training, 0, torch.device("cpu"))
    stream = TensorStream(rows, batch_size=4)
    learner.initialize(stream)
    learner.enter_phase()
    for batch in rows.split(4):
        learner.step(batch)
    return learner, *learner.read_window()


@pytest.mark.slow  # the interpreter takes seconds a step
@pytest.mark.parametrize("name", KINDS)
def test_a_step_in_two_parts_is_the_step(on_the_gpus_backend, monkeypatch, name):
    codes = "bf16" if "batch_topk" in str(KINDS[name]) else "exact"  # exact BatchTopK is not taken apart
    parts, means, losses = taught(KINDS[name], codes)
    # The first step sets up the optimizer; BatchTopK's goes another way where too few exceed its guess.
    assert parts.recordings.plain_steps == STEPS - 1 or (parts.recordings.plain_steps > 0 and codes == "bf16")
    monkeypatch.setattr(Learner, "_repeated", lambda self, batch, step: None)
    whole, whole_means, whole_losses = taught(KINDS[name], codes)
    torch.testing.assert_close(losses, whole_losses, rtol=1e-4, atol=1e-5)
    assert means.keys() == whole_means.keys()
    for a, b in zip(parts.autoencoder.parameters(), whole.autoencoder.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    states = [learner.optimizer.state.values() for learner in (parts, whole)]
    assert [float(s["step"]) for s in states[0]] == [float(s["step"]) for s in states[1]] == [STEPS] * len(states[0])


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (KINDS["ReLU + L1"], [False, True, True, True, True]),
        ({"activation": {"kind": "topk", "k": 4}, "dead": {"kind": "auxk"}}, [False] * 5),
        (
            KINDS["ReLU + L1"] | {"dead": {"kind": "resample", "every_steps": 3, "after_tokens": 4}},
            [False, True, False, True, True],
        ),
    ],
)
def test_which_steps_repeat(keys, expected):
    model = SparseAutoencoder(SparseSettings(kind="sparse", n_latents=24, sparse_below=1.0, **keys), 10)
    assert [model.repeats(Step(step)) for step in range(5)] == expected


def test_a_counted_step_leaves_no_copy_behind(on_the_gpus_backend):
    """Evaluation reads another copy of the encoder than training in bfloat16: it must follow a replayed update."""
    learner, _, _ = taught(KINDS["TopK"], "bf16", steps=2)
    model, optimizer = learner.autoencoder, learner.optimizer
    x = torch.randn(3, 10, generator=torch.Generator().manual_seed(1))
    model.encode(x)
    model.begin(x)  # a step's search: training's copy was asked for last
    copies = optimizer.copies()
    numbers = optimizer.upcoming()
    with torch.no_grad():  # what a graph does: new values, and nobody is told
        model.W_enc.data.copy_(-model.W_enc.detach().clone())
        for weight, copy in copies:
            copy.refresh(weight.tensor.detach(), 0, len(weight.tensor))
    optimizer.count(copies)
    assert optimizer.upcoming().count == numbers.count + 1
    codes = model.encode(x)
    backends_own = torch.relu((model.normalizer(x) - model.b_dec) @ model.W_enc.T + model.b_enc)
    kept = backends_own >= backends_own.topk(4, dim=1).values[:, -1:]
    torch.testing.assert_close(codes, backends_own * kept, rtol=1e-4, atol=1e-5)
