"""Figure 5: the lecture's picture of denoising: arrows g(f(x̃)) − x̃ point to the manifold of the data."""

import math

import matplotlib.pyplot as plt
import torch

from lecture.learning import generator, learn

SIGMA = 0.2
STEPS = 3000
SETTINGS = {
    "kind": "denoising",
    "hidden": (64,),
    "n_latents": 64,
    "activation": "relu",
    "residual": True,
    "corruption": {"kind": "gaussian", "sigma": SIGMA},
}


def draw():
    """The circle, where everything is known and measured, and a spiral."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.8))
    circle = _circle(50_000, 0)
    model = learn(SETTINGS, circle, STEPS, batch_size=1024)
    numbers = {"sigma": SIGMA, "circle": _gates(model, _circle(4000, 1))}
    _field(left, model, circle, 1.55)
    left.set_title(
        f"circle: distance to it falls to {numbers['circle']['distance_left']:.2f} of its value,\n"
        f"cosine to the projection {numbers['circle']['cosine_to_projection']:.4f}, "
        f"error left {numbers['circle']['error_left']:.2f}"
    )
    angle = torch.rand(50_000, generator=generator(3)) * 3 * math.pi
    radius = 0.25 + angle / (3 * math.pi) * 1.25
    spiral = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    _field(right, learn(_narrow(0.1), spiral, STEPS, batch_size=1024), spiral, 1.7)
    right.set_title("spiral, σ = 0.1: between two arms the arrows part")
    return figure, numbers


def _narrow(sigma: float) -> dict:
    return {**SETTINGS, "corruption": {"kind": "gaussian", "sigma": sigma}}


def _circle(rows: int, seed: int):
    angle = torch.rand(rows, generator=generator(seed)) * 2 * math.pi
    return torch.stack([angle.cos(), angle.sin()], 1)


@torch.no_grad()
def _gates(model, clean) -> dict:
    """Measure what the tests require of the circle."""
    noisy = clean + SIGMA * torch.randn(clean.shape, generator=generator(2))
    cleaned = model.denoise(noisy)
    away = [(x.norm(dim=1) - 1).abs().mean() for x in (noisy, cleaned)]
    ring = noisy[(noisy.norm(dim=1) - 1).abs() > SIGMA / 2]
    arrows, projection = model.denoise(ring) - ring, ring / ring.norm(dim=1, keepdim=True) - ring
    return {
        "distance_left": float(away[1] / away[0]),
        "cosine_to_projection": float(torch.cosine_similarity(arrows, projection).mean()),
        "error_left": float((cleaned - clean).square().sum() / (noisy - clean).square().sum()),
    }


@torch.no_grad()
def _field(axes, model, data, reach: float) -> None:
    """Draw the arrows on a grid, over some of the data."""
    side = torch.linspace(-reach, reach, 25)
    grid = torch.cartesian_prod(side, side)
    arrows = model.denoise(grid) - grid
    axes.scatter(*data[:2000].T, s=2, color="tab:orange")
    axes.quiver(*grid.T, *arrows.T, angles="xy", scale_units="xy", scale=2.5, width=0.003, color="tab:blue")
    axes.set(aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach))
