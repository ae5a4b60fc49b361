"""A claim of the lecture on sparse codes against dense ones of the same width: noise moves few of their entries."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from saetool.autoencoders.dense import Dense, DenseSettings
from saetool.autoencoders.sparse import SparseAutoencoder
from saetool.autoencoders.sparse_settings import L1Penalty, SparseSettings


def combinations(rows, seed):
    """Return rows that each add 3 of 64 fixed unit atoms in R^32, amplitudes U(.5, 1.5)."""
    atoms = normalize(torch.randn(64, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    source = torch.Generator().manual_seed(seed)
    active = torch.rand(rows, 64, generator=source).argsort(1)[:, :3]
    amplitudes = torch.rand(rows, 3, generator=source) + 0.5
    return torch.zeros(rows, 64).scatter_(1, active, amplitudes) @ atoms


@pytest.mark.slow
def test_noise_moves_a_sparse_code_less_than_a_dense_one(rows_stream, learn):
    stream, test = rows_stream(combinations(100_000, 1), batch_size=1024), combinations(2000, 2)
    penalty = L1Penalty(kind="l1", weight=0.3 / math.sqrt(32))
    sparse = SparseSettings(kind="sparse", n_latents=64, normalize="none", penalty=penalty)
    models = [SparseAutoencoder(sparse, 32), Dense(DenseSettings(n_latents=64, activation="relu"), 32)]
    noise = 0.1 * torch.randn(test.shape, generator=torch.Generator().manual_seed(3))
    moved, touched = [], []
    for model in models:
        learn(model, stream, 1500, lr=3e-3).eval()
        z, noisy = model.encode(test).detach(), model.encode(test + noise).detach()
        moved.append(float((noisy - z).norm() / (z - z.mean(0)).norm()))
        touched.append(float(((noisy - z).abs() > 1e-6).float().mean()))
    assert moved[0] < 0.8 * moved[1]
    assert touched[0] < 0.3 < 0.8 < touched[1]
