"""Figure 6: a denoiser estimates the score of the smoothed density, (r(x̃) − x̃) / σ² ≈ ∇ ln p_σ(x̃)."""

import matplotlib.pyplot as plt
import torch

from lecture.learning import generator, learn

CENTERS = torch.tensor([[1.5, 0.0], [-0.8, 1.2], [-0.6, -1.3]])
SPREAD = 0.4
SIGMAS = (0.05, 0.1, 0.2, 0.4, 0.8)
STEPS = 3000


def draw():
    """Estimated against true score at σ = 0.2, and the error against σ for both references."""
    models = {sigma: _denoiser(sigma) for sigma in SIGMAS}
    errors = {sigma: _compare(model, sigma) for sigma, model in models.items()}
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6))
    side = torch.linspace(-2.6, 2.6, 21)
    grid = torch.cartesian_prod(side, side)
    with torch.no_grad():
        estimate = models[0.2].score(grid)
    left.scatter(*_sample(3000, 1).T, s=2, color="0.8")
    left.quiver(*grid.T, *true_score(grid, 0.2).T, color="tab:green", scale=180, width=0.005, alpha=0.6, label="true")
    left.quiver(*grid.T, *estimate.T, color="tab:blue", scale=180, width=0.0025, label="estimated")
    left.set(aspect="equal", title=f"score at σ = 0.2: cosine {errors[0.2]['cosine']:.4f}")
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=2, frameon=False)
    for reference, label in (("smoothed", r"against $\nabla\ln p_\sigma$"), ("data", r"against $\nabla\ln p$ (σ → 0)")):
        right.plot(SIGMAS, [errors[s][f"relative_l2_{reference}"] for s in SIGMAS], "o-", label=label)
    right.set(xscale="log", yscale="log", xlabel="σ", ylabel="relative L2 error", title="which density's score it is")
    right.set_xticks(SIGMAS, [str(sigma) for sigma in SIGMAS], minor=False)
    ticks = (0.02, 0.05, 0.1, 0.2, 0.5, 1)
    right.set_yticks(ticks, [str(tick) for tick in ticks], minor=False)
    right.minorticks_off()
    right.legend(frameon=False)
    return figure, {"steps": STEPS, "errors": {str(sigma): error for sigma, error in errors.items()}}


def _denoiser(sigma: float):
    settings = {
        "kind": "denoising",
        "hidden": (64,),
        "n_latents": 64,
        "activation": "relu",
        "residual": True,
        "corruption": {"kind": "gaussian", "sigma": sigma},
    }
    return learn(settings, _sample(100_000, 0), STEPS, batch_size=1024)


def _sample(rows: int, seed: int):
    source = generator(seed)
    return CENTERS[torch.randint(3, (rows,), generator=source)] + SPREAD * torch.randn(rows, 2, generator=source)


def true_score(x, sigma: float):
    """Return ∇ ln of the mixture of gaussians smoothed with σ."""
    variance = SPREAD**2 + sigma**2
    apart = CENTERS - x[:, None]
    share = torch.softmax(-apart.square().sum(2) / (2 * variance), 1)
    return (share[:, :, None] * apart).sum(1) / variance


@torch.no_grad()
def _compare(model, sigma: float) -> dict:
    """Compare the estimate with both references where the noisy data lies."""
    x = _sample(5000, 1) + sigma * torch.randn(5000, 2, generator=generator(2))
    estimate, smoothed, data = model.score(x), true_score(x, sigma), true_score(x, 0.0)
    return {
        "cosine": float((estimate * smoothed).sum() / (estimate.norm() * smoothed.norm())),
        "relative_l2_smoothed": float((estimate - smoothed).norm() / smoothed.norm()),
        "relative_l2_data": float((estimate - data).norm() / data.norm()),
    }
