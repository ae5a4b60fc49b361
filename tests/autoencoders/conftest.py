"""A stream of rows in memory and the plainest training loop, for tests of models."""

from collections.abc import Iterator

import pytest
import torch

from saetool import seeding
from saetool.statistics import Statistics


class RowsStream:
    """`autoencoders.base.Stream` over a tensor of training rows [n, d_in]; batches are drawn with replacement."""

    def __init__(self, rows, batch_size=256, held_out=None, seed=0):
        self.rows, self.held, self.batch_size, self.seed = (
            rows,
            rows if held_out is None else held_out,
            batch_size,
            seed,
        )
        self.n_rows, self.d_in = rows.shape
        self.taken = 0

    def statistics(self):
        rows = self.rows.double()
        return Statistics(self.n_rows, rows.mean(0), rows.var(0, correction=0))

    def sample(self, rows):
        order = torch.randperm(self.n_rows, generator=seeding.generator(self.seed, "sample"))
        return self.rows[order[:rows]].to(torch.promote_types(self.rows.dtype, torch.float32))

    def batches(self) -> Iterator[torch.Tensor]:
        while True:
            generator = seeding.generator(self.seed, "batch", self.taken)
            self.taken += 1
            yield self.rows[torch.randint(self.n_rows, (self.batch_size,), generator=generator)]

    def ordered(self):
        yield from self.rows.split(self.batch_size)

    def held_out(self):
        yield from self.held.split(self.batch_size)

    def position(self):
        return {"taken": self.taken}

    def seek(self, position):
        self.taken = position["taken"]


def train(model, stream, steps, lr=1e-2, seed=0, final=0.0, on_step=None):
    """Run every phase of `model` with Adam and a cosine from `lr` to `final · lr`; return the model."""
    generator = seeding.generator(seed, "training")
    model.initialize(stream, generator)
    batches, step = stream.batches(), 0
    for phase in model.phases():
        model.enter(phase.name, stream)
        optimizer = model.make_optimizer(lr, (0.9, 0.999), 1e-8)
        span = round(phase.share * steps)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, span, final * lr)
        for _ in range(span):
            optimizer.zero_grad()
            model.loss(next(batches), step, generator).total.backward()
            model.before_update()
            optimizer.step()
            with torch.no_grad():
                model.after_update(optimizer, step, generator)
            schedule.step()
            step += 1
            if on_step is not None:
                on_step(phase.name, model)
    return model


@pytest.fixture(scope="session")
def rows_stream():
    return RowsStream


@pytest.fixture(scope="session")
def learn():
    return train


@pytest.fixture(scope="session")
def digits():
    """Scikit-learn's 1,797 digits in [0, 1], float32 [1797, 64], and their classes."""
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32), torch.tensor(classes)
