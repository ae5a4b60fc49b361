"""The model card: what an autoencoder is, where it belongs, how good it is, how to load it, who may use what."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from saetool.activations.sites import name_site
from saetool.artifacts import Artifact
from saetool.errors import SaetoolError
from saetool.features.reading import Features
from saetool.features.sheet import Cell, cells_of, contact_sheet
from saetool.progress import say

PICTURES = "examples.png"
LATENTS, IMAGES = 6, 6
"""Rows and columns of the sheet of examples."""


@dataclass(frozen=True)
class Card:
    """README.md of a repository; with an `sdk`, of the Space that shows a report of `artifacts`."""

    license: str | None = None
    sdk: str | None = None
    artifacts: dict[str, Artifact] = field(default_factory=dict)

    def text(self, repo: str, artifacts: dict[str, Artifact], pictured: bool) -> str:
        """Return the page for some artifacts of one run, by kind."""
        name = repo.split("/")[-1]
        head = ["---", *([f"license: {self.license}"] if self.license else [])]
        if self.sdk:
            head += [f"title: {name}", f"sdk: {self.sdk}", "app_file: report/index.html"]
        else:
            head += ["library_name: saetool", "tags: [sparse-autoencoder, interpretability, vision]"]
        body = [f"# {name}", "", *_facts(artifacts)]
        if pictured:
            body += ["", f"![Latents and the images that excite them most]({PICTURES})"]
        if not self.sdk:
            body += ["", "## Load it", "", *_how(repo, artifacts)]
        body += ["", "## License and attribution", "", *_attribution(artifacts, self.license), ""]
        body += ["Made with saetool; every file is listed with its digest in the `manifest.json` beside it."]
        return "\n".join([*head, "---", "", *body, ""])


def _facts(artifacts: dict[str, Artifact]) -> list[str]:
    rows: list[tuple[str, str]] = []
    if model := artifacts.get("autoencoder"):
        content, settings = model.content, model.content["settings"]
        site = content["site"]
        activation = (settings.get("activation") or {}).get("kind", "")
        rows += [
            ("family", f"{content['family']} {activation}".strip()),
            ("latents", f"{content['n_latents']:,} for activations of width {content['d_in']:,}"),
            ("site", name_site(site) if site else "open: any of its width"),
            ("normalization", f"{settings.get('normalize', 'none')}, inside the model: it takes raw activations"),
        ]
        if origin := content.get("origin"):
            rows.append(("imported from", f"{origin['source']} ({origin['format']}, {origin['digest']})"))
        else:
            rows.append(("trained on", f"{content['tokens']:,} activations, {content['steps']:,} steps"))
        rows += _numbers(content.get("final") or {}, "at the end of training, on held-out images")
    if evaluation := artifacts.get("evaluation"):
        rows += _numbers(evaluation.content, f"on {evaluation.content['images']:,} held-out images")
    if features := artifacts.get("features"):
        counts, content = features.content["counts"], features.content
        rows += [
            ("data of the index", f"{content['images']:,} images, {content['tokens']:,} tokens"),
            ("dead", f"{counts['dead']:,} of {content['n_latents']:,} latents never fire on them"),
        ]
    return ["| | |", "|---|---|", *(f"| {key} | {_cell(words)} |" for key, words in rows)]


def _numbers(found: dict[str, Any], where: str) -> list[tuple[str, str]]:
    rows = [(name, found.get(key)) for name, key in (("FVU", "fvu"), ("L0", "l0"))]
    return [(f"{name}", f"{value:.4g} {where}") for name, value in rows if value is not None]


def _cell(words: str) -> str:
    """Return a text that stays inside one cell of a table and is no markup."""
    return words.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _how(repo: str, artifacts: dict[str, Artifact]) -> list[str]:
    lines = ["    import saetool", f'    model = saetool.load("hf/{repo}")']
    lines.append("    codes = model.encode_sparse(activations)   # [rows, d_in], raw, from the site above")
    if "features" in artifacts:
        lines.append(f'    saetool.Features("hf/{repo}/features").top(0)   # what excites a latent')
    return lines


def _attribution(artifacts: dict[str, Artifact], license: str | None) -> list[str]:
    said = {str(a.content["attribution"]) for a in artifacts.values() if a.content.get("attribution")}
    lines = [f"Images: {_cell(text)}" for text in sorted(said)]
    lines.append(f"Weights: {license}." if license else "Weights: no license was given; ask who published them.")
    return lines if said else ["Images: none are credited in the manifests.", *lines]


def example_pictures(features: Artifact) -> Any:
    """Return a sheet of latents with the images that excite them most; None where the images are not at hand.

    Those latents are shown whose strongest images say most: neither dead nor dense, by their largest value.
    """
    from saetool.features.sheet import Originals
    from saetool.images import open_cached

    opened = Features(features)
    try:
        source = open_cached(opened.artifact.find_input("activations"))
        pictures = Originals(opened.images, source)
        rows = [(f"latent {latent}", _cells(opened, latent, pictures.read)) for latent in _chosen(opened)]
    except SaetoolError as error:
        say(f"{features.path}: no example pictures: {error}")
        return None
    return contact_sheet(rows, opened.geometry)


def _cells(features: Features, latent: int, read: Callable[[int], Any]) -> list[Cell]:
    return cells_of(features, latent, IMAGES, "top", read, lambda row: f"{row['value']:.3g}")


def _chosen(features: Features) -> Sequence[int]:
    rows = features.latents.select(["latent", "status", "max"]).to_pylist()
    shown = [row for row in rows if row["status"] == "ok"] or [row for row in rows if row["status"] != "dead"]
    return [row["latent"] for row in sorted(shown, key=lambda row: (-row["max"], row["latent"]))[:LATENTS]]
