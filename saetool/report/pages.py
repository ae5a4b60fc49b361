"""The data behind the pages of a features artifact, within a bound in bytes."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from saetool import progress
from saetool.artifacts import Artifact, Partial
from saetool.images import ImageSource
from saetool.report import columns, doors, latents, pictures
from saetool.report.chunks import bitmap, pack, text
from saetool.report.crops import GLIMPSE_BLOCK, GLIMPSE_IMAGES, glimpses
from saetool.report.facts import BOX_STEPS, ImageFacts
from saetool.report.first import Interest
from saetool.report.settings import ReportSettings
from saetool.report.source import FeatureFiles
from saetool.report.thumbnails import Thumbnails
from saetool.report.words import Words

LATENT_SHARE, PATCH_SHARE = 0.5, 0.75
"""Shares of `max_mb` that latent pages, and these with image pages, may take; thumbnails get what is left."""
PAGES = ("index.html", "latent.html", "image.html", "images.html", "labels.html", "compare.html")


@dataclass(frozen=True)
class FeaturePages:
    """Writes chunks and thumbnails: what every page needs, then latents, images and pictures while they fit."""

    files: FeatureFiles
    store: Artifact
    source: ImageSource | None
    settings: ReportSettings

    @cached_property
    def facts(self) -> ImageFacts:
        table = self.store.read_table("images.parquet")
        return ImageFacts(table, self.files.content["labels"], self.files.content["geometry"])

    @cached_property
    def interest(self) -> Interest:
        places = self.files.places
        return Interest(self.files, places, Words(self.files.latents, places, self.facts))

    @cached_property
    def table(self) -> pa.Table:
        """The table of latents, base rates beside their labels' statistics."""
        return self.facts.with_base_rates(self.files.latents)

    @cached_property
    def columns(self) -> list[columns.Column]:
        return columns.columns_of(self.files.content["labels"], self.table)

    def write(self, partial: Partial) -> dict[str, Any]:
        """Write everything and return how much there is of it."""
        budget = _Budget(partial, int(self.settings.max_mb * 1e6))
        top = self.files.places.of_group("top")
        images, patches = top.first(self.files.n_latents, GLIMPSE_IMAGES)
        self._write_tables(images, patches, budget)
        latent_pages = self._write_latents(np.stack([images[:, 0], patches[:, 0]], axis=1), budget)
        examples = self.files.places.ranked_images()
        ranked = np.concatenate([examples, np.setdiff1d(np.arange(self.files.n_images), examples)])
        image_pages = self._write_patches(ranked[: self.settings.max_images], budget)
        with_page = np.isin(ranked, image_pages)
        order = np.concatenate([ranked[with_page], ranked[~with_page]])
        thumbnails = Thumbnails(self.store, self.facts.table, self.source).make(order, partial.path, budget.left(1.0))
        partial.write_bytes("data/site.js", self._site(latent_pages, image_pages, thumbnails))
        return {
            "n_latents": self.files.n_latents,
            "latent_pages": int(latent_pages.sum()),
            "image_pages": len(image_pages),
            "thumbnails": len(thumbnails),
        }

    def _write_tables(self, images: np.ndarray, patches: np.ndarray, budget: "_Budget") -> None:
        """Write what is never bounded: the table, the first look, labels, glimpses, every image's facts and name."""
        arrays, texts = columns.table_arrays(self.table, self.columns)
        budget.write("data/table.js", pack("table", arrays, {"texts": texts}))
        budget.write("data/first.js", doors.first_chunk(self.interest))
        budget.write("data/labels.js", doors.labels_chunk(self.interest))
        for name, script in glimpses(self.facts, images, patches):
            budget.write(f"data/{name}.js", script)
        counts = self.files.latents["image_count"].to_numpy()
        norm = columns.numbers(self.files.latents["decoder_norm"])
        weights = {"image_count": counts.astype(np.int32), "decoder_norm": norm.astype(np.float32)}
        budget.write("data/weights.js", pack("weights", weights))
        budget.write("data/catalog.js", self._catalog())
        path, rarity = self.files.patches_file, pictures.rarity_of(counts, self.files.n_images)
        strongest = None if path is None else pictures.strongest_latents(path, rarity)
        for name, script in pictures.facts_chunks(self.facts, self.files.held_out, strongest):
            budget.write(f"data/{name}.js", script)

    def _catalog(self) -> bytes:
        """Return what images are searched and filtered by: names, classes of every label, and which are held out."""
        classes = {f"class_{k}": column.classes.astype(np.int16) for k, column in enumerate(self.facts.columns)}
        arrays = {"paths": text(self.facts.paths), "held_out": bitmap(self.files.held_out), **classes}
        labels = [{"name": column.name, "classes": column.names} for column in self.facts.columns]
        return pack("catalog", arrays, {"labels": labels})

    def _write_latents(self, best: np.ndarray, budget: "_Budget") -> np.ndarray:
        """Write the latent pages' chunks and take back the least interesting beyond half of the budget.

        Returns which latents have one.
        """
        asked, every = self.settings.latents, np.arange(self.files.n_latents)
        chosen = np.isin(every, every if asked is None else asked)
        pages = latents.LatentPages(self.files, self.facts, self.interest.words, self.table, self.columns, best)
        sizes = np.zeros(-(-self.files.n_latents // latents.PAGE_BLOCK), np.int64)
        with progress.bar("latent pages", self.files.n_latents, "latents") as advance:
            for block, script in pages.chunks(chosen):
                sizes[block] = len(script)
                budget.put(f"data/latents/{block}.js", script)
                advance(latents.PAGE_BLOCK)
        place = np.argsort(self.interest.order) + self.files.n_latents * ~chosen
        rank = np.minimum.reduceat(place, np.arange(0, len(place), latents.PAGE_BLOCK))
        order = np.argsort(rank, kind="stable")
        room = budget.left(LATENT_SHARE)
        dropped = order[np.cumsum(sizes[order]) > room]
        for block in dropped[sizes[dropped] > 0].tolist():
            budget.take_back(f"data/latents/{block}.js")
            sizes[block] = 0
        budget.spent += int(sizes.sum())
        with_page = chosen & np.repeat(sizes > 0, latents.PAGE_BLOCK)[: len(chosen)]
        if (missing := int((chosen & ~with_page).sum())) > 0:
            progress.say(f"report.max_mb: the {missing:,} least interesting latents get no page")
        return with_page

    def _write_patches(self, chosen: np.ndarray, budget: "_Budget") -> np.ndarray:
        """Write the image pages' chunks, best images first, while their share lasts; return the rows that have one."""
        if self.files.patches_file is None:
            return np.zeros(0, np.int64)
        written = []
        for rows, name, script in pictures.patches_chunks(self.files.patches_file, chosen, self.files.n_latents):
            if len(script) > budget.left(PATCH_SHARE):
                progress.say("report.max_mb: some images have no latents by patch")
                break
            budget.put(f"data/{name}.js", script)
            budget.spent += len(script)
            written.append(rows)
        return np.concatenate(written) if written else np.zeros(0, np.int64)

    def _site(self, with_page: np.ndarray, image_pages: np.ndarray, thumbnails: np.ndarray) -> bytes:
        """Return what every page loads first: sizes, labels, and which latents and images have a page."""
        status = np.array(self.files.latents["status"].to_pylist())
        shares = {column.name: column.shares() for column in self.facts.columns}
        sample = self.files.tensor("sample_images")
        values = {
            "n_latents": self.files.n_latents,
            "n_images": self.files.n_images,
            "grid": self.files.content["grid"],
            "labels": [{**label, "shares": shares.get(label["name"], [])} for label in self.files.content["labels"]],
            "label_classes": latents.label_classes(self.files),
            "blocks": {
                "latents": latents.PAGE_BLOCK,
                "glimpses": GLIMPSE_BLOCK,
                "glimpse_images": GLIMPSE_IMAGES,
                "images": pictures.FACTS_BLOCK,
                "strongest": pictures.STRONGEST,
                "patches": pictures.PATCHES_BLOCK,
            },
            "box_steps": BOX_STEPS,
            "columns": columns.describe(self.columns),
            "texts": columns.table_arrays(self.table, self.columns)[1],
            "statuses": columns.STATUSES,
            "intervals": self.files.content.get("intervals"),
            "sample": None if sample is None else len(sample),
            "chance": (self.files.content.get("embedding") or {}).get("all_pairs"),
        }
        arrays = {
            "live": bitmap(status != "dead"),
            "with_page": bitmap(with_page),
            "image_page": bitmap(np.isin(np.arange(self.files.n_images), image_pages)),
            "thumbnail": bitmap(np.isin(np.arange(self.files.n_images), thumbnails)),
        }
        if sample is not None and len(sample) < self.files.n_images:
            arrays["sample_images"] = sample
        if (edges := self.files.tensor("histogram_edges")) is not None:
            arrays["histogram_edges"] = edges.astype(np.float32)
        return pack("site", arrays, values)


class _Budget:
    """Counts the bytes written below the bound."""

    def __init__(self, partial: Partial, bound: int):
        self.partial, self.bound, self.spent = partial, bound, 0

    def write(self, name: str, data: bytes) -> None:
        self.put(name, data)
        self.spent += len(data)

    def put(self, name: str, data: bytes) -> None:
        """Write a file that is not counted yet; its digest is taken when the site is sealed."""
        self.partial.file(name).write_bytes(data)

    def take_back(self, name: str) -> None:
        self.partial.file(name).unlink()

    def left(self, share: float) -> int:
        return int(self.bound * share) - self.spent
