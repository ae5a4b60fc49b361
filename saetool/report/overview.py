"""One page over all runs below a folder: their place in the plane of L0 and FVU, and links to their reports."""

import os
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import quote

from saetool.artifacts import Artifact
from saetool.artifacts.manifest import MANIFEST
from saetool.errors import RequestError
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
    rows = [_row(path, runs) for path in _models(runs)]
    if not rows:
        raise RequestError(f"{runs}: no finished run below it (looked for */autoencoder/{MANIFEST}).")
    building = runs / f"{FOLDER}.partial"
    shutil.rmtree(building, ignore_errors=True)

    def write(name: str, data: bytes) -> None:
        path = building / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    write_assets(write)
    write("data/runs.js", pack("runs", {}, {"runs": rows}))
    write_page(write, "index.html", {"runs": rows, "title": "Runs", "run": {"attribution": ""}}, "overview.html")
    place = runs / FOLDER
    if place.exists():
        _remove_overview(place)
    os.rename(building, place)
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


def _row(path: Path, runs: Path) -> dict[str, Any]:
    """Return what the page says about one run."""
    model = Artifact.open(path, "autoencoder")
    content = model.content
    final = content.get("final") or {}
    report = path.parent / "report" / "index.html"
    name = path.parent.relative_to(runs).as_posix()
    return {
        "name": runs.resolve().name if name == "." else name,
        "link": quote(Path(os.path.relpath(report, runs / FOLDER)).as_posix()) if report.is_file() else None,
        "family": family_words(content.get("settings") or {}),
        "site": site_words(content.get("site") or {}),
        "n_latents": content.get("n_latents"),
        "d_in": content.get("d_in"),
        "tokens": content.get("tokens"),
        "fvu": final.get("fvu"),
        "l0": final.get("l0"),
        "dead_share": final.get("dead_share"),
        "id": model.id,
    }
