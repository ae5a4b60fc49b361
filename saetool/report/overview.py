"""One page over all runs below a folder: their place in the plane of L0 and FVU, and links to their reports.

Numbers compare where the site, the activations and the held-out images are the same: such runs share a letter. A
sweep's summary, all on the same held-out tokens, gets a plane of its own with baselines and intervals.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

from saetool.artifacts import Artifact
from saetool.artifacts.files import built_aside
from saetool.artifacts.manifest import MANIFEST
from saetool.errors import RequestError
from saetool.progress import say
from saetool.report.chunks import pack
from saetool.report.site import write_assets, write_page
from saetool.report.summary import family_words, site_words

FOLDER = "overview"
DEPTH = 3
"""How far below the folder autoencoders are looked for: NAME/MEMBER/autoencoder in a sweep."""


def write_overview(runs: Path) -> Path:
    """Write `runs`/overview and return its index.html; an overview that stands there is replaced.

    Raises RequestError when no finished autoencoder lies below `runs`.
    """
    runs = Path(runs)
    rows = _lettered([row for path in _models(runs) if (row := _row_or_none(path, runs)) is not None])
    if not rows:
        raise RequestError(f"{runs}: no finished run below it (looked for */autoencoder/{MANIFEST}).")
    place = runs / FOLDER
    with built_aside(place) as building:

        def write(name: str, data: bytes) -> None:
            path = building / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

        write_assets(write)
        groups = list({row["group"]: row for row in rows}.values())
        sweeps = _sweeps(runs)
        facts = {"runs": rows, "groups": groups, "sweeps": sweeps, "title": "Runs", "run": {"attribution": ""}}
        write("data/runs.js", pack("runs", {}, {"runs": rows, "sweeps": sweeps}))
        write_page(write, "index.html", facts, "overview.html")
        if place.exists():
            _remove_overview(place)
    return place / "index.html"


def _remove_overview(place: Path) -> None:
    """Delete an earlier overview; refuse to delete anything else."""
    if not (place / "data" / "runs.js").is_file():
        raise RequestError(f"{place}: is not an overview of runs, so it is not replaced. Move it away.")
    shutil.rmtree(place)


def _models(runs: Path) -> list[Path]:
    """Return the finished autoencoders below a folder, in order of path."""
    found = []
    for depth in range(1, DEPTH + 1):
        found += runs.glob("/".join(["*"] * (depth - 1) + ["autoencoder", MANIFEST]))
    return sorted(path.parent for path in found if not any(part.endswith((".partial", ".old")) for part in path.parts))


def _row_or_none(path: Path, runs: Path) -> dict[str, Any] | None:
    try:
        return _row(path, runs)
    except RequestError as problem:  # one that is damaged is no reason to show none
        say(f"{path}: left out. {problem}")
        return None


def _row(path: Path, runs: Path) -> dict[str, Any]:
    """Return what the page says about one run."""
    model = Artifact.open(path, "autoencoder")
    content = model.content
    final = content.get("final") or {}
    held_out = content.get("held_out") or {}
    store = next((entry["id"] for entry in model.inputs if entry["kind"] == "activations"), None)
    name = path.parent.relative_to(runs).as_posix()
    return {
        "name": runs.resolve().name if name == "." else name,
        "link": _link(path.parent, runs),
        "family": family_words(content.get("settings") or {}),
        "site": site_words(content.get("site") or {}),
        "id": model.id,
        "store": store,
        **{key: content.get(key) for key in ("n_latents", "d_in", "tokens")},
        **{key: final.get(key) for key in ("fvu", "l0", "dead_share")},
        **{f"held_out_{key}": held_out.get(key) for key in ("share", "seed", "group")},
    }


def _lettered(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add "group" to runs: the same letter where site, activations and held-out images are the same."""
    same = ("site", "d_in", "store", "held_out_share", "held_out_seed", "held_out_group")
    keys = [tuple(str(row[key]) for key in same) for row in rows]
    order = list(dict.fromkeys(keys))
    return [{**row, "group": _letter(order.index(key))} for row, key in zip(rows, keys, strict=True)]


def _letter(place: int) -> str:
    """Return A to Z, then AA, AB, …."""
    return (_letter(place // 26 - 1) if place >= 26 else "") + chr(ord("A") + place % 26)


def _link(run: Path, runs: Path) -> str | None:
    """Return the address of a run's report from the overview, None where there is no report."""
    report = run / "report" / "index.html"
    return quote(os.fsencode(Path(os.path.relpath(report, runs / FOLDER)).as_posix())) if report.is_file() else None


def _sweeps(runs: Path) -> list[dict[str, Any]]:
    """Return the planes of the sweeps below a folder, one a site: [{name, points}], members linked to their reports."""
    found = []
    for place in sorted([runs / "sweep", *runs.glob("*/sweep")]):
        if not (place / MANIFEST).is_file():
            continue
        try:
            summary = json.loads(Artifact.open(place, "sweep").read_bytes("sweep.json"))
        except RequestError as problem:
            say(f"{place}: left out. {problem}")
            continue
        run = place.parent
        points = [{**point, "link": _link(run / point["name"], runs)} for point in summary["points"]]
        sites = list(dict.fromkeys(point.get("site") for point in points))
        for site in sites:
            name = run.resolve().name if len(sites) < 2 else f"{run.resolve().name}, {site}"
            found.append({"name": name, "points": [point for point in points if point.get("site") == site]})
    return found
