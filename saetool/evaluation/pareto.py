"""The plane of sparsity and fidelity: one autoencoder with its baselines, or a sweep's members with theirs."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

from saetool import distributed
from saetool.artifacts import Artifact, Partial, Stage
from saetool.errors import RequestError
from saetool.evaluation.tables import AGREEMENT, AGREEMENT_COLUMNS, agreement, markdown_table, number, with_interval

COLUMNS = ("fvu", "l0", "cosine", "relative_bias")
"""Numbers with intervals that stand in every row of the table."""
_LEGEND = """\\* on the frontier: no other row has at most its L0 and at most its FVU, and one smaller. – not defined.

- L0: active latents a token, on average.
- FVU: the share of the variance that is not explained, its 95 % interval over images, or groups of them, beside it.
- cosine: between activations and reconstructions.
- silent: latents that never fire on held-out images; dense: latents active on more than one token in ten.
- Rows that are no members are baselines, at the L0 of the member in brackets."""
_OF_SITES = """
- Each layer has its own table: FVU is a share of that layer's variance, so rows of two tables are not compared."""


def point(name: str, kind: str, numbers: dict[str, Any]) -> dict[str, Any]:
    """Return one row of the plane from held-out numbers: values, and intervals as [low, high]."""
    row: dict[str, Any] = {"name": name, "kind": kind, "n_latents": numbers["n_latents"]}
    for column in COLUMNS:
        row[column] = numbers[column]["value"]
        row[f"{column}_interval"] = [numbers[column]["low"], numbers[column]["high"]]
    return row | {"dead": numbers["dead"], "dense": numbers["dense"]}


def mark_frontier(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add "frontier" to every point: no other has at most its L0 and at most its FVU, one of them smaller."""

    def beaten(a: dict[str, Any]) -> bool:
        return any(
            b["l0"] <= a["l0"] and b["fvu"] <= a["fvu"] and (b["l0"] < a["l0"] or b["fvu"] < a["fvu"])
            for b in points
            if b["fvu"] is not None and b["l0"] is not None
        )

    known = [p["fvu"] is not None and p["l0"] is not None for p in points]
    return [{**p, "frontier": ok and not beaten(p)} for p, ok in zip(points, known, strict=True)]


def read_evaluation(artifact: Artifact) -> dict[str, Any]:
    return json.loads(artifact.read_bytes("evaluation.json"))


def sweep_summary(members: dict[str, Artifact]) -> dict[str, Any]:
    """Return {"points": [...]}: the plane of a sweep's evaluation artifacts, by member name, baselines included.

    Every point says its "site": activations of another site are another plane, with a frontier of its own. Raises
    RequestError unless all were measured on the same held-out images.
    """
    if not members:
        raise RequestError("a sweep's summary needs at least one evaluation: run `saetool evaluate CONFIG` first")
    found = {name: read_evaluation(artifact) for name, artifact in members.items()}
    measured = {(e["subject"]["store"], e["held_out"]["images"]) for e in found.values()}
    if len(measured) > 1:
        raise RequestError(
            "these evaluations were made on different held-out images and cannot be compared: "
            + "; ".join(
                f"{name}: {e['held_out']['images']} images of {_store_of(members[name])}" for name, e in found.items()
            )
        )
    suffixes = {name: "" if len(found) == 1 else f" ({name})" for name in found}
    points = []
    for site in dict.fromkeys(e["subject"]["site"] for e in found.values()):
        here = {name: e for name, e in found.items() if e["subject"]["site"] == site}
        plane = [point(name, "autoencoder", e["held_out"]) for name, e in here.items()]
        for name, evaluation in here.items():
            rows = evaluation.get("baselines") or []
            plane += [point(row["name"] + suffixes[name], "baseline", row["numbers"]) for row in rows]
        points += [{**row, "site": site} for row in mark_frontier(plane)]
    return {"points": points}


def _store_of(evaluation: Artifact) -> str:
    """Return where the store stood that an evaluation was made on, as the evaluation notes it."""
    places = zip(evaluation.inputs, evaluation.notes.get("input_paths", ()), strict=False)
    return next((place for entry, place in places if entry["kind"] == "activations"), "a store")


def seed_pairs(autoencoders: dict[str, Artifact]) -> list[tuple[str, str]]:
    """Return the pairs of a sweep's members that differ in nothing but `training.seed`."""

    def request(artifact: Artifact) -> Any:
        training = {key: value for key, value in artifact.config["training"].items() if key != "seed"}
        return {**artifact.config, "training": training}, [entry["id"] for entry in artifact.inputs]

    def seed(artifact: Artifact) -> int:
        given = artifact.config["training"]["seed"]
        return artifact.config["seed"] if given is None else given

    def alike(a: Artifact, b: Artifact) -> bool:
        return request(a) == request(b) and seed(a) != seed(b)

    pairs = itertools.combinations(autoencoders, 2)
    return [(a, b) for a, b in pairs if alike(autoencoders[a], autoencoders[b])]


def sweep_stability(autoencoders: dict[str, Artifact]) -> list[dict[str, Any]]:
    """Return the agreement of decoder directions, a pair of members that differ in their seed; linear decoders only."""
    from saetool.autoencoders.families import load
    from saetool.evaluation.matching import stability

    rows = []
    for pair in seed_pairs(autoencoders):
        a, b = (load(autoencoders[name]).decoder_directions() for name in pair)
        if a is not None and b is not None:
            rows.append({"members": list(pair), **stability(a.detach(), b.detach())})
    return rows


def sweep_stage(members: dict[str, Artifact], autoencoders: dict[str, Artifact] | None = None) -> Stage:
    """Return the stage that writes the summary of a sweep's evaluations, sweep.json and sweep.md.

    With the members' `autoencoders`, those that differ in their seed only are compared (`stability`).
    """
    models = autoencoders or {}

    def build(partial: Partial) -> dict[str, Any]:
        if not distributed.is_main():
            return {}
        summary = sweep_summary(members) | {"stability": sweep_stability(models)}
        partial.write_json("sweep.json", summary)
        partial.write_bytes("sweep.md", sweep_markdown(summary).encode())
        return {"members": list(members)}

    return Stage("sweep", {"members": list(members)}, build, (*members.values(), *models.values()))


def sweep_markdown(summary: dict[str, Any]) -> str:
    """Return the summary as a Markdown table a site, autoencoders first, sparsest first; * marks the frontier.

    What marks and columns mean stands below. Where members differ in their seed only, a second table says how far they
    agree.
    """
    sites = list(dict.fromkeys(row["site"] for row in summary["points"]))
    planes = [_plane([row for row in summary["points"] if row["site"] == site]) for site in sites]
    titled = [f"## {site}\n\n{plane}" for site, plane in zip(sites, planes, strict=True)]
    text = "\n".join(planes if len(sites) < 2 else titled)
    text += f"\n{_LEGEND}{_OF_SITES if len(sites) > 1 else ''}\n"
    agreements = [[*row["members"], *agreement(row)] for row in summary.get("stability") or []]
    if agreements:
        table = markdown_table(["seeds of one model", "and", *AGREEMENT_COLUMNS], agreements)
        text += f"\nMean largest cosine between decoder directions, {AGREEMENT}.\n\n{table}\n"
    return text


def _plane(points: Sequence[dict[str, Any]]) -> str:
    rows = []
    for row in sorted(points, key=lambda row: (row["kind"], row["l0"] or 0.0)):
        low, high = row["fvu_interval"]
        fvu = with_interval({"value": row["fvu"], "low": low, "high": high})
        name = row["name"] + (" *" if row["frontier"] else "")
        rows.append([name, f"{row['n_latents']:,}", number(row["l0"], ".1f"), fvu, number(row["cosine"])])
        rows[-1] += [f"{row['dead']:,}", f"{row['dense']:,}"]
    return markdown_table(["model", "latents", "L0", "FVU [95 %]", "cosine", "silent", "dense"], rows) + "\n"
