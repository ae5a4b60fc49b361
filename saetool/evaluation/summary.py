"""What an evaluation found, in a few lines: what `saetool evaluate` says at its end."""

from typing import Any

from saetool.artifacts import Artifact
from saetool.evaluation.pareto import read_evaluation
from saetool.evaluation.tables import number, with_interval

_SHOWN = ("accuracy", "cross_entropy", "embedding_cosine")
"""Of the effect on the model; all of it is in evaluation.md."""


def summary_lines(artifact: Artifact) -> list[str]:
    """Return the held-out numbers, the baselines beside them, the effect on the model and the best probes."""
    found = read_evaluation(artifact)
    held_out = found["held_out"]
    lines = [
        f"{held_out['images']:,} held-out images: FVU {with_interval(held_out['fvu'])}, L0 "
        f"{with_interval(held_out['l0'], '.1f')}, cosine {number(held_out['cosine']['value'])}; silent there "
        f"{held_out['dead']:,} of {held_out['n_latents']:,}",
        *_baselines(found.get("baselines") or []),
        *_effect(found.get("effect") or {}),
        *_probes(found.get("probing") or {}),
    ]
    return [*lines, f"all numbers: {artifact.path / 'evaluation.md'}"]


def _baselines(rows: list[dict[str, Any]]) -> list[str]:
    told = [f"{row['name']} {number(row['numbers']['fvu']['value'])}" for row in rows]
    return [f"FVU of baselines at this L0: {'; '.join(told)}"] if told else []


def _effect(effect: dict[str, Any]) -> list[str]:
    if "conditions" not in effect:
        return [f"effect on the model: not measured ({effect['skipped']})"] if effect else []
    told = []
    for name in [name for name in _SHOWN if name in effect["conditions"]["clean"]]:
        values = {c: number(effect["conditions"][c][name]["value"]) for c in ("clean", "spliced", "zero_ablation")}
        told.append(f"{name.replace('_', ' ')} {' / '.join(values.values())}")
    return [f"in the model (clean / with the reconstruction / without these tokens): {'; '.join(told)}"]


def _probes(probing: dict[str, Any]) -> list[str]:
    lines = []
    for label in probing.get("labels", []):
        best: dict[str, float] = {}
        for row in label["probes"]:
            accuracy = row["scores"]["full"]["balanced_accuracy"]
            if accuracy is not None:
                best[row["representation"]] = max(accuracy, best.get(row["representation"], 0.0))
        told = "; ".join(f"{name} {accuracy:.3f}" for name, accuracy in best.items())
        lines.append(f"linear probes of {label['name']}, balanced accuracy: {told}")
    return lines
