"""Builds the report of a features artifact: a static site that needs no server and no network."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from saetool import progress
from saetool.artifacts import Artifact, Partial, Stage
from saetool.errors import RequestError
from saetool.report import columns, latents, pictures
from saetool.report.chunks import bitmap, pack
from saetool.report.curves import read_curves
from saetool.report.settings import ReportSettings
from saetool.report.site import write_assets, write_page
from saetool.report.source import FeatureFiles
from saetool.report.summary import summarize

PAGES = ("index.html", "latent.html", "image.html")
LATENT_SHARE, PATCH_SHARE = 0.5, 0.75
"""Shares of `max_mb` that latent pages, and these with image pages, may take; thumbnails get what is left."""


def report_stage(
    features: Artifact,
    store: Artifact,
    autoencoder: Artifact,
    evaluation: Artifact | None,
    source: pictures.ReadsImages,
    settings: ReportSettings,
    command: str | None = None,
) -> Stage:
    """Return the stage that renders the site of `features`.

    `source` gives the images of `store` again, for thumbnails; `command` is how a reader would make this again.
    """
    _require_latents(settings, features.content["n_latents"])
    inputs = tuple(a for a in (features, store, autoencoder, evaluation) if a is not None)
    config: dict[str, Any] = {**settings.model_dump(mode="json"), "command": command}
    builder = _Builder(features, store, autoencoder, evaluation, source, settings, command)
    return Stage("report", config, builder.build, inputs)


def _require_latents(settings: ReportSettings, n_latents: int) -> None:
    beyond = [latent for latent in settings.latents or () if not 0 <= latent < n_latents]
    if beyond:
        raise RequestError(f"report.latents: {beyond[0]} is not a latent; they go from 0 to {n_latents - 1}.")


@dataclass(frozen=True)
class _Builder:
    features: Artifact
    store: Artifact
    autoencoder: Artifact
    evaluation: Artifact | None
    source: pictures.ReadsImages
    settings: ReportSettings
    command: str | None

    def build(self, partial: Partial) -> dict[str, Any]:
        """Write the site and return its facts."""
        files = FeatureFiles(self.features)
        images = pq.read_table(self.store.file("images.parquet"))
        budget = _Budget(partial, int(self.settings.max_mb * 1e6))
        self._write_tables(partial, files, images, budget)
        with_page = self._write_latents(files, budget)
        ranked = _ranked_images(files)
        image_pages = self._write_patches(files, ranked[: self.settings.max_images], budget)
        wanted = np.concatenate([ranked[np.isin(ranked, image_pages)], ranked[~np.isin(ranked, image_pages)]])
        thumbnails = pictures.Thumbnails(images, self.source).make(wanted, partial.path, budget.left(1.0))
        run = self._summary()
        charts = self._write_curves(partial, run)
        self._write_site(partial, files, run, with_page, image_pages, thumbnails)
        write_assets(partial.write_bytes)
        title = self.settings.title or f"{run['n_latents']:,} latents of {run['backbone']}"
        for page in PAGES:
            write_page(
                partial.write_bytes, page, {"run": run, "title": title, "charts": charts, "command": self.command}
            )
        return {
            "n_latents": files.n_latents,
            "latent_pages": int(with_page.sum()),
            "image_pages": len(image_pages),
            "thumbnails": len(thumbnails),
        }

    def _summary(self) -> dict[str, Any]:
        return summarize(self.features, self.store, self.autoencoder, self.evaluation, self.source.attribution)

    def _write_curves(self, partial: Partial, run: dict[str, Any]) -> int:
        """Write what the charts of the landing page draw; return how many curves there are."""
        log = self.autoencoder.path / "metrics.jsonl"
        charts = read_curves(log) if log.is_file() else []
        values = {"charts": charts, "pareto": run["evaluation"]["pareto"]}
        partial.write_bytes("data/curves.js", pack("curves", {}, values))
        return len(charts)

    def _write_tables(self, partial: Partial, files: FeatureFiles, images: Any, budget: "_Budget") -> None:
        """Write the table of latents, the glimpses and the image facts: never bounded."""
        labels = files.content["labels"]
        shown = columns.columns_of(labels, files.latents)
        arrays, texts = columns.table_arrays(files.latents, shown)
        best = np.full(files.n_latents, -1, np.int32)
        for block, script, first in latents.glimpses(files):
            best[block * latents.GLIMPSE_BLOCK :][: len(first)] = first
            budget.write(f"data/glimpses/{block}.js", script)
        arrays["best_image"] = best
        budget.write("data/table.js", pack("table", arrays, {"texts": texts, "columns": columns.describe(shown)}))
        for name, script in pictures.facts_chunks(images, labels, files.content["geometry"]):
            budget.write(f"data/{name}.js", script)

    def _write_latents(self, files: FeatureFiles, budget: "_Budget") -> np.ndarray:
        """Write the latent pages' chunks while half of the budget lasts; return which latents have one."""
        chosen = np.ones(files.n_latents, bool)
        if self.settings.latents is not None:
            chosen[:] = False
            chosen[self.settings.latents] = True
        with_page = np.zeros(files.n_latents, bool)
        with progress.bar("latent pages", files.n_latents, "latents") as advance:
            for block, script in latents.page_chunks(files, chosen):
                if len(script) > budget.left(LATENT_SHARE):
                    progress.say(f"report.max_mb: latents from {block * latents.PAGE_BLOCK} on get no page")
                    break
                budget.write(f"data/latents/{block}.js", script)
                span = slice(block * latents.PAGE_BLOCK, (block + 1) * latents.PAGE_BLOCK)
                with_page[span] = chosen[span]
                advance(latents.PAGE_BLOCK)
        return with_page

    def _write_patches(self, files: FeatureFiles, chosen: np.ndarray, budget: "_Budget") -> np.ndarray:
        """Write the image pages' chunks while their share of the budget lasts; return the rows that have a page."""
        if files.patches_file is None:
            return np.zeros(0, np.int64)
        written = []
        for rows, name, script in pictures.patches_chunks(files.patches_file, np.sort(chosen), files.n_latents):
            if len(script) > budget.left(PATCH_SHARE):
                progress.say("report.max_mb: some images get no page")
                break
            budget.write(f"data/{name}.js", script)
            written.append(rows)
        return np.concatenate(written) if written else np.zeros(0, np.int64)

    def _write_site(
        self,
        partial: Partial,
        files: FeatureFiles,
        run: dict,
        with_page: np.ndarray,
        image_pages: np.ndarray,
        thumbnails: np.ndarray,
    ) -> None:
        """Write what every page loads first: sizes, labels, and which latents and images have a page."""
        status = files.latents["status"].to_pylist()
        values = {
            "n_latents": files.n_latents,
            "n_images": files.n_images,
            "grid": files.content["grid"],
            "labels": files.content["labels"],
            "label_classes": latents.label_classes(files),
            "blocks": {
                "latents": latents.PAGE_BLOCK,
                "glimpses": latents.GLIMPSE_BLOCK,
                "glimpse_images": latents.GLIMPSE_IMAGES,
                "images": pictures.FACTS_BLOCK,
                "patches": pictures.PATCHES_BLOCK,
            },
            "columns": columns.describe(columns.columns_of(files.content["labels"], files.latents)),
            "statuses": columns.STATUSES,
            "intervals": files.content.get("intervals"),
            "sparse_threshold": files.content.get("sparse_threshold"),
        }
        arrays = {
            "live": bitmap(np.asarray([name != "dead" for name in status])),
            "with_page": bitmap(with_page),
            "image_page": bitmap(_mask(files.n_images, image_pages)),
            "thumbnail": bitmap(_mask(files.n_images, thumbnails)),
        }
        if (edges := files.tensor("histogram_edges")) is not None:
            arrays["histogram_edges"] = edges.astype(np.float32)
        partial.write_bytes("data/site.js", pack("site", arrays, values))


class _Budget:
    """Counts the bytes written below the bound."""

    def __init__(self, partial: Partial, bound: int):
        self.partial, self.bound, self.spent = partial, bound, 0

    def write(self, name: str, data: bytes) -> None:
        self.partial.write_bytes(name, data)
        self.spent += len(data)

    def left(self, share: float) -> int:
        return int(self.bound * share) - self.spent


def _mask(size: int, rows: np.ndarray) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[rows] = True
    return mask


def _ranked_images(files: FeatureFiles) -> np.ndarray:
    """Return all images, examples first."""
    examples = latents.example_images(files.example_places)
    rest = np.setdiff1d(np.arange(files.n_images), examples)
    return np.concatenate([examples, rest])
