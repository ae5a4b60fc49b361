"""Figure 2: non-linear autoencoders against PCA at equal width, and greedy pretraining against none, on MNIST."""

import matplotlib.pyplot as plt
import torch

from lecture.learning import learn, mean_error, mnist, show, tiles

WIDTHS = (2, 8, 32)
STEPS = 1200
DEEP = {"kind": "dense", "hidden": (256, 64), "activation": "relu", "code_activation": "identity"}
GREEDY = {"kind": "dense", "n_latents": 8, "hidden": (256, 128, 64), "activation": "sigmoid", "error": "cross_entropy"}
GREEDY_STEPS = 1600


def draw():
    """Test error of PCA and a deep model for k = 2, 8, 32, reconstructions, and two learning curves."""
    train, test, classes = mnist()
    errors, sheets = {"pca": [], "deep": []}, []
    shown = torch.stack([(classes == digit).nonzero()[0, 0] for digit in range(10)])
    for k in WIDTHS:
        pca = learn({"kind": "linear", "n_latents": k}, train, 0)
        deep = learn({**DEEP, "n_latents": k, "error": "cross_entropy"}, train, STEPS, lr=2e-3)
        for name, model in (("pca", pca), ("deep", deep)):
            errors[name].append(mean_error(model, test))
            sheets.append((f"{'PCA' if name == 'pca' else 'deep'}, k = {k}", model(test[shown])))
    curves = {name: _curve(train, test, name == "greedy") for name in ("greedy", "none")}
    figure = plt.figure(figsize=(12.5, 4.4))
    grid = figure.add_gridspec(2, 3, width_ratios=(1.35, 1, 1.1))
    axes = figure.add_subplot(grid[:, 0])
    show(axes, tiles(torch.cat([test[shown], *(x for _, x in sheets)]).clamp(0, 1), 10), "test digits")
    for line, name in enumerate(["original", *(name for name, _ in sheets)]):
        axes.text(-6, line * 29 + 14, name, ha="right", va="center")
    axes = figure.add_subplot(grid[:, 1])
    positions = torch.arange(len(WIDTHS))
    axes.bar(positions - 0.2, errors["pca"], 0.4, label="PCA")
    axes.bar(positions + 0.2, errors["deep"], 0.4, label="784-256-64-k and back")
    axes.set_xticks(positions, [f"k = {k}" for k in WIDTHS])
    axes.set(ylabel="squared error on test digits", title="equal width, curved against flat", ylim=(0, 55))
    axes.legend(frameon=False)
    axes = figure.add_subplot(grid[:, 2])
    for name, label in (("greedy", "greedy, then fine-tuned"), ("none", "all layers from the start")):
        axes.plot(curves[name]["step"], curves[name]["test_cross_entropy"], label=label)
    axes.set(xlabel="step", ylabel="cross-entropy on test digits (nats)", title="784-256-128-64-8, sigmoids")
    axes.legend(frameon=False)
    numbers = {"k": list(WIDTHS), "test_error": errors, "curves": curves, "steps": STEPS, "greedy_steps": GREEDY_STEPS}
    return figure, numbers


def _curve(train, test, pretrain: bool) -> dict:
    """Return the whole stack's cross-entropy on test digits over the steps."""
    steps, values = [], []

    def watch(step, phase, model):
        if step % 50 == 49:
            steps.append(step + 1)
            values.append(float(model.error(model.encode(test), test, model.levels).total))

    settings = {**GREEDY, "pretrain": True, "pretrain_share": 0.4} if pretrain else GREEDY
    learn(settings, train, GREEDY_STEPS, lr=3e-3, watch=watch)
    return {"step": steps, "test_cross_entropy": values}
