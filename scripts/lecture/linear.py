"""Figure 1: the linear autoencoder is principal component analysis."""

import matplotlib.pyplot as plt
import numpy as np
import torch

from lecture.learning import digits, learn, mean_error, show, tiles
from saetool.activations import TensorStream
from saetool.autoencoders.linear import principal_components

WIDTHS = (1, 2, 4, 8, 16, 32)
STEPS = 2000
"""Of a training; the widest takes twice as many, as λ₃₂ and λ₃₃ are 5 % apart."""


def draw():
    """Error against k with the trailing eigenvalue sum, the excess of training over it, principal angles."""
    rows = digits()
    spectrum = principal_components(TensorStream(rows))
    exact, trained, angles = [], [], []
    for k in WIDTHS:
        exact.append(mean_error(learn({"kind": "linear", "n_latents": k}, rows, 0), rows))
        settings = {"kind": "linear", "n_latents": k, "solver": "gradient"}
        # Measured in float64: an excess below float32's rounding shows too.
        steps = 2 * STEPS if k == WIDTHS[-1] else STEPS
        model = learn(settings, rows, steps, lr=2e-2, batch_size=len(rows)).double()
        trained.append(mean_error(model, rows.double()))
        angles.append(spectrum.angles(model.decoder_directions()).tolist())
    least = [spectrum.error(k) for k in WIDTHS]
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), width_ratios=(1.2, 1.2, 1))
    all_k = np.arange(1, 65)
    left.plot(all_k, [spectrum.error(k) for k in all_k], "k-", lw=1, label=r"$\sum_{i>k}\lambda_i$")
    left.plot(WIDTHS, exact, "o", mfc="none", ms=9, label="closed form")
    left.plot(WIDTHS, trained, "x", label="trained by gradient")
    left.set(xscale="log", yscale="log", ylim=(0.05, 6), xlabel="k", ylabel="squared error a digit")
    left.set_title("the error is the sum of the eigenvalues after k")
    left.legend(frameon=False)
    middle.plot(WIDTHS, [max(a) for a in angles], "o-", label="largest principal angle to the top k (rad)")
    middle.plot(WIDTHS, np.array(trained) / np.array(least) - 1, "x-", label="excess error of training, relative")
    middle.set(xscale="log", yscale="log", xlabel="k", title="trained weights differ, their span does not")
    middle.set_ylim(top=50)
    middle.legend(frameon=False, loc="upper left")
    for ax in (left, middle):
        ax.set_xticks(WIDTHS, [str(k) for k in WIDTHS])
        ax.minorticks_off()
    components = learn({"kind": "linear", "n_latents": 16}, rows, 0).decoder_directions()
    show(right, tiles(components, 4, signed=True), "the top 16 principal components", signed=True)
    numbers = {
        "k": list(WIDTHS),
        "trailing_eigenvalue_sum": least,
        "closed_form_error": exact,
        "trained_error": trained,
        "principal_angles": angles,
        "eigenvalues": spectrum.values.tolist(),
        "total_variance": float(torch.as_tensor(spectrum.values).sum()),
    }
    return figure, numbers
