"""Training curves out of `metrics.jsonl`: whichever numbers the log holds, thinned for a screen."""

import json
import math
from pathlib import Path

MAX_POINTS = 400
"""Points a curve: more than a screen has columns for a chart."""
_HELD_OUT = "held_out"
_CHARTS = (
    ("Loss", ("loss",)),
    ("Fraction of variance unexplained", ("fvu",)),
    ("Latents active per token (L0)", ("l0",)),
    ("Dead latents", ("dead_share", "dead")),
)


def read_curves(path: Path) -> list[dict]:
    """Return charts [{title, series: [{name, x, y}]}] of a metric log, x in training tokens (or steps)."""
    entries = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    clock = "tokens" if any("tokens" in entry for entry in entries) else "step"
    series: dict[str, list[tuple[float, float]]] = {}
    for entry in entries:
        x = entry.get(clock)
        for key, value in _flat(entry).items():
            if x is not None and key not in ("step", "tokens"):
                series.setdefault(key, []).append((float(x), value))
    charts = [_chart(title, names, series) for title, names in _CHARTS]
    return [{**chart, "clock": clock} for chart in charts if chart["series"]]


def _flat(entry: dict, prefix: str = "") -> dict[str, float]:
    """Return the finite numbers of a log line, nested names joined by dots."""
    split = f"{_HELD_OUT}." if entry.get("split") == _HELD_OUT or entry.get(_HELD_OUT) is True else ""
    found: dict[str, float] = {}
    for key, value in entry.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{split}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[f"{prefix}{split}{key}" if key not in ("step", "tokens") else key] = float(value)
    return found


def _chart(title: str, names: tuple[str, ...], series: dict[str, list[tuple[float, float]]]) -> dict:
    """Collect the series that belong to one chart: the number itself, its parts, and both on held-out images."""
    drawn = []
    for key, points in sorted(series.items()):
        plain = key.removeprefix(f"{_HELD_OUT}.").removeprefix("train.").removeprefix("metrics.")
        head = plain.split(".")[0]
        if head not in names and not (names[0] == "loss" and head in ("parts", "losses")):
            continue
        label = plain.replace("parts.", "").replace("losses.", "").replace("loss.", "").replace("_", " ")
        if key.startswith("metrics.") and plain in series:
            continue  # the model's own account of what the trainer measures too
        held_out = key.startswith(_HELD_OUT)
        drawn.append(
            {
                "name": ("held-out " if held_out else "") + label,
                "held_out": held_out,
                "x": [x for x, _ in _thin(points)],
                "y": [y for _, y in _thin(points)],
            }
        )
    return {"title": title, "series": drawn, "share": names[0] == "dead_share"}


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most `MAX_POINTS` points: means of equal runs, the last point kept."""
    if len(points) <= MAX_POINTS:
        return points
    run = math.ceil(len(points) / MAX_POINTS)
    groups = [points[i : i + run] for i in range(0, len(points), run)]
    means = [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]
    return [*means[:-1], points[-1]]
