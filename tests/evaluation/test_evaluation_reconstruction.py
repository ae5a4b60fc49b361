"""Held-out numbers equal slow loops over tokens, whatever the batches; intervals are those of resampled images."""

import math

import numpy as np
import pytest
import torch

from saetool.autoencoders.base import Autoencoder
from saetool.errors import WorkError
from saetool.evaluation import bootstrap
from saetool.evaluation.reconstruction import (
    COLUMNS,
    RATIOS,
    binarity,
    fvu_difference,
    held_out_sums,
    latent_counts,
    numbers,
)
from saetool.evaluation.tables import all_tables


class TopThree(Autoencoder):
    """The three largest projections of x − 2.5, if positive."""

    def __init__(self, directions):
        super().__init__()
        self.n_latents, self.d_in = directions.shape
        self.mean = torch.nn.Parameter(torch.full((self.d_in,), 2.5), requires_grad=False)
        self.directions = torch.nn.Parameter(directions, requires_grad=False)

    def encode(self, x):
        projections = (x - self.mean) @ self.directions.T
        return projections.where(projections >= projections.topk(3).values[:, -1:], 0).relu()

    def decode(self, z):
        return self.mean + 0.4 * (z @ self.directions)


def make(images=7, tokens=5, d=6, n_latents=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, tokens, d, generator=generator) + 3
    directions = torch.randn(n_latents, d, generator=generator)
    directions[4] = torch.tensor([0.0] * d)  # a latent that never fires
    return x, TopThree(directions)


def mean_of(x):
    return x.double().mean((0, 1))


def value(number):
    return number["value"]


def test_every_number_equals_a_loop_over_tokens():
    x, model = make()
    found = numbers(held_out_sums(model, x.split(2), mean_of(x)), seed=0)
    mean = mean_of(x)
    sse = total = active = l1 = cosine = hat = dot = hat_c = dot_c = 0.0
    fires = np.zeros(9)
    for row in x.flatten(0, 1):
        z = model.encode(row[None])[0]
        r, row = model.decode(z[None])[0].double(), row.double()
        sse += sum((a - b) ** 2 for a, b in zip(row.tolist(), r.tolist(), strict=True))
        total += float(((row - mean) ** 2).sum())
        active += int((z > 0).sum())
        l1 += float(z.double().abs().sum())
        cosine += float(row @ r / row.norm() / r.norm())
        hat, dot = hat + float(r @ r), dot + float(r @ row)
        hat_c, dot_c = hat_c + float((r - mean) @ (r - mean)), dot_c + float((r - mean) @ (row - mean))
        fires += (z > 0).numpy()
    n = 35
    expected = {
        "fvu": sse / total,
        "explained_variance": 1 - sse / total,
        "mse": sse / n,
        "l0": active / n,
        "l1": l1 / n,
        "cosine": cosine / n,
        "relative_bias": hat / dot,
        "relative_bias_centered": hat_c / dot_c,
    }
    for name, slow in expected.items():
        assert value(found[name]) == pytest.approx(slow, rel=1e-6), name
    assert (found["images"], found["tokens"], found["n_latents"]) == (7, 35, 9)
    assert found["dead"] == int((fires == 0).sum()) >= 1
    assert found["dense"] == int((fires > 3.5).sum())
    histogram = found["frequency_histogram"]
    for low, high, count in zip(
        histogram["log10_edges"], histogram["log10_edges"][1:], histogram["counts"], strict=False
    ):
        assert count == sum(low < math.log10(f / n) <= high for f in fires if f > 0)
    assert sum(histogram["counts"]) + histogram["dead"] == 9


def test_batches_do_not_matter():
    x, model = make()
    whole = numbers(held_out_sums(model, [x], mean_of(x)), seed=1)
    pieces = numbers(held_out_sums(model, x.split(3), mean_of(x)), seed=1)
    for name in ("fvu", "l0", "cosine"):
        assert whole[name] == pytest.approx(pieces[name], rel=1e-6)


def test_intervals_are_quantiles_of_numbers_of_resampled_images():
    x, model = make(images=20)
    x[3] *= 5
    sums = held_out_sums(model, x.split(4), mean_of(x))
    found = numbers(sums, seed=5, resamples=400)["fvu"]
    table = sums.table().numpy()
    rng = np.random.default_rng(0)
    slow = []
    for _ in range(4000):
        drawn = table[rng.integers(0, 20, 20)].sum(0)
        slow.append(drawn[1] / drawn[2])
    low, high = np.quantile(slow, [0.025, 0.975])
    width = high - low
    assert found["low"] == pytest.approx(low, abs=0.15 * width)
    assert found["high"] == pytest.approx(high, abs=0.15 * width)
    assert found["low"] < found["value"] < found["high"]


def test_images_of_a_group_are_drawn_together():
    x, model = make(images=20)
    x[3] *= 5
    sums = held_out_sums(model, x.split(4), mean_of(x))
    groups = np.repeat([7, 2, 5, 9], [3, 8, 4, 5])
    found = numbers(sums, seed=5, resamples=400, groups=groups)
    table = sums.table()
    totals = torch.stack([table[torch.from_numpy(groups) == group].sum(0) for group in (2, 5, 7, 9)])
    wanted = bootstrap.ratios(totals, COLUMNS, RATIOS, 5, 400)["fvu"]
    assert found["fvu"] == {key: pytest.approx(number, rel=1e-12) for key, number in wanted.items()}
    assert found["fvu"]["value"] == pytest.approx(numbers(sums, seed=5, resamples=0)["fvu"]["value"], rel=1e-12)
    assert (found["images"], found["groups"]) == (20, 4)
    assert "[95 % over the 4 groups that they form]" in all_tables({"held_out": found})[0]["note"]
    assert "[95 % over images]" in all_tables({"held_out": numbers(sums, seed=5, resamples=9)})[0]["note"]
    difference = fvu_difference(sums, sums, 5, 400, groups)
    assert difference == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_explained_variance_has_the_mirrored_interval():
    x, model = make(images=12)
    found = numbers(held_out_sums(model, [x], mean_of(x)), seed=0)
    assert found["explained_variance"]["low"] == pytest.approx(1 - found["fvu"]["high"])


def test_resampled_totals_do_not_depend_on_the_block_size(monkeypatch):
    sums = torch.rand(11, 3, dtype=torch.float64)
    whole = bootstrap.resample(sums, seed=2, resamples=50)
    assert whole.shape == (50, 3)
    assert torch.equal(whole, bootstrap.resample(sums, seed=2, resamples=50))
    monkeypatch.setattr(bootstrap, "WEIGHTS_AT_ONCE", 11 * 7)
    assert torch.allclose(whole, bootstrap.resample(sums, seed=2, resamples=50))


def test_coverage_of_the_interval():
    """About 95 of 100 intervals of a ratio of means hold the true ratio."""
    generator = torch.Generator().manual_seed(0)
    held = 0
    for trial in range(100):
        sums = torch.stack([torch.rand(80, generator=generator), torch.ones(80)], -1)
        number = bootstrap.ratios(sums, ["a", "n"], {"mean": ("a", "n")}, seed=trial, resamples=200)["mean"]
        held += number["low"] <= 0.5 <= number["high"]
    assert 87 <= held <= 100


def test_one_image_has_no_interval_and_constant_images_no_fvu():
    x, model = make(images=1)
    found = numbers(held_out_sums(model, [x], mean_of(x)), seed=0)
    assert found["fvu"]["value"] is not None
    assert found["fvu"]["low"] is None
    still = torch.ones(2, 3, 6)
    found = numbers(held_out_sums(model, [still], mean_of(still)), seed=0)
    assert found["fvu"] == {"value": None, "low": None, "high": None}
    assert found["explained_variance"]["value"] is None


def test_a_diverged_model_is_reported():
    x, model = make()
    model.mean.fill_(float("nan"))
    with pytest.raises(WorkError, match="not finite"):
        held_out_sums(model, [x], mean_of(x))


class Sigmoid(Autoencoder):
    """Codes in (0, 1), active above .5, all of which take part in the reconstruction."""

    active_above = 0.5

    def __init__(self):
        super().__init__()
        self.d_in = self.n_latents = 6
        self.weight = torch.nn.Parameter(torch.eye(6))

    def encode(self, x):
        return torch.sigmoid(x @ self.weight)

    def decode(self, z):
        return torch.logit(z.clamp(1e-6, 1 - 1e-6)) @ self.weight.T


def test_small_sigmoid_codes_count_as_inactive_yet_reconstruct():
    x = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1))
    sums = held_out_sums(Sigmoid(), [x], mean_of(x))
    found = numbers(sums, seed=0)
    assert found["fvu"]["value"] < 1e-6
    assert found["l0"]["value"] == pytest.approx(float((x > 0).sum()) / 20)
    z = torch.sigmoid(x.flatten(0, 1)).double()
    q, variance = z.mean(0), z.var(0, correction=0)
    assert binarity(sums)["mean"] == pytest.approx(float((variance / (q * (1 - q))).mean()), rel=1e-5)


def test_on_off_codes_are_binary_and_constant_ones_are_not():
    onoff = torch.zeros(10, 4, 6)
    onoff[::2] = 40.0
    onoff[1::2] = -40.0
    assert binarity(held_out_sums(Sigmoid(), [onoff], mean_of(onoff)))["mean"] == pytest.approx(1, abs=1e-5)
    still = torch.full((10, 4, 6), -3.0)
    assert binarity(held_out_sums(Sigmoid(), [still], mean_of(still)))["mean"] == pytest.approx(0, abs=1e-5)


def test_latent_counts_keep_dead_apart_from_rare():
    counts = latent_counts(torch.tensor([0, 0, 1, 100, 101, 1000]), tokens=1000)
    assert (counts["dead"], counts["dense"]) == (2, 2)
    histogram = counts["frequency_histogram"]
    bins = dict(zip(histogram["log10_edges"], histogram["counts"], strict=False))
    assert (bins[-3.25], bins[-1.25], bins[-1.0], bins[-0.25]) == (1, 1, 1, 1)
