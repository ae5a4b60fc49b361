"""Random sparse codes over few images and patches, with many ties, silent latents and silent images."""

from collections.abc import Callable

import numpy as np
import pytest

from saetool.features.maxima import RECORD, Maxima


def _random_scores(seed: int, images: int | None = None, latents: int | None = None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    images = images or int(rng.integers(1, 12))
    latents = latents or int(rng.integers(1, 6))
    values = rng.integers(1, 5, (images, latents)) / 3
    silent = rng.random(values.shape) < rng.choice([0.0, 0.3, 0.8, 1.0])
    return np.where(silent, 0, values).astype(np.float32)


def _maxima_of(dense: np.ndarray, mass: np.ndarray | None = None) -> Maxima:
    latent, image = np.nonzero(dense.T)
    records = np.zeros(len(latent), RECORD)
    records["latent"], records["image"] = latent, image
    records["value"] = dense[image, latent]
    records["mass"] = (dense if mass is None else mass)[image, latent]
    records["tokens"] = 1
    return Maxima.of(records, 0, dense.shape[1])


@pytest.fixture(scope="session")
def random_scores() -> Callable[..., np.ndarray]:
    """Image maxima as a dense array [images, latents], full of ties."""
    return _random_scores


@pytest.fixture(scope="session")
def maxima_of() -> Callable[..., Maxima]:
    """Turn dense scores [images, latents] into sparse maxima."""
    return _maxima_of
