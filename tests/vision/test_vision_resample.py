"""Resizing by our own code gives Pillow's bytes."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from saetool.vision.geometry import Geometry
from saetool.vision.transform import Transform

pytest.importorskip("numba")

SIDES = st.integers(1, 90)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), SIDES, SIDES, SIDES, SIDES, st.sampled_from(["bicubic", "bilinear"]), st.booleans())
def test_any_cut_of_any_size_is_pillow_s(seed, width, height, columns, rows, interpolation, gray):
    from saetool.vision.resample import fill_resized, found_order

    rng = np.random.default_rng(seed)
    extreme = rng.random((height, width, 1 if gray else 3)) < rng.choice([0, 0.5, 1])
    pixels = np.where(extreme, 255 * rng.integers(0, 2, extreme.shape), rng.integers(0, 256, extreme.shape))
    pixels = pixels.astype(np.uint8)
    picture = Image.fromarray(pixels[..., 0] if gray else pixels)
    wanted = np.asarray(picture.resize((columns, rows), Image.Resampling[interpolation.upper()]))
    order = found_order((width, height), (columns, rows), interpolation)
    assert order is not None
    left, top = int(rng.integers(0, columns)), int(rng.integers(0, rows))
    right, bottom = int(rng.integers(left + 1, columns + 1)), int(rng.integers(top + 1, rows + 1))
    found = np.empty((bottom - top, right - left, pixels.shape[2]), np.uint8)
    fill_resized(pixels, (columns, rows), (left, top), interpolation, order, found)
    assert np.array_equal(found, wanted[top:bottom, left:right].reshape(found.shape))


@pytest.mark.parametrize("size", [(40, 30), (17, 64), (24, 24), (16, 16), (9, 200)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos", "nearest"])
def test_a_compiled_transform_fills_in_the_same_pixels(size, mode, interpolation):
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8))
    geometry = Geometry("shortest", (20, 20), (16, 16), (4, 4), (4, 4))
    plain = Transform(geometry, interpolation=interpolation)
    compiled = plain.loaded()
    assert compiled.compiled == (interpolation in ("bicubic", "bilinear"))
    assert compiled == plain
    assert compiled.describe() == plain.describe()
    for _ in range(12):  # the first ones are Pillow's own
        assert np.array_equal(compiled(picture).numpy(), plain(picture).numpy())


@pytest.fixture
def nothing_known():
    """Forget which orders were found, before and after."""
    from saetool.vision import resample

    caches = (resample.found_order, resample._weights)
    for forgotten in (*(cache.cache_clear for cache in caches), resample._met.clear):
        forgotten()
    yield resample
    for forgotten in (*(cache.cache_clear for cache in caches), resample._met.clear):
        forgotten()


def test_a_pillow_that_resizes_otherwise_is_left_to_itself(nothing_known, monkeypatch):
    monkeypatch.setitem(nothing_known._FILTERS, "bicubic", (lambda x: max(0.0, 1 - abs(x)), 2.0))
    assert nothing_known.found_order((30, 20), (12, 10), "bicubic") is None
    assert nothing_known.found_order((30, 20), (12, 10), "hamming") is None


def test_the_order_of_rare_sizes_is_not_looked_for(nothing_known, monkeypatch):
    sought = []
    monkeypatch.setattr(nothing_known, "found_order", lambda *sizes: sought.append(sizes) or "across")
    orders = [nothing_known.order_of_passes((30, 20), (12, 10), "bicubic") for _ in range(9)]
    assert orders == [None] * 8 + ["across"]
    assert nothing_known.order_of_passes((31, 20), (12, 10), "bicubic") is None
    assert len(sought) == 1
