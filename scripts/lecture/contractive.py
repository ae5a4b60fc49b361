"""Figure 7: a contractive encoder is sensitive along the data's manifold and flat across it."""

import math

import matplotlib.pyplot as plt
import torch

from lecture.learning import generator, learn, mean_error

WEIGHTS = (0.0, 0.02, 0.1, 0.5)
SETTINGS = {"kind": "contractive", "n_latents": 8, "hidden": (32,), "activation": "tanh", "tied": False}
STEPS = 2500


def draw():
    """Singular values of the Jacobian along the curve, sensitivity along and across it, the sensitive direction."""
    angle = torch.rand(4000, generator=generator(0)) * 1.5 * math.pi
    curve = torch.stack([angle.cos(), angle.sin()], 1)
    probe = torch.linspace(0.3, 1.5 * math.pi - 0.3, 200)
    at = torch.stack([probe.cos(), probe.sin()], 1)
    along, across = torch.stack([-probe.sin(), probe.cos()], 1), at
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13.5, 4), gridspec_kw={"wspace": 0.28})
    numbers = {"weights": list(WEIGHTS), "steps": STEPS, "models": []}
    for weight in WEIGHTS:
        model = learn({**SETTINGS, "weight": weight}, curve, STEPS, lr=1e-2, batch_size=256)
        jacobian = model.jacobian(at).detach()
        singular = torch.linalg.svdvals(jacobian)
        sensitivity = [(jacobian @ v[:, :, None]).norm(dim=(1, 2)).mean() for v in (along, across)]
        numbers["models"].append(
            {
                "weight": weight,
                "along": float(sensitivity[0]),
                "across": float(sensitivity[1]),
                "second_over_first_singular_value": float((singular[:, 1] / singular[:, 0]).mean()),
                "error": mean_error(model, curve),
            }
        )
        if weight in (WEIGHTS[0], WEIGHTS[-1]):
            color = "tab:blue" if weight else "0.6"
            middle.plot(probe, singular[:, 0], color=color, label=f"λ = {weight}: first")
            middle.plot(probe, singular[:, 1], "--", color=color, label=f"λ = {weight}: second")
    _directions(left, curve, at[::14], torch.linalg.svd(jacobian[::14])[2][:, 0])
    middle.set(yscale="log", xlabel="angle on the arc", title="singular values of the encoder's Jacobian")
    middle.legend(frameon=False, loc="center left", bbox_to_anchor=(0, 0.68), ncols=2)
    for key, style in (("along", "o-"), ("across", "o--")):
        right.plot(range(len(WEIGHTS)), [m[key] for m in numbers["models"]], style, label=f"{key} the arc")
    right.set_xticks(range(len(WEIGHTS)), [str(w) for w in WEIGHTS])
    right.set(yscale="log", xlabel="λ", ylabel="mean ‖J v‖", title="what the code feels")
    right.legend(frameon=False)
    return figure, numbers


def _directions(axes, curve, points, directions) -> None:
    """Draw the direction that moves the code most, both ways since it has no sign."""
    axes.scatter(*curve[:1500].T, s=1, color="tab:orange")
    for sign in (1, -1):
        axes.quiver(*points.T, *(sign * directions).T, scale=14, width=0.006, color="tab:blue")
    axes.set(aspect="equal", xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), title=f"most sensitive direction, λ = {WEIGHTS[-1]}")
