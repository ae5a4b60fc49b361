"""Figure 3: sparse codes by L1 and by KL: histograms, filters, L0; and the trap of KL without decoder decay."""

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import normalize

from lecture.learning import generator, learn, mnist, show, tiles
from saetool.autoencoders.sparse_settings import KlPenalty, SigmoidActivation, SparseSettings

ATOMS, D, ACTIVE = 64, 32, 3
TOY_STEPS = 3000
STEPS = 1000


def draw():
    """Codes of MNIST under both penalties, then KL on combinations of known atoms with and without decay."""
    train, test, _ = mnist()
    figure, axes = plt.subplots(2, 3, figsize=(13, 8), gridspec_kw={"hspace": 0.28})
    numbers = {"mnist": {}, "atoms": {}, "steps": {"mnist": STEPS, "atoms": TOY_STEPS}}
    models = {
        "L1": {"activation": {"kind": "relu"}, "penalty": {"kind": "l1", "weight": 0.05}},
        "KL": {
            "activation": {"kind": "sigmoid"},
            "penalty": {"kind": "kl", "rho": 0.05, "weight": 0.01, "decoder_decay": 0.01},
        },
    }
    for column, (name, settings) in enumerate(models.items()):
        model = learn(
            {"kind": "sparse", "n_latents": 256, "normalize": "center_scale", **settings}, train, STEPS, lr=1e-3
        )
        with torch.no_grad():
            z = model.encode(test)
            fvu = float((model(test) - test).square().sum() / (test - test.mean(0)).square().sum())
        active = (z > model.active_above).float()
        order = active.mean(0).argsort(descending=True)
        filters = model.decoder_directions()[order[:100]]
        show(axes[0, column], tiles(filters, 10, signed=True), f"{name}: its 100 most used directions", signed=True)
        axes[0, 2].hist(z.flatten(), 120, (0, 6), histtype="step", log=True, label=f"{name}: FVU {fvu:.2f}")
        label = f"{name}: mean {active.sum(1).mean():.0f} of 256 above {model.active_above:g}"
        axes[1, 2].hist(active.sum(1), range(0, 120, 3), histtype="step", label=label)
        numbers["mnist"][name] = {
            "fvu": fvu,
            "l0": float(active.sum(1).mean()),
            "active_above": model.active_above,
            "dead": int((active.sum(0) == 0).sum()),
        }
    axes[0, 2].set(xlabel="value", title="values of the code on test digits")
    axes[1, 2].set(xlabel="active latents a digit (L0)", ylabel="digits", title="how many are active at a time")
    axes[1, 2].margins(y=0.25)
    for ax in axes[:, 2]:
        ax.legend(frameon=False)
    _trap(axes[1, 0], axes[1, 1], numbers["atoms"])
    return figure, numbers


def combinations(rows: int, seed: int):
    """Return (atoms, rows that each add 3 of them with amplitudes U(.5, 1.5))."""
    atoms = normalize(torch.randn(ATOMS, D, generator=generator(0)), dim=1)
    source = generator(seed)
    active = torch.rand(rows, ATOMS, generator=source).argsort(1)[:, :ACTIVE]
    amplitudes = torch.rand(rows, ACTIVE, generator=source) + 0.5
    return atoms, torch.zeros(rows, ATOMS).scatter_(1, active, amplitudes) @ atoms


def _trap(left, right, numbers: dict) -> None:
    """Train with KL with and without decay of the decoder: both meet ρ, one finds the atoms."""
    atoms, rows = combinations(100_000, 1)
    for name, decay, color in (("decay", 0.01, "tab:green"), ("no decay", 0.0, "tab:red")):
        penalty = KlPenalty(kind="kl", rho=ACTIVE / ATOMS, weight=1 / D)
        settings = SparseSettings(
            kind="sparse",
            n_latents=ATOMS,
            normalize="none",
            activation=SigmoidActivation(kind="sigmoid"),
            penalty=penalty,
        )
        # A copy is not validated: settings refuse no decay, for the very reason that this figure shows.
        penalty = penalty.model_copy(update={"decoder_decay": decay})
        settings = settings.model_copy(update={"penalty": penalty})

        def wide(model):
            model.W_enc.copy_(4 * model.W_dec)

        model = learn(settings, rows, TOY_STEPS, batch_size=1024, start=wide)
        with torch.no_grad():
            z = model.encode(rows[:5000])
            best = (normalize(model.decoder_directions(), dim=1) @ atoms.T).max(0).values
            fvu = float((model(rows[:5000]) - rows[:5000]).square().sum() / (rows[:5000] - rows.mean(0)).square().sum())
        mean = z.mean(0)
        binarity = float((z.var(0) / (mean * (1 - mean))).mean())
        left.hist(best, torch.linspace(0, 1, 41).tolist(), histtype="step", color=color, label=name)
        right.hist(z.flatten(), 60, histtype="step", log=True, color=color, label=f"{name}: mean {z.mean():.3f}")
        numbers[name] = {
            "mean_max_cosine": float(best.mean()),
            "share_of_atoms_found": float((best > 0.9).float().mean()),
            "mean_activation": float(z.mean()),
            "rho": ACTIVE / ATOMS,
            "binarity": binarity,
            "fvu": fvu,
            "decoder_norm": float(model.decoder_directions().norm(dim=1).mean()),
        }
    left.set(
        xlabel="largest cosine of an atom to a decoder direction", title="KL: which atoms are found", ylabel="atoms"
    )
    right.set(xlabel="value of the code", title=f"both meet ρ = {ACTIVE / ATOMS:.3f}; one is dense around it")
    for ax in (left, right):
        ax.legend(frameon=False, loc="upper left" if ax is left else "upper right")
