"""Builds the report of an autoencoder: a static site that needs no server and no network."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saetool import distributed
from saetool.activations.thumbnails import StoredThumbnails
from saetool.artifacts import Artifact, Partial, Stage, artifact_of, run_stage
from saetool.errors import RequestError
from saetool.images import ImageSettings, ImageSource
from saetool.images.opening import open_moved
from saetool.report.chunks import pack
from saetool.report.curves import read_curves
from saetool.report.figures import figures_chunk, picture_shape, read_figures
from saetool.report.latents import PAGE_BLOCK
from saetool.report.pages import PAGES, FeaturePages
from saetool.report.settings import ReportSettings
from saetool.report.site import write_assets, write_page
from saetool.report.source import FeatureFiles, require_columns
from saetool.report.summary import summarize
from saetool.settings import Settings
from saetool.validation import request

if TYPE_CHECKING:
    from saetool.activations import ActivationStore
    from saetool.features import Features


class _Request(Settings):
    """What `report` is asked for: the sections that a config has."""

    report: ReportSettings
    images: ImageSettings | None = None


def report(
    made: "Artifact | Features | str | os.PathLike",
    out: str | os.PathLike = "",
    settings: ReportSettings | Mapping[str, Any] | None = None,
    *,
    autoencoder: Artifact | str | os.PathLike | None = None,
    activations: "Artifact | ActivationStore | str | os.PathLike | None" = None,
    evaluation: Artifact | str | os.PathLike | None = None,
    images: "ImageSource | ImageSettings | str | os.PathLike | None" = None,
    force: bool = False,
    **keywords: Any,
) -> Artifact:
    """Write the web page of an index, or of an autoencoder that has none; its `path` has the index.html.

    Args:
        made: features, or an autoencoder: then the page has its landing page only.
        settings: of a config's `report` section, or single keys of it as keywords (`title="Mine"`).
        autoencoder, activations: what `made` was made from, where that has moved.
        evaluation: an evaluation of the same autoencoder, to be shown as well.
        images: the pictures, where they have moved; rows that never were pictures have none.

    >>> rows = torch.randn(40, 4, 16, generator=torch.Generator().manual_seed(0))      # images, tokens, d
    >>> store = saetool.write_store("runs/page/activations", rows)
    >>> model = saetool.train(store, kind="topk", k=4, n_latents=32, tokens=512, batch_size=64, out="runs/page/model")
    >>> page = saetool.report(saetool.index(model, store, "runs/page/features"), "runs/page/report", title="Mine")
    >>> (page.path / "index.html").is_file()
    True
    """
    pictures = {"images": images} if isinstance(images, Mapping | ImageSettings) else {}
    asked = request(_Request, "report", {"report": settings}, keywords, pictures)
    given = getattr(made, "artifact", made)
    whole = given if isinstance(given, Artifact) else artifact_of(given, None, "report")
    features = None if whole.kind == "autoencoder" else artifact_of(whole, "features", "report")
    model = whole if features is None else _input(features, "autoencoder", autoencoder)
    store = _input(whole, "activations", activations)
    shown = None if evaluation is None else artifact_of(evaluation, "evaluation", "report")
    source = _pictures(store, asked.images or images)
    return run_stage(report_stage(features, store, model, shown, source, asked.report), out, force=force)


def _input(made: Artifact, kind: str, given: Any) -> Artifact:
    return made.find_input(kind) if given is None else artifact_of(given, kind, "report")


def _pictures(store: Artifact, given: Any) -> ImageSource | None:
    """Return the pictures of a store where the page needs them: given, or where they were."""
    unneeded = store.content["source"] is None or StoredThumbnails.are_in(store)
    return None if unneeded and not hasattr(given, "listing") else open_moved(store, given)


def report_stage(
    features: Artifact | None,
    store: Artifact,
    autoencoder: Artifact,
    evaluation: Artifact | None,
    source: ImageSource | None,
    settings: ReportSettings,
    command: str | None = None,
) -> Stage:
    """Return the stage that renders the site of `autoencoder`; without `features` it has the landing page only.

    `source` gives the images of `store` again, for thumbnails; a store that has its own needs none. `command` is how a
    reader would make this again: a note, which the page shows and no identity depends on. Raises RequestError when
    `settings.latents` names one that does not exist, the artifacts do not belong together, or the index lacks a column
    that every report reads.
    """
    if features is not None:
        _require_made_from(features, autoencoder, "index")
        _require_made_from(features, store, "index")
        require_columns(features)
        _require_latents(settings, features.content["n_latents"])
    if evaluation is not None:
        _require_made_from(evaluation, autoencoder, "evaluate")
    inputs = tuple(a for a in (features, store, autoencoder, evaluation) if a is not None)
    config: dict[str, Any] = settings.model_dump(mode="json")
    builder = _Builder(features, store, autoencoder, evaluation, source, settings, command)
    return Stage("report", config, builder.build, inputs)


def _require_latents(settings: ReportSettings, n_latents: int) -> None:
    beyond = [latent for latent in settings.latents or () if not 0 <= latent < n_latents]
    if beyond:
        raise RequestError(f"report.latents: {beyond[0]} is not a latent; they go from 0 to {n_latents - 1}.")


def _require_made_from(made: Artifact, source: Artifact, command: str) -> None:
    if source.id not in [entry["id"] for entry in made.inputs]:
        raise RequestError(
            f"{made.path}: was not made from {source.path}, but from other {source.kind}. "
            f"Give those, or make it again (`saetool {command} … --force`)."
        )


@dataclass(frozen=True)
class _Builder:
    features: Artifact | None
    store: Artifact
    autoencoder: Artifact
    evaluation: Artifact | None
    source: ImageSource | None
    settings: ReportSettings
    command: str | None

    def build(self, partial: Partial) -> dict[str, Any]:
        """Write the site and return its facts; one process writes, the others wait for the seal."""
        if not distributed.is_main():
            return {}
        content: dict[str, Any] = {}
        if self.features is None:
            partial.write_bytes("data/site.js", pack("site", {}, {}))
        else:
            pages = FeaturePages(FeatureFiles(self.features), self.store, self.source, self.settings)
            content = pages.write(partial)
        run = summarize(self.features, self.store, self.autoencoder, self.evaluation)
        facts = {
            "run": run,
            "title": self.settings.title or f"{run['n_latents']:,} latents of {run['backbone']}",
            "charts": self._write_curves(partial, run),
            "figures": self._write_figures(partial),
            "command": self.command is not None,
            "latent_block": PAGE_BLOCK,
        }
        if self.command is not None:
            partial.write_log("data/command.js", pack("command", {}, {"command": self.command}))
        write_assets(partial.write_bytes)
        for page in PAGES if self.features else ("index.html",):
            write_page(partial.write_bytes, page, facts)
        return content

    def _write_curves(self, partial: Partial, run: dict[str, Any]) -> int:
        """Write what the charts of the landing page draw; return how many curves there are."""
        log = "metrics.jsonl"
        charts = read_curves(self.autoencoder.file(log)) if log in self.autoencoder.files else []
        partial.write_bytes(
            "data/curves.js", pack("curves", {}, {"charts": charts, "pareto": run["evaluation"]["pareto"]})
        )
        return len(charts)

    def _write_figures(self, partial: Partial) -> bool:
        """Write the pictures of a model that is not sparse; say whether there are any."""
        figures = read_figures(self.autoencoder, self.evaluation)
        if figures:
            partial.write_bytes("data/figures.js", figures_chunk(figures, picture_shape(self.store)))
        return bool(figures)
