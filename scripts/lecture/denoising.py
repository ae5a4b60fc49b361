"""Figure 4: denoising with three noises on MNIST: clean, noisy, cleaned; filters; signal to noise."""

import math

import matplotlib.pyplot as plt
import torch

from lecture.learning import generator, learn, mnist, show, tiles
from saetool.autoencoders.corruption import corrupt

NOISES = {
    "gaussian, σ = 0.5": {"kind": "gaussian", "sigma": 0.5},
    "masking, 50 %": {"kind": "masking", "share": 0.5},
    "salt and pepper, 30 %": {"kind": "salt_pepper", "share": 0.3},
}
STEPS = 1200
SHOWN = 8
SHAPE = {"n_latents": 200, "activation": "sigmoid", "error": "cross_entropy"}


def draw():
    """Three noises and, for comparison, filters of the same model trained without noise."""
    train, test, _ = mnist()
    figure, axes = plt.subplots(2, 4, figsize=(13.5, 5), height_ratios=(0.5, 1))
    numbers = {"steps": STEPS, "noises": {}}
    for column, (name, noise) in enumerate(NOISES.items()):
        model = learn({"kind": "denoising", "corruption": noise, **SHAPE}, train, STEPS)
        with torch.no_grad():
            noisy = corrupt(model.corruption, test, generator(7))
            cleaned = model.denoise(noisy)
        before, after = signal_to_noise(noisy, test), signal_to_noise(cleaned, test)
        numbers["noises"][name] = {"noisy_psnr_db": before, "cleaned_psnr_db": after, "settings": noise}
        sheet = tiles(torch.cat([test[:SHOWN], noisy[:SHOWN], cleaned[:SHOWN]]), SHOWN)
        show(axes[0, column], sheet, f"{name}\n{before:.1f} → {after:.1f} dB")
        show(axes[1, column], tiles(model.encoder.weights[0][:64], 8, signed=True), "64 filters", signed=True)
    plain = learn({"kind": "dense", **SHAPE}, train, STEPS)
    with torch.no_grad():
        noisy = test + 0.5 * torch.randn(test.shape, generator=generator(7))
        copied = plain(noisy)
    before, after = signal_to_noise(noisy, test), signal_to_noise(copied, test)
    numbers["trained_without_noise"] = {"noisy_psnr_db": before, "cleaned_psnr_db": after}
    sheet = tiles(torch.cat([test[:SHOWN], noisy[:SHOWN], copied[:SHOWN]]), SHOWN)
    show(axes[0, 3], sheet, f"no noise in training, σ = 0.5 here\n{before:.1f} → {after:.1f} dB")
    for line, row in enumerate(("clean", "noisy", "cleaned")):
        axes[0, 0].text(-6, line * 29 + 14, row, ha="right", va="center")
    show(axes[1, 3], tiles(plain.encoder.weights[0][:64], 8, signed=True), "64 filters", signed=True)
    return figure, numbers


def signal_to_noise(x, clean) -> float:
    """Return the peak signal to noise ratio in decibels, for a peak of 1."""
    return -10 * math.log10(float((x - clean).square().mean()))
