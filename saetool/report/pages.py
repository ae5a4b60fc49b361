"""The data behind the landing, latent and image pages of a features artifact, within a bound in bytes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from saetool import progress
from saetool.artifacts import Artifact, Partial
from saetool.report import columns, latents, pictures
from saetool.report.chunks import bitmap, pack
from saetool.report.settings import ReportSettings
from saetool.report.source import FeatureFiles

LATENT_SHARE, PATCH_SHARE = 0.5, 0.75
"""Shares of `max_mb` that latent pages, and these with image pages, may take; thumbnails get what is left."""


@dataclass(frozen=True)
class FeaturePages:
    """Writes chunks and thumbnails: the table whole, then latent pages, image pages and pictures while they fit."""

    files: FeatureFiles
    store: Artifact
    source: pictures.ReadsImages | None
    settings: ReportSettings

    def write(self, partial: Partial) -> dict[str, Any]:
        """Write everything and return how much there is of it."""
        images = self.store.read_table("images.parquet")
        budget = _Budget(partial, int(self.settings.max_mb * 1e6))
        self._write_tables(images, budget)
        with_page = self._write_latents(budget)
        examples, others = _ranked_images(self.files)
        ranked = np.concatenate([examples, others])
        image_pages = self._write_patches(ranked[: self.settings.max_images], budget)
        order = np.concatenate([ranked[np.isin(ranked, image_pages)], examples[~np.isin(examples, image_pages)]])
        thumbnails = pictures.Thumbnails(self.store, images, self.source).make(order, partial.path, budget.left(1.0))
        partial.write_bytes("data/site.js", self._site(with_page, image_pages, thumbnails))
        return {
            "n_latents": self.files.n_latents,
            "latent_pages": int(with_page.sum()),
            "image_pages": len(image_pages),
            "thumbnails": len(thumbnails),
        }

    def _write_tables(self, images: pa.Table, budget: "_Budget") -> None:
        """Write the table of latents, the glimpses and the image facts: never bounded."""
        labels = self.files.content["labels"]
        shown = columns.columns_of(labels, self.files.latents)
        arrays, texts = columns.table_arrays(self.files.latents, shown)
        best = np.full(self.files.n_latents, -1, np.int32)
        for block, script, first in latents.glimpses(self.files):
            best[block * latents.GLIMPSE_BLOCK :][: len(first)] = first
            budget.write(f"data/glimpses/{block}.js", script)
        arrays["best_image"] = best
        budget.write("data/table.js", pack("table", arrays, {"texts": texts, "columns": columns.describe(shown)}))
        for name, script in pictures.facts_chunks(images, labels, self.files.content["geometry"]):
            budget.write(f"data/{name}.js", script)

    def _write_latents(self, budget: "_Budget") -> np.ndarray:
        """Write the latent pages' chunks while half of the budget lasts; return which latents have one."""
        chosen = np.ones(self.files.n_latents, bool)
        if self.settings.latents is not None:
            chosen[:] = False
            chosen[self.settings.latents] = True
        with_page = np.zeros(self.files.n_latents, bool)
        with progress.bar("latent pages", self.files.n_latents, "latents") as advance:
            for block, script in latents.page_chunks(self.files, chosen):
                if len(script) > budget.left(LATENT_SHARE):
                    progress.say(f"report.max_mb: latents from {block * latents.PAGE_BLOCK} on get no page")
                    break
                budget.write(f"data/latents/{block}.js", script)
                span = slice(block * latents.PAGE_BLOCK, (block + 1) * latents.PAGE_BLOCK)
                with_page[span] = chosen[span]
                advance(latents.PAGE_BLOCK)
        return with_page

    def _write_patches(self, chosen: np.ndarray, budget: "_Budget") -> np.ndarray:
        """Write the image pages' chunks, best images first, while their share lasts; return the rows that have one."""
        if self.files.patches_file is None:
            return np.zeros(0, np.int64)
        written = []
        for rows, name, script in pictures.patches_chunks(self.files.patches_file, chosen, self.files.n_latents):
            if len(script) > budget.left(PATCH_SHARE):
                progress.say("report.max_mb: some images get no page")
                break
            budget.write(f"data/{name}.js", script)
            written.append(rows)
        return np.concatenate(written) if written else np.zeros(0, np.int64)

    def _site(self, with_page: np.ndarray, image_pages: np.ndarray, thumbnails: np.ndarray) -> bytes:
        """Return what every page loads first: sizes, labels, and which latents and images have a page."""
        status = self.files.latents["status"].to_pylist()
        values = {
            "n_latents": self.files.n_latents,
            "n_images": self.files.n_images,
            "grid": self.files.content["grid"],
            "labels": self.files.content["labels"],
            "label_classes": latents.label_classes(self.files),
            "blocks": {
                "latents": latents.PAGE_BLOCK,
                "glimpses": latents.GLIMPSE_BLOCK,
                "glimpse_images": latents.GLIMPSE_IMAGES,
                "images": pictures.FACTS_BLOCK,
                "patches": pictures.PATCHES_BLOCK,
            },
            "columns": columns.describe(columns.columns_of(self.files.content["labels"], self.files.latents)),
            "statuses": columns.STATUSES,
            "intervals": self.files.content.get("intervals"),
            "sparse_threshold": self.files.content.get("sparse_threshold"),
        }
        arrays = {
            "live": bitmap(np.asarray([name != "dead" for name in status])),
            "with_page": bitmap(with_page),
            "image_page": bitmap(_mask(self.files.n_images, image_pages)),
            "thumbnail": bitmap(_mask(self.files.n_images, thumbnails)),
        }
        if (edges := self.files.tensor("histogram_edges")) is not None:
            arrays["histogram_edges"] = edges.astype(np.float32)
        return pack("site", arrays, values)


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


def _ranked_images(files: FeatureFiles) -> tuple[np.ndarray, np.ndarray]:
    """Return the images that are examples, the best first, and the others."""
    examples = latents.example_images(files.example_places)
    return examples, np.setdiff1d(np.arange(files.n_images), examples)
