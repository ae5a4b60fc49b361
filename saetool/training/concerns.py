"""What is wrong with a trained autoencoder, as far as numbers tell: one line each, with what to change."""

import math
from typing import Any

from saetool.autoencoders.families import OWN
from saetool.autoencoders.sparse_settings import REVIVALS, SELECTING

MOST_SILENT = 0.2
"""Share of the latents that may be silent on all held-out images."""
LEAST_CHANCES = 5
"""Times that a latent could have fired on the measured tokens, on average, for its silence to say something."""
L0_WITHIN = 0.2
"""How far from its target L0 may end, as a share of it."""
MEMORY = 1.25
"""Held-out FVU over training FVU, from which on a part of what was learned is the training images themselves."""
LEAST_FIRINGS = 1500
"""Times that a latent fires in training, on average, below which it is said: `auto` gives it 4,000, and with half of
them 5 to 15 % of the latents fell silent (docs/settings.md)."""
FEW = 0.1
"""Share of active latents below which the code of a user's own family counts as sparse."""


def concerns(model: dict[str, Any], evaluation: dict[str, Any] | None = None) -> list[str]:
    """Return what a user should know before trusting an autoencoder, the worst first; empty where all is well.

    `model` is the content of its artifact, `evaluation` the sections of evaluation.json as far as they are made;
    without them the numbers of its training's end must do.
    """
    evaluation = evaluation or {}
    held_out = evaluation.get("held_out")
    final = {key: held_out[key]["value"] for key in ("fvu", "l0")} if held_out else model.get("final") or {}
    if held_out:
        final |= {"dead_share": held_out["dead"] / held_out["n_latents"], "rows": held_out.get("tokens")}
    sparse, memorized = is_sparse(model, final), _memorized(model, evaluation)
    # Where images are learned by heart, more passes over the same ones are no way out.
    more = "train on more images" if memorized else "train on more tokens (training.tokens)"
    found = [
        _worse_than_the_mean(final) or _worse_than_pca(model, evaluation, final, more, sparse),
        _unpenalized(model) or _hardly_penalized(model) or _off_target(model, final),
        _silent(model, final) if sparse else None,
        memorized,
        _short(model, final, more) if sparse else None,
    ]
    return [line for line in found if line is not None]


def measured_on(final: dict[str, Any]) -> str:
    """Return what the numbers of a training's end are of; of training rows where nothing was held out."""
    return "the training rows" if final.get("split") == "train" else "held-out images"


def _settings(model: dict[str, Any]) -> dict[str, Any]:
    return model.get("settings") or {}


def _chooses_k(model: dict[str, Any]) -> bool:
    return (_settings(model).get("activation") or {}).get("kind") in ("topk", "batch_topk")


def _fewer(model: dict[str, Any]) -> str:
    """Name the key that the number of latents was given by."""
    return f"fewer latents (autoencoder.{'expansion' if _settings(model).get('expansion') else 'n_latents'})"


def is_sparse(model: dict[str, Any], final: dict[str, Any]) -> bool:
    """Say whether a code is sparse: the sparse family's is meant to be, one of a user's own family shows it."""
    kind, l0 = _settings(model).get("kind"), final.get("l0")
    return kind == "sparse" or (kind not in (None, *OWN) and bool(l0) and l0 < FEW * model["n_latents"])


def _worse_than_the_mean(final: dict[str, Any]) -> str | None:
    if (final.get("fvu") or 0) <= 1:
        return None
    return (
        f"FVU is {final['fvu']:.3f} on {measured_on(final)}: worse than answering every time with the mean (1). Try a "
        "lower training.lr, or train on more tokens (training.tokens)."
    )


def _worse_than_pca(
    model: dict[str, Any], evaluation: dict[str, Any], final: dict[str, Any], more: str, sparse: bool
) -> str | None:
    settings = _settings(model)
    if settings.get("solver") == "closed_form" or (not sparse and model["n_latents"] >= model.get("d_in", math.inf)):
        return None  # as good as it can be; or PCA with as many components leaves nothing
    beside = "PCA" if sparse else "PCA, fixed"
    pca = next((row for row in evaluation.get("baselines") or [] if row["name"] == beside), None)
    if pca is None or final.get("fvu") is None or pca["numbers"]["fvu"]["value"] is None:
        return None
    difference = pca["fvu_difference"]
    sure = difference["low"] is not None and difference["low"] > 0
    if difference["value"] is None or sure:
        return None
    above = difference["value"] if difference["high"] is None else difference["high"]
    how = "worse than" if above < 0 else "no better than" if difference["value"] <= 0 else "not surely better than"
    topk = ", or as TopK (autoencoder.kind)" if settings.get("kind") == "sparse" and not _chooses_k(model) else ""
    fewer = f", or with {_fewer(model)}" if sparse else ""
    return (
        f"FVU {final['fvu']:.3f} is {how} PCA's {pca['numbers']['fvu']['value']:.3f} with as many "
        f"{'components a token' if sparse else 'components'}: "
        f"{more}{fewer}, or at a higher training.lr{topk}."
    )


def _unpenalized(model: dict[str, Any]) -> str | None:
    settings = _settings(model)
    if settings.get("kind") != "sparse" or "origin" in model or (settings.get("penalty") or {}).get("kind") != "none":
        return None
    activation = (settings.get("activation") or {}).get("kind")
    if activation in SELECTING:
        return None
    return (
        f"Nothing makes the code sparse: {activation} has no number of active latents, and the penalty is none. Give "
        "autoencoder.penalty ({kind: l1, target_l0: 45}), or a topk."
    )


def _hardly_penalized(model: dict[str, Any]) -> str | None:
    rising, steps = (_settings(model).get("penalty") or {}).get("warmup_steps"), model.get("steps")
    if not rising or not steps or rising < steps:
        return None
    return (
        f"The penalty rose until the {steps:,} steps were over (autoencoder.penalty.warmup_steps {rising:,}): train "
        "longer (training.tokens), or lower it."
    )


def _off_target(model: dict[str, Any], final: dict[str, Any]) -> str | None:
    target = (_settings(model).get("penalty") or {}).get("target_l0")
    l0 = final.get("l0")
    if not target or l0 is None or abs(l0 / target - 1) <= L0_WITHIN:
        return None
    return (
        f"L0 is {l0:.1f}, not {target:g} (autoencoder.penalty.target_l0): train longer (training.tokens), so that the "
        "weight can be steered there."
    )


def _silent(model: dict[str, Any], final: dict[str, Any]) -> str | None:
    share, rows, l0 = (final.get(key) for key in ("dead_share", "rows", "l0"))
    if share is None or share <= MOST_SILENT:
        return None
    if rows and l0 and rows * l0 < LEAST_CHANCES * model["n_latents"]:
        return None
    cure = next(iter(REVIVALS.get((_settings(model).get("activation") or {}).get("kind", "relu"), ())), None)
    has_it = cure in (None, (_settings(model).get("dead") or {}).get("kind"))
    ways = (
        "or a lower training.lr" if has_it else f"a lower training.lr, or a cure (autoencoder.dead: {{kind: {cure}}})"
    )
    return f"{share:.0%} of the latents never fire on {measured_on(final)}: {_fewer(model)}, {ways}."


def _memorized(model: dict[str, Any], evaluation: dict[str, Any]) -> str | None:
    seen = (evaluation.get("training") or {}).get("fvu") or {}
    unseen = (evaluation.get("held_out") or {}).get("fvu") or {}
    if not seen.get("value") or not unseen.get("value") or unseen["value"] <= MEMORY * seen["value"]:
        return None
    return (
        f"FVU is {unseen['value']:.3f} on held-out images and {seen['value']:.3f} on training ones: a part is learned "
        "by heart, or the two are of other kinds. More images, fewer passes over them (training.tokens) or "
        f"{_fewer(model)}."
    )


def _short(model: dict[str, Any], final: dict[str, Any], more: str) -> str | None:
    tokens, l0 = model.get("tokens"), final.get("l0")
    if not tokens or not l0 or "origin" in model:
        return None
    firings = tokens * l0 / model["n_latents"]
    if firings >= LEAST_FIRINGS:
        return None
    return (
        f"{tokens:,} tokens of training let each of {model['n_latents']:,} latents fire {firings:,.0f} times, of "
        f"{LEAST_FIRINGS:,} that it takes: {more}, or with {_fewer(model)}."
    )
