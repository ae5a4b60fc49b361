"""Random sparse codes over few images and patches, with many ties, silent latents and silent images."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from saetool.activations import CacheSettings, write_store
from saetool.artifacts import Artifact, Stage, run_stage
from saetool.autoencoders.families import AutoencoderSettings, build as build_autoencoder
from saetool.features import IndexSettings, index
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


@pytest.fixture(scope="session")
def build_index(tmp_path_factory) -> Callable[..., Artifact]:
    """Index codes z [images, tokens, latents]: stored as activations, read by an autoencoder whose encoder is 1."""

    def build(z: Tensor, *, where=None, share: float = 0.3, shard_mb: float = 64, batch_size: int = 3, **given):
        where = where or tmp_path_factory.mktemp("index")
        settings = given.pop("settings", IndexSettings())
        cache = CacheSettings(dtype="float32", shard_mb=shard_mb, batch_size=batch_size)
        store = write_store(where / "activations", z, settings=cache, **given)
        autoencoder = seal_identity(where / "autoencoder", store, share)
        return index(autoencoder, store.artifact, where / "features", settings)

    return build


def seal_identity(out, store, share: float = 0.3) -> Artifact:
    """Seal a sparse autoencoder whose codes are the positive part of its input, decoder = twice the identity."""
    site = store.sites[0]
    settings = {"kind": "sparse", "n_latents": site.d, "expansion": None, "normalize": "none"}
    parsed = TypeAdapter(AutoencoderSettings).validate_python(settings)
    model = build_autoencoder(parsed, site.d)
    state = model.state_dict()
    state["W_enc"], state["W_dec"] = torch.eye(site.d), 2 * torch.eye(site.d)
    state["b_enc"], state["b_dec"] = torch.zeros(site.d), torch.zeros(site.d)

    def build(partial) -> dict:
        partial.write_tensors("model.safetensors", state)
        held_out = {"seed": 5, "share": share}
        content = {"settings": parsed.model_dump(mode="json"), "d_in": site.d, "n_latents": site.d}
        return {**content, "site": site.info, "held_out": held_out}

    return run_stage(Stage("autoencoder", {"d": site.d, "share": share}, build, (store.artifact,)), out)


@pytest.fixture(scope="session")
def identity_autoencoder() -> Callable[..., Artifact]:
    """Seal an autoencoder whose codes are the positive part of a store's activations: (out, store)."""
    return seal_identity
