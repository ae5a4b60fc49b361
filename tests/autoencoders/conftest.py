"""Rows in memory as a stream, the trainer's own engine without artifacts around it, and a small data set."""

from itertools import islice

import pytest
import torch

from saetool.activations import TensorStream
from saetool.training import TrainingSettings
from saetool.training.learner import Learner


@pytest.fixture(scope="session")
def rows_stream():
    """Return a function that makes a stream of training rows; small sets come as one batch."""

    def make(rows, batch_size=256):
        return TensorStream(rows, batch_size=min(batch_size, len(rows)))

    return make


@pytest.fixture(scope="session")
def learn():
    """Return a function that trains a model through all its phases, with a cosine to 0, and returns it."""

    def train(model, stream, steps, lr=1e-2, on_step=None):
        settings = TrainingSettings(
            tokens=steps * stream.batch_size, batch_size=stream.batch_size, lr=lr, schedule="cosine"
        )
        learner = Learner(model, settings, seed=0, device=torch.device("cpu"))
        learner.initialize(stream)
        for batch in islice(stream.batches(), steps):
            learner.enter_phase()
            learner.step(batch)
            if on_step is not None:
                on_step(learner.phase.name, model)
        return model

    return train


@pytest.fixture(scope="session")
def digits():
    """Scikit-learn's 1,797 digits in [0, 1], float32 [1797, 64], and their classes."""
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32), torch.tensor(classes)
