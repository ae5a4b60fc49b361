"""A tiny ViT, a folder of tiny pictures, and a store of random rows."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from saetool.activations import CacheSettings, write_store
from saetool.vision import wrap


@pytest.fixture(autouse=True, scope="module")
def _one_thread(one_thread):
    """Of every test in this room."""


class Block(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(d), nn.Linear(d, d)

    def forward(self, x):
        return x + torch.tanh(self.linear(self.norm(x)))


class TinyViT(nn.Module):
    """16×16 pixels, patches of 4, a CLS token, three blocks."""

    def __init__(self, seed: int = 0, d: int = 12):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.patch_embed = nn.Conv2d(3, d, kernel_size=4, stride=4)
            self.cls_token = nn.Parameter(torch.randn(1, 1, d))
            self.blocks = nn.ModuleList(Block(d) for _ in range(3))

    def forward(self, images):
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture
def tiny():
    """Return a backbone over the tiny ViT: layers 1 and 3, patches."""

    def make(layers=(1, 3), tokens="patches", **kwargs):
        return wrap(TinyViT(**kwargs), list(layers), tokens, name="tiny", image_size=16, blocks="blocks")

    return make


def save_picture(path, seed: int, size: tuple[int, int] = (20, 16)) -> None:
    """Write a small picture of random blocks."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(path)


@pytest.fixture
def pictures(tmp_path):
    """Return a folder of 23 pictures in two classes."""
    folder = tmp_path / "pictures"
    for i in range(23):
        save_picture(folder / ("cats" if i % 3 else "dogs") / f"{i:02d}.png", i)
    return folder


@pytest.fixture
def numbered(tmp_path):
    """Make a store whose row r of image i is (i, r, …): every row can be told from every other."""

    def make(images=50, tokens=6, d=8, name="store", dtype="float32", **settings):
        values = torch.zeros(images, tokens, d)
        values[..., 0] = torch.arange(images)[:, None]
        values[..., 1] = torch.arange(tokens)
        values[..., 2:] = torch.randn(images, tokens, d - 2, generator=torch.Generator().manual_seed(0))
        settings = CacheSettings(
            **{"dtype": dtype, "batch_size": 4, "shard_mb": 12 * tokens * d * 4 / 2**20} | settings
        )
        return write_store(tmp_path / name, values, settings=settings), values.to(getattr(torch, dtype))

    return make
