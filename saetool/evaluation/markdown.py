"""evaluation.md: the numbers of evaluation.json as tables that a person reads."""

from collections.abc import Sequence
from typing import Any

from saetool.evaluation.effect import CONDITIONS
from saetool.evaluation.probing import K_SPARSE


def render(evaluation: dict[str, Any]) -> str:
    """Return the whole page."""
    subject = evaluation["subject"]
    lines = [
        "# Evaluation",
        "",
        f"{subject['family']} autoencoder, {subject['d_in']:,} → {subject['n_latents']:,} latents, "
        f"on {subject['site']}. "
        f"{evaluation['held_out']['images']:,} held-out images, {evaluation['held_out']['tokens']:,} tokens; "
        "intervals are 95 %, from resampled images.",
        "",
        *_quality(evaluation),
        *_decoder(evaluation.get("decoder")),
        *_effect(evaluation.get("effect")),
        *_probing(evaluation.get("probing")),
        *_stability(evaluation.get("stability")),
    ]
    return "\n".join(lines).rstrip() + "\n"


def number(value: float | None, form: str = ".3f") -> str:
    """Return a number for people, a dash where there is none."""
    return "–" if value is None else format(value, form)


def with_interval(found: dict[str, float | None], form: str = ".3f") -> str:
    """Return a number with its interval in brackets."""
    text = number(found["value"], form)
    return text if found["low"] is None else f"{text} [{number(found['low'], form)}, {number(found['high'], form)}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table: first column to the left, numbers to the right, bars in texts escaped."""
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [list(head), *map(list, rows)]]
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in [escaped[0], rule, *escaped[1:]]] + [""]


def _quality(evaluation: dict[str, Any]) -> list[str]:
    rows = [("this autoencoder", evaluation["held_out"])]
    rows += [(f"{row['name']} ({row['about']})", row["numbers"]) for row in evaluation.get("baselines") or []]
    head = ["model", "FVU", "L0", "cosine", "γ", "γ centered", "dead", "dense"]
    body = [
        [
            name,
            with_interval(found["fvu"]),
            with_interval(found["l0"], ".1f"),
            number(found["cosine"]["value"]),
            number(found["relative_bias"]["value"]),
            number(found["relative_bias_centered"]["value"]),
            f"{found['dead']:,} of {found['n_latents']:,}",
            f"{found['dense']:,}",
        ]
        for name, found in rows
    ]
    lines = ["## On held-out images", "", *table(head, body)]
    if "binarity" in evaluation["held_out"]:
        binarity = evaluation["held_out"]["binarity"]
        lines += [
            f"Binarity Var(z)/(q(1 − q)): mean {number(binarity['mean'])}, median {number(binarity['median'])}; "
            f"mean q {number(binarity['q_mean'], '.5f')} (ρ {binarity['rho']:g}).",
            "",
        ]
    return lines


def _decoder(decoder: dict[str, Any] | None) -> list[str]:
    if decoder is None:
        return []
    return [
        f"Decoder coherence (largest |cosine| of a latent to another): mean {decoder['mean']:.3f}, "
        f"median {decoder['quantiles']['0.5']:.3f}, maximum {decoder['max']:.3f}; "
        f"{decoder['share_above_0.9']:.1%} above 0.9.",
        "",
    ]


def _effect(effect: dict[str, Any] | None) -> list[str]:
    if not effect or "conditions" not in effect:
        return ["## In the model", "", f"Not measured: {effect['skipped']}.", ""] if effect else []
    names = list(effect["conditions"]["clean"])
    body = [[c.replace("_", " "), *(with_interval(effect["conditions"][c][n]) for n in names)] for c in CONDITIONS]
    for ablation, shares in effect["share_recovered"].items():
        body.append(
            [f"recovered, against {ablation.replace('_', ' ')}", *(number(shares.get(n), ".1%") for n in names)]
        )
    by = {"head": "the model's own head", "probe": f"a linear probe on {effect['label']}", "embedding": "no label"}
    lines = ["## In the model", "", f"{effect['images']:,} held-out images; classes by {by[effect['readout']]}.", ""]
    lines += table(["condition", *(name.replace("_", " ") for name in names)], body)
    if effect["latents"]:
        rows = [
            [
                row["class"],
                str(row["latent"]),
                *(number(row[key], "+.4f") for key in ("attributed", "attributed_there", "measured_logit")),
                number(row["measured_probability"], "+.4f"),
            ]
            for row in effect["latents"]
        ]
        head = ["class", "latent", "attributed", "on the ablated images", "measured logit", "measured probability"]
        lines += ["Change when a latent is ablated, mean over images of the class:", "", *table(head, rows)]
    return lines


def _probing(probing: dict[str, Any] | None) -> list[str]:
    if not probing:
        return []
    if not probing["labels"]:
        return ["## As features", "", f"Not measured: {probing['skipped']}.", ""]
    lines = ["## As features", ""]
    ks = [*map(str, K_SPARSE), "full"]
    for label in probing["labels"]:
        lines += [f"Probes of {label['name']} (balanced accuracy on held-out images, mean over classes):", ""]
        body = [
            [f"{row['representation']}, {row['pooling']}", f"{row['features']:,}"]
            + [number(row["scores"][k]["balanced_accuracy"]) for k in ks]
            for row in label["probes"]
        ]
        lines += table(["representation", "features", *(f"k = {k}" if k != "full" else "full" for k in ks)], body)
        lines += [f"Best single latent for a class of {label['name']} (AUROC, chosen on training images):", ""]
        body = [
            [row["representation"], number(row["mean_auroc"]), number(row["control_mean_auroc"])]
            + [f"{number(c['auroc'])} ({c['latent']})" for c in row["classes"]]
            for row in label["alignment"]
        ]
        lines += table(["representation", "mean", "shuffled labels", *label["classes"]], body)
    return lines


def _stability(rows: list[dict[str, Any]] | None) -> list[str]:
    if not rows:
        return []
    body = [
        [row["autoencoder"], *(number(row[way]["mean_max_cosine"]) for way in ("forward", "backward", "matched"))]
        for row in rows
    ]
    return ["## Against other seeds", "", *table(["autoencoder", "mean max cosine", "reverse", "one to one"], body)]
