"""evaluation.json for people: the same numbers as tables of text, which the report shows and Markdown repeats.

A table is {"title", "note", "columns", "rows"}: texts, the first column a name, the others numbers.
"""

from collections.abc import Sequence
from typing import Any

from saetool.evaluation.effect import CONDITIONS
from saetool.evaluation.probing import K_SPARSE

Table = dict[str, Any]


def all_tables(evaluation: dict[str, Any]) -> list[Table]:
    """Return every table that the sections at hand give."""
    makers = {
        "references": (_references,),
        "decoder": (_decoder,),
        "features": (_specificity, _monosemanticity),
        "effect": (_effect, _strongest),
        "probing": (_probes, _alignment),
        "stability": (_stability,),
    }
    asked = [(make, found) for name, group in makers.items() if (found := evaluation.get(name)) for make in group]
    return [*_quality(evaluation), *(table for make, found in asked for table in make(found))]


def number(value: float | None, form: str = ".3f") -> str:
    """Return a number for people, a dash where there is none."""
    return "–" if value is None else format(value, form)


def with_interval(found: dict[str, float | None] | None, form: str = ".3f") -> str:
    """Return a number with its interval in brackets, a dash where there is none."""
    if found is None:
        return number(None)
    text = number(found["value"], form)
    return text if found["low"] is None else f"{text} [{number(found['low'], form)}, {number(found['high'], form)}]"


def _table(title: str, note: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    return {"title": title, "note": note, "columns": list(columns), "rows": [list(row) for row in rows]}


def _quality(evaluation: dict[str, Any]) -> list[Table]:
    held_out = evaluation["held_out"]
    rows = [("this autoencoder", held_out)]
    beside = [evaluation["refitted"]] if evaluation.get("refitted") else []
    beside += evaluation.get("baselines") or []
    rows += [(f"{row['name']}: {row['about']}", row["numbers"]) for row in beside]
    if seen := evaluation.get("training"):
        rows.append((f"this autoencoder, on {seen['images']:,} images that it was trained on", seen))
    differences = [None, *(row["fvu_difference"] for row in beside), None][: len(rows)]
    body = [
        [
            name,
            with_interval(found["fvu"]),
            with_interval(difference, "+.3f"),
            with_interval(found["l0"], ".1f"),
            number(found["l1"]["value"], ".2f"),
            number(found["cosine"]["value"]),
            number(found["relative_bias"]["value"]),
            number(found["relative_bias_centered"]["value"]),
            f"{found['dead']:,} of {found['n_latents']:,}",
            f"{found['dense']:,}",
        ]
        for (name, found), difference in zip(rows, differences, strict=True)
    ]
    drawn = f"the {held_out['groups']:,} groups that they form" if "groups" in held_out else "images"
    note = (
        f"{held_out['images']:,} images held out of training, {held_out['tokens']:,} tokens; [95 % over {drawn}]. "
        "Difference: to this autoencoder's FVU, image by image. "
        "γ: Σ‖x̂‖² / Σ x̂·x, 1 is unbiased; centered: after the mean is taken off."
    )
    columns = ["model", "FVU", "difference", "L0", "L1", "cosine", "γ", "γ centered", "silent", "dense"]
    tables = [_table("On held-out images", note, columns, body)]
    if "binarity" in held_out:
        found = held_out["binarity"]
        row = [f"{found['latents']:,} latents", number(found["mean"]), number(found["median"])]
        row += [number(found["q_mean"], ".5f"), f"{found['rho']:g}"]
        note = "Var(z) / (q (1 − q)), q a latent's mean: near 0 a dense code around ρ, around .5 on and off."
        tables.append(_table("Binarity", note, ["of", "mean", "median", "mean q", "ρ"], [row]))
    return tables


def _references(found: dict[str, Any]) -> list[Table]:
    body = [
        [
            f"{row['name']}: {row['about']}",
            with_interval(row["numbers"]["fvu"]),
            with_interval(row.get("fvu_difference"), "+.3f"),
            number(row["numbers"]["l0"]["value"], ".1f"),
        ]
        for row in found["rows"]
    ]
    note = (
        f"{found['tokens']:,} tokens of {found['images']:,} held-out images; pursuit: orthogonal matching pursuit, of "
        "either sign, with least squares. Own decoder against the autoencoder: what its encoder loses; random against "
        "own: what its directions are worth."
    )
    return [_table("Other codes at this L0", note, ["code", "FVU", "difference", "L0"], body)]


def _decoder(found: dict[str, Any]) -> list[Table]:
    row = [f"{found['latents']:,} latents", number(found["mean"]), number(found["quantiles"]["0.5"])]
    row += [number(found["max"]), number(found["share_above_0.9"], ".1%"), number(found["rms"]), number(found["welch"])]
    columns = ["of", "mean", "median", "maximum", "above 0.9", "rms of all pairs", "least possible rms"]
    note = "Largest |cosine| of a latent's decoder direction to another's."
    return [_table("Decoder coherence", note, columns, [row])]


def _monosemanticity(features: dict[str, Any]) -> list[Table]:
    found = features["monosemanticity"]
    if not found["latents"]:
        return []
    row = [f"{found['latents']:,} latents", number(found["all_pairs"]), number(found["mean"])]
    row += [number(value) for value in found["quantiles"].values()]
    columns = ["of", "all pairs of images", "mean", *(f"{float(q):.0%}" for q in found["quantiles"])]
    note = "Pach et al. 2025: how alike a latent's images are, beside all images; mean and quantiles over latents."
    return [_table("Monosemanticity", note, columns, [row])]


def _specificity(features: dict[str, Any]) -> list[Table]:
    found = features.get("specificity")
    if not found or not features["monosemanticity"]["latents"]:
        return []
    body = [
        [
            f"{row['features']:,} {what}",
            *(number(value, "+.3f") for value in (row["mean"], *row["quantiles"].values())),
            number(row.get("above_two_deviations"), ".0%"),
        ]
        for what, row in (("latents", found["latents"]), ("neurons, of either sign", found["neurons"]))
        if row
    ]
    columns = ["of", "mean", *(f"{float(q):.0%}" for q in found["latents"]["quantiles"]), "surely above chance"]
    note = (
        "How much more alike the images are that activate a feature than images by chance (0): monosemanticity less "
        "what each image has in common with all others. Surely: by two standard deviations over all ways to deal the "
        "same activations to the images."
    )
    return [_table("Specificity", note, columns, body)]


def _effect(effect: dict[str, Any]) -> list[Table]:
    if "conditions" not in effect:
        return [_table("In the model", f"Not measured: {effect['skipped']}.", [], [])]
    names = list(effect["conditions"]["clean"])
    conditions = [*CONDITIONS, *(name for name in effect["conditions"] if name not in CONDITIONS)]
    body = [
        [name.replace("_", " "), *(with_interval(effect["conditions"][name][n]) for n in names)] for name in conditions
    ]
    for baseline, found in effect["differences"].items():
        body.append([f"{baseline}, less spliced", *(with_interval(found[n], "+.3f") for n in names)])
    for ablation, shares in effect["share_recovered"].items():
        what = f"recovered, against {ablation.replace('_', ' ')}"
        body.append([what, *(with_interval(shares.get(n), ".1%") for n in names)])
    by = {"head": "the model's own head", "probe": f"a linear probe on {effect['label']}", "embedding": "no label"}
    note = (
        f"The reconstruction in place of the activation; {effect['images']:,} images; classes by "
        f"{by[effect['readout']]}. "
        "What the ablations leave says how much depends on these tokens at all; a dash: nothing to recover. Baselines "
        "at the autoencoder's L0 are spliced in the same way; their differences to it are of the same images."
    )
    if effect.get("left_out"):
        note += f" {len(effect['left_out']):,} classes without training images are left out."
    columns = ["condition", *(name.replace("_", " ").replace("kl ", "KL ") for name in names)]
    return [_table("In the model", note, columns, body)]


def _strongest(effect: dict[str, Any]) -> list[Table]:
    found = effect.get("latents")
    if not found:
        return []
    keys = ("attributed", "attributed_there", "measured_logit", "measured_probability")
    body = [
        [row["class"], str(row["latent"]), *(number(row[key], "+.4f") for key in keys), number(row["embedding_cosine"])]
        for row in found
    ]
    columns = ["class", "latent", "attributed", "attributed, ablated images", "measured logit", "measured probability"]
    columns += ["embedding cosine"]
    note = "Change of the class when a latent is ablated, mean over images of the class."
    return [_table("Latents with the largest effect on a class", note, columns, body)]


def _probes(probing: dict[str, Any]) -> list[Table]:
    if not probing["labels"]:
        return [_table("As features", f"Not measured: {probing['skipped']}.", [], [])]
    ks = [*map(str, K_SPARSE), "full"]
    tables = []
    for label in probing["labels"]:
        body = [
            [f"{row['representation']}, {row['pooling']}", f"{row['features']:,}"]
            + [number(row["scores"][k]["balanced_accuracy"]) for k in ks]
            for row in label["probes"]
        ]
        columns = ["representation", "features", *(k if k == "full" else f"k = {k}" for k in ks)]
        note = "Balanced accuracy of a linear probe on k features, or all, of an image; on held-out images."
        tables.append(_table(f"Probes of {label['name']}", note, columns, body))
    return tables


def _alignment(probing: dict[str, Any]) -> list[Table]:
    tables = []
    for label in probing["labels"]:
        body = [
            [row["representation"], number(row["mean_auroc"]), number(row["control_mean_auroc"])]
            + [text for c in row["classes"] for text in _one_latent(c)]
            for row in label["alignment"]
        ]
        note = (
            "AUROC of the best single latent, with its number, pooling and sign, chosen on training images, scored on "
            "held-out ones; and how much it exceeds that of the best neuron, on the same images. "
            "[95 %: DeLong; where images form groups, Obuchowski]"
        )
        columns = ["representation", "mean", "shuffled labels"]
        columns += [text for name in label["classes"] for text in (name, f"{name}: less the best neuron's")]
        tables.append(_table(f"One latent for a class of {label['name']}", note, columns, body))
    return tables


def _one_latent(row: dict[str, Any]) -> tuple[str, str]:
    if row["latent"] is None:
        return number(None), number(None)
    which = f"{'−' if row['sign'] < 0 else ''}{row['latent']}, {row['pooling']}"
    return f"{with_interval(row['auroc'])} ({which})", with_interval(row["difference"], "+.3f")


def _stability(found: list[dict[str, Any]]) -> list[Table]:
    body = [[row["autoencoder"], *agreement(row)] for row in found]
    note = f"Mean largest cosine between decoder directions, {AGREEMENT}."
    return [_table("Against other trainings", note, ["autoencoder", *AGREEMENT_COLUMNS], body)]


AGREEMENT = "here to there, there to here, and matched one to one; chance: to as many random directions"
AGREEMENT_COLUMNS = ["here", "there", "one to one", "chance", "chance, one to one"]


def agreement(row: dict[str, Any]) -> list[str]:
    """Return the numbers of `stability` under AGREEMENT_COLUMNS."""
    found = [row["forward"], row["backward"], row["matched"], row["chance"]["forward"], row["chance"]["matched"]]
    return [number(way["mean_max_cosine"]) for way in found]


def render(title: str, tables: Sequence[Table], concerns: Sequence[str] = ()) -> str:
    """Return a Markdown page: a heading, what to know before all else, each table under its title with its note."""
    parts = [f"# {title}", *(f"**Note:** {_escaped(concern)}" for concern in concerns)]
    for table in tables:
        parts += [f"## {table['title']}", table["note"]]
        if table["rows"]:
            parts.append(markdown_table(table["columns"], table["rows"]))
    return "\n\n".join(parts) + "\n"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown: first column to the left, the others to the right, bars in texts escaped."""
    rule = ["---", *["---:"] * (len(columns) - 1)]
    lines = [[_escaped(cell) for cell in columns], rule, *[[_escaped(cell) for cell in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
