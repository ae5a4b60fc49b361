"""Figure 8: variational autoencoders: latent plane, samples, interpolation, and the exact linear case."""

import matplotlib.pyplot as plt
import numpy as np
import torch

from lecture.learning import generator, learn, mnist, show, tiles
from saetool.autoencoders import Step

STEPS = 1600
LINEAR_STEPS = 1500
DEEP = {
    "kind": "variational",
    "hidden": (256,),
    "activation": "relu",
    "likelihood": "bernoulli",
    "warmup_steps": 300,
}
SIDE = 14


def draw():
    """MNIST with 2 and 16 latents; a linear model in R^6 against probabilistic PCA."""
    train, test, classes = mnist()
    plane = learn({**DEEP, "n_latents": 2}, train, STEPS, lr=2e-3)
    wide = learn({**DEEP, "n_latents": 16}, train, STEPS, lr=2e-3)
    figure, axes = plt.subplots(2, 3, figsize=(13, 8.4))
    _plane(axes[0, 0], plane, test, classes)
    quantiles = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.03, 0.97, SIDE))
    lattice = torch.stack([torch.stack([x, y]) for y in quantiles.flip(0) for x in quantiles])
    with torch.no_grad():
        show(axes[0, 1], tiles(plane.decode(lattice), SIDE, gap=0), "the plane decoded, at quantiles of the prior")
        show(axes[0, 2], tiles(wide.sample(100, generator(5)), 10), "100 samples, 16 latents")
        show(axes[1, 0], _interpolation(wide, test), "between test digits")
    for line in range(4):
        axes[1, 0].text(-4, line * 29 + 14, ("code", "pixels")[line % 2], ha="right", va="center")
    numbers = {name: _bounds(model, test) for name, model in (("2 latents", plane), ("16 latents", wide))}
    _betas(axes[1, 1], train, test, numbers)
    _linear(axes[1, 2], numbers)
    return figure, {**numbers, "steps": STEPS}


def _plane(axes, model, test, classes) -> None:
    with torch.no_grad():
        codes = model.encode(test)
    points = axes.scatter(*codes.T, c=classes, cmap="tab10", s=5)
    axes.figure.colorbar(points, ax=axes, ticks=range(10))
    axes.set(xlabel="z₁", ylabel="z₂", title="posterior means of test digits", aspect="equal")


def _interpolation(model, test) -> np.ndarray:
    """Return two pairs of lines: through the code, and straight through the pixels."""
    share = torch.linspace(0, 1, 10)[:, None]
    lines = []
    for first, last in ((0, 1), (2, 5)):
        z = model.encode(test[[first, last]])
        lines.append(model.decode(z[0] + share * (z[1] - z[0])))
        lines.append(test[first] + share * (test[last] - test[first]))
    return tiles(torch.cat(lines), 10)


@torch.no_grad()
def _bounds(model, test) -> dict:
    elbo, bound = model.importance_bound(test, 50, generator(6))
    return {
        "elbo_nats": float(elbo.mean()),
        "importance_bound_nats": float(bound.mean()),
        "active_units": int(model.active_units([test]).sum()),
    }


def _betas(axes, train, test, numbers: dict) -> None:
    """Show what β trades: divergence against the likelihood's error."""
    betas = (0.25, 1.0, 4.0)
    rows = []
    for beta in betas:
        model = learn({**DEEP, "n_latents": 16, "beta": beta}, train, STEPS // 2, lr=2e-3)
        with torch.no_grad():
            loss = model.loss(test, Step(10**9), generator(6))
        active = int(model.active_units([test]).sum())
        rows.append((float(loss.metrics["kl"]), float(loss.parts["reconstruction"]), active))
    numbers["betas"] = [
        {"beta": beta, "kl_nats": kl, "reconstruction_nats": error, "active_units": active}
        for beta, (kl, error, active) in zip(betas, rows, strict=True)
    ]
    axes.plot([row[0] for row in rows], [row[1] for row in rows], "o-")
    for beta, (kl, error, active) in zip(betas, rows, strict=True):
        # On the side of the curve that is free, and inside the frame.
        place = {"xytext": (7, 3)} if beta > 1 else {"xytext": (-5, -12), "ha": "right"}
        axes.annotate(f"β = {beta:g}, {active} active", (kl, error), textcoords="offset points", **place)
    axes.set(xlabel="KL (nats)", ylabel="−E ln p(x|z) (nats)", title="16 latents: what β trades")
    axes.margins(0.6, 0.2)


def _linear(axes, numbers: dict) -> None:
    """Train the linear gaussian model and compare its ELBO with probabilistic PCA's likelihood."""
    rows = torch.randn(3000, 2, generator=generator(2)) @ torch.randn(2, 6, generator=generator(1)) + 2
    rows = rows + 0.4 * torch.randn(3000, 6, generator=generator(3))
    exact = learn({"kind": "variational", "n_latents": 2, "solver": "closed_form"}, rows, 0)
    steps, elbos = [], []

    def watch(step, phase, model):
        if step % 20 == 0:
            steps.append(step)
            elbos.append(float(model.elbo(rows, generator(0)).mean()) / 6)

    learn({"kind": "variational", "n_latents": 2}, rows, LINEAR_STEPS, lr=1e-2, batch_size=500, watch=watch)
    with torch.no_grad():
        best = float(exact.elbo(rows, generator(0)).mean()) / 6
    axes.plot(steps, elbos, label="trained linear model's ELBO")
    axes.axhline(best, color="k", lw=1, ls="--", label="probabilistic PCA, closed form")
    axes.set(xlabel="step", ylabel="nats a dimension", title="the exact case")
    axes.legend(frameon=False)
    numbers["linear"] = {"closed_form_nats_per_dimension": best, "trained_nats_per_dimension": elbos[-1]}
