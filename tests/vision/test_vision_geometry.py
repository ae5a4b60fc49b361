"""Preprocessing equals the libraries' own, and every patch maps back to where it came from."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import create_transform
from transformers import CLIPImageProcessor, ViTImageProcessor

from saetool.vision import Geometry, Transform
from saetool.vision.timm_models import timm_transform
from saetool.vision.transformers_models import transform_of

SIZES = [(64, 64), (90, 61), (61, 90), (200, 40), (33, 57), (20, 20)]
COLORS = 1.2 / 255
"""Libraries round resized values to bytes at other moments."""


class WithConfig(torch.nn.Module):
    def __init__(self, **config):
        super().__init__()
        self.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "interpolation": "bicubic", **config}


class Sized:
    image_size = 48


def photograph(width, height):
    random = np.random.default_rng(width * 1000 + height)
    noise = Image.fromarray(random.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    return noise.resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "config",
    [
        {"input_size": (3, 48, 48), "crop_pct": 1.0, "crop_mode": "center"},
        {"input_size": (3, 48, 48), "crop_pct": 0.875, "crop_mode": "center"},
        {"input_size": (3, 48, 64), "crop_pct": 0.9, "crop_mode": "center"},
        {"input_size": (3, 48, 64), "crop_pct": 0.9, "crop_mode": "squash"},
        {"input_size": (3, 48, 48), "crop_pct": 1.0, "crop_mode": "border"},
        {"input_size": (3, 48, 48), "crop_pct": 0.95, "interpolation": "bilinear", "crop_mode": "center"},
    ],
)
def test_timm_preprocessing_is_reproduced(config, size):
    model = WithConfig(**config)
    image = photograph(*size)
    theirs = create_transform(**model.pretrained_cfg, is_training=False)(image)
    torch.testing.assert_close(timm_transform(model, None)(image), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "processor",
    [
        ViTImageProcessor(size={"height": 48, "width": 48}),
        ViTImageProcessor(size={"height": 48, "width": 64}),
        CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}),
        CLIPImageProcessor(size={"shortest_edge": 55}, crop_size={"height": 48, "width": 48}),
    ],
    ids=["square", "wide", "clip", "crop"],
)
def test_transformers_preprocessing_is_reproduced(processor, size):
    image = photograph(*size)
    theirs = processor(image, return_tensors="pt")["pixel_values"][0]
    ours = transform_of(processor, Sized(), None, "hf/test")(image)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= COLORS / min(processor.image_std)


RULES = {
    "squash": Geometry("squash", (48, 48), (48, 48), (12, 12), (4, 4)),
    "squash-wide": Geometry("squash", (36, 60), (36, 60), (12, 12), (3, 5)),
    "center": Geometry("shortest", (60, 60), (48, 48), (12, 12), (4, 4)),
    "center-wide": Geometry("shortest_round", (40, 70), (36, 60), (12, 12), (3, 5)),
    "border": Geometry("longest", (48, 48), (48, 48), (12, 12), (4, 4)),
    "remainder": Geometry("squash", (50, 53), (50, 53), (12, 12), (4, 4)),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("width", "height"), [(120, 120), (240, 120), (110, 230)])
def test_a_bright_spot_lies_in_the_box_of_the_patch_that_sees_it(rule, width, height):
    geometry = RULES[rule]
    transform = Transform(geometry, "bilinear")
    rows, columns = geometry.grid
    for x, y in [(width // 2, height // 2), (width // 2 + 22, height // 2 - 17), (width // 2 - 25, height // 2 + 31)]:
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[y - 2 : y + 3, x - 2 : x + 3] = 255
        seen = transform(Image.fromarray(pixels))[0, : rows * 12, : columns * 12]
        brightness = seen.reshape(rows, 12, columns, 12).sum((1, 3)).flatten()
        left, top, right, bottom = geometry.patch_box(int(brightness.argmax()), width, height)
        if brightness.max() == 0:
            left, top, right, bottom = geometry.grid_box(width, height)
            assert not (left + 3 < x < right - 3 and top + 3 < y < bottom - 3)
            continue
        assert left - 3 <= x <= right + 3
        assert top - 3 <= y <= bottom + 3


@pytest.mark.parametrize("rule", RULES)
def test_patches_tile_the_grid(rule):
    geometry = RULES[rule]
    rows, columns = geometry.grid
    left, top, right, bottom = geometry.grid_box(333, 200)
    first = geometry.patch_box(0, 333, 200)
    last = geometry.patch_box(rows * columns - 1, 333, 200)
    assert (left, top) == pytest.approx(first[:2])
    assert (right, bottom) == pytest.approx(last[2:])
    for patch in range(rows * columns):
        box = geometry.patch_box(patch, 333, 200)
        assert box[2] - box[0] == pytest.approx((right - left) / columns)
        assert box[1] == pytest.approx(top + (bottom - top) / rows * (patch // columns))


def test_squash_covers_the_picture_and_a_crop_its_center():
    assert RULES["squash"].grid_box(300, 200) == pytest.approx((0, 0, 300, 200))
    left, top, right, bottom = RULES["center"].grid_box(200, 100)
    assert (left + right) / 2 == pytest.approx(100)
    assert (top, bottom) == pytest.approx((10, 90))
    assert RULES["border"].grid_box(200, 100) == pytest.approx((0, -50, 200, 150))


@pytest.mark.parametrize("rule", RULES)
def test_a_description_is_all_there_is(rule):
    import json

    geometry = RULES[rule]
    assert Geometry.from_dict(json.loads(json.dumps(geometry.describe()))) == geometry


def test_padding_has_the_fill_color():
    transform = Transform(RULES["border"], "bilinear", fill=(255, 0, 51))
    tensor = transform(Image.new("RGB", (200, 100), (0, 255, 0)))
    assert tensor[:, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])
    assert tensor[:, 24, 24].tolist() == pytest.approx([0.0, 1.0, 0.0])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("fill", [(0, 0, 0), (255, 0, 51)])
@pytest.mark.parametrize("rule", RULES)
def test_a_gray_picture_is_an_rgb_picture_of_equal_channels(rule, fill, interpolation):
    transform = Transform(RULES[rule], interpolation, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), fill=fill)
    for size in SIZES:
        gray = photograph(*size).convert("L")
        assert torch.equal(transform(gray), transform(gray.convert("RGB"))), size
