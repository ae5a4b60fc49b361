"""The index as a stage: the encoding pass, the statistics of every latent, heat maps, tables."""

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from saetool import distributed
from saetool.activations import ActivationStore, SiteStore, held_out_images, image_groups
from saetool.activations.sites import find_site
from saetool.artifacts import Artifact, Partial, Stage, artifact_of, run_stage
from saetool.artifacts.artifact import ROWS
from saetool.autoencoders.families import load
from saetool.errors import RequestError
from saetool.features import heat, neighbors, ranking, tables
from saetool.features.columns import EXAMPLES
from saetool.features.encoding import Pass, encode_store
from saetool.features.firing_statistics import FiringStatistics, histogram_edges
from saetool.features.labels import LabelColumn, label_statistics
from saetool.features.maxima import Maxima
from saetool.features.monosemanticity import Chance, all_pairs, image_embeddings, monosemanticity
from saetool.features.numbers import block_numbers, directions, spatial_entropy
from saetool.features.settings import IndexSettings
from saetool.features.spill import Spill
from saetool.features.workers import block_workers
from saetool.progress import bar
from saetool.settings import Settings
from saetool.threads import ordered
from saetool.validation import request

KIND = "features"


class _Request(Settings):
    """What `index` is asked for: the section that a config has."""

    index: IndexSettings


def index(
    autoencoder: Artifact | str | os.PathLike,
    activations: "Artifact | ActivationStore | str | os.PathLike",
    out: str | os.PathLike = "",
    settings: IndexSettings | Mapping[str, Any] | None = None,
    *,
    embeddings: "Artifact | ActivationStore | str | os.PathLike | None" = None,
    force: bool = False,
    **keywords: Any,
) -> Artifact:
    """Index every latent of a trained autoencoder over a store at its site; return the sealed features artifact.

    `settings`, or single keys of a config's `index` section as keywords (`top=32`). `embeddings` is another store of
    the same images, as `settings.embeddings` would name it. Finished work is skipped, begun work resumed. Raises
    RequestError when the store is of another site, or anything else is wrong.

    >>> rows = torch.randn(40, 4, 16, generator=torch.Generator().manual_seed(0))      # images, tokens, d
    >>> store = saetool.write_store("runs/index/activations", rows)
    >>> model = saetool.train(store, kind="topk", k=4, n_latents=32, tokens=512, batch_size=64, out="runs/index/model")
    >>> saetool.Features(saetool.index(model, store, "runs/index/features", top=3)).n_latents
    32
    """
    asked = request(_Request, "index", {"index": settings}, keywords)
    stage = index_stage(
        artifact_of(autoencoder, "autoencoder", "index"),
        artifact_of(activations, "activations", "index", ROWS),
        asked.index,
        embeddings=artifact_of(embeddings, "activations", "index", ROWS) if embeddings is not None else None,
    )
    return run_stage(stage, out, force=force)


def index_stage(
    autoencoder: Artifact, store: Artifact, settings: IndexSettings, *, embeddings: Artifact | None = None
) -> Stage:
    """Return the stage that indexes `autoencoder` over `store`; reads manifests only.

    Raises RequestError when the store has no activations of the autoencoder's site.
    """
    site = find_site(autoencoder, store)["folder"]
    if embeddings is None and settings.embeddings is not None:
        embeddings = Artifact.open(settings.embeddings, "activations")
    _embedding_site(settings, store, embeddings)
    # Which embeddings is told by the inputs; where they lie makes no difference.
    config = {**settings.model_dump(mode="json", exclude={"embeddings"}), "site": site}
    config["seed"] = autoencoder.content["held_out"]["seed"]
    return Stage(
        kind=KIND,
        config=config,
        build=lambda partial: Index.of(autoencoder, store, settings, embeddings, site).build(partial),
        inputs=(autoencoder, store) if embeddings is None else (autoencoder, store, embeddings),
    )


def _embedding_site(settings: IndexSettings, store: Artifact, embeddings: Artifact | None) -> SiteStore | None:
    """Return the site that embeds images, None where none is asked for."""
    layer = settings.embedding_layer
    opened = ActivationStore(store if embeddings is None else embeddings)
    if layer is not None:
        return opened.site(layer)
    if opened.embedding is not None or embeddings is None:
        return opened.embedding
    if len(opened.sites) > 1:
        folders = ", ".join(site.info["folder"] for site in opened.sites)
        raise RequestError(f"{embeddings.path}: has several sites; name one as index.embedding_layer: {folders}.")
    return opened.site()


@dataclass(frozen=True)
class _Images:
    """What is known of every image, where the maxima of latents are."""

    held_out: Tensor
    hashes: Tensor
    embeddings: Tensor | None
    chance: Chance | None


@dataclass
class _Block:
    """What the maxima of a block of latents come to; `records` are those of the chosen examples."""

    numbers: dict[str, np.ndarray]
    labels: pa.Table | None
    """Its rows of label_statistics.parquet, but for q."""
    p_values: dict[str, np.ndarray]
    """Of each label, the p of every latent and class."""
    records: np.ndarray
    chosen: ranking.Chosen


@dataclass
class _Found:
    """What the statistics of all blocks of latents come to."""

    blocks: list[_Block] = field(default_factory=list)

    @cached_property
    def discoveries(self) -> dict[str, tables.Discoveries]:
        """Of each label, the tests of all latents and classes."""
        every = {
            label: np.concatenate([block.p_values[label] for block in self.blocks]) for label in self.blocks[0].p_values
        }
        return {label: tables.Discoveries(found) for label, found in every.items()}

    def column(self, name: str) -> np.ndarray:
        return np.concatenate([block.numbers[name] for block in self.blocks])


@dataclass
class Index:
    """One index under construction."""

    autoencoder: Artifact
    site: SiteStore
    settings: IndexSettings
    embedding_site: SiteStore | None
    split: dict[str, Any]
    """What decides which images were held out of training: seed, share, the rule of groups where there is one."""

    @classmethod
    def of(
        cls, autoencoder: Artifact, store: Artifact, settings: IndexSettings, embeddings: Artifact | None, site: str
    ) -> "Index":
        other = _embedding_site(settings, store, embeddings)
        opened = ActivationStore(store).site(site)
        if other is not None and embeddings is not None and other.store.digests != opened.store.digests:
            raise RequestError(
                f"{embeddings.path} and {store.path} hold different images (or in another order), so the one cannot "
                "embed the other's. Cache both from the same source."
            )
        return cls(autoencoder, opened, settings, other, autoencoder.content["held_out"])

    @property
    def seed(self) -> int:
        """The seed of the split, and of what is drawn."""
        return self.split["seed"]

    @cached_property
    def held_out(self) -> np.ndarray:
        """Which images were held out of training, bool [images]."""
        return held_out_images(self.site.store, self.split)

    @cached_property
    def groups(self) -> np.ndarray | None:
        """The number of each image's group; None where each is alone."""
        return image_groups(self.site.store, self.split)

    @cached_property
    def hashes(self) -> Tensor:
        """The images' hashes for drawing examples."""
        return ranking.image_hashes(self.site.store.digests, self.seed)

    @cached_property
    def sample(self) -> np.ndarray:
        """The images on which the index keeps who fires, int32 [k]."""
        return neighbors.sample_of(self.hashes)

    @cached_property
    def labels(self) -> list[LabelColumn]:
        """The label columns that have at least one label."""
        images, described = self.site.store.images, self.site.store.artifact.content["labels"]
        columns = [LabelColumn.of(info, images[info["name"]].to_pylist()) for info in described]
        return [column for column in columns if (column.classes >= 0).any()]

    def build(self, partial: Partial) -> dict[str, Any]:
        """Build the artifact; every process encodes and draws its parts, the main one does the rest."""
        device = distributed.default_device()
        model = load(self.autoencoder).to(device)
        pass_ = Pass(model, self.site, device)
        size = f"{model.n_latents:,} latents over {self.site.n_images:,} images × {self.site.tokens} tokens"
        partial.say_where(f"{size}, {distributed.where(device)}")
        started = time.monotonic()
        spill, statistics = encode_store(pass_, partial, self.settings.strongest)
        encoded = time.monotonic()
        embeddings = image_embeddings(self.embedding_site) if self.embedding_site and distributed.is_main() else None
        if distributed.is_main():
            found = self._statistics(spill, embeddings, partial, pass_.counted_on)
        counted = time.monotonic()
        distributed.barrier()  # until the main process has written which maps are wanted
        wanted = heat.Wanted.load(partial.scratch("wanted.npz"))
        maps = heat.draw(pass_, wanted, partial) if self.site.grid else None
        drawn = time.monotonic()
        if not distributed.is_main():
            return {}
        self._write_examples(found, wanted, maps, partial)
        content = self._write(found, spill, statistics, model, partial)
        if embeddings is not None and self.embedding_site is not None:
            info = self.embedding_site.info
            facts = {"site": info["folder"], "digest": info["digest"], "all_pairs": all_pairs(embeddings)}
            content["embedding"] = facts
        seconds = {"encode": encoded - started, "statistics": counted - encoded, "heat": drawn - counted}
        partial.note("seconds", {**seconds, "tables": time.monotonic() - drawn})
        return content

    def _statistics(
        self, spill: Spill, embeddings: np.ndarray | None, partial: Partial, device: torch.device
    ) -> _Found:
        """Compute the numbers of every latent on a device, and note the examples whose heat maps are wanted."""
        found, labels, facts = _Found(), self.labels, self._facts_on(device, embeddings)

        def of_block(span: tuple[int, int]) -> _Block:
            return self._block(Maxima.of(spill.block(*span), *spill.latents_of(*span), device), facts)

        spans = list(spill.spans(max([1, *(len(column.names) for column in labels)])))
        with ExitStack() as stack:
            path = partial.scratch("label_rows.parquet")
            rows = stack.enter_context(tables.TableWriter(path, tables.WITHOUT_Q)) if labels else None
            advance = stack.enter_context(bar("statistics", len(spans), "blocks"))
            largest = max(int(spill.stripe_records[first:stop].sum()) for first, stop in spans)
            for block in ordered(of_block, spans, block_workers(largest, device)):
                if rows is not None and block.labels is not None:
                    rows.write(block.labels)
                found.blocks.append(replace(block, labels=None))
                advance(1)
        if labels:
            tables.with_q_values(path, partial.file("label_statistics.parquet"), found.discoveries)
        records = np.concatenate([block.records for block in found.blocks])
        heat.Wanted.of(records["image"], records["latent"], found.column("max")).save(partial.scratch("wanted.npz"))
        return found

    def _facts_on(self, device: torch.device, embeddings: np.ndarray | None) -> _Images:
        moved = None if embeddings is None else torch.from_numpy(embeddings).to(device)
        chance = None if moved is None else Chance.of(moved)
        return _Images(torch.from_numpy(self.held_out).to(device), self.hashes.to(device), moved, chance)

    def _block(self, block: Maxima, images: _Images) -> _Block:
        """Compute what a block of latents comes to, in any thread."""
        descending = ranking.by_value(block)
        numbers = block_numbers(block, images.held_out)
        numbers["fires"] = neighbors.firing_bits(block, self.sample, len(self.hashes))
        labels = [
            (column, label_statistics(block, descending, column, self.held_out, self.groups)) for column in self.labels
        ]
        chosen = ranking.choose(block, descending, images.hashes, self.settings, self.seed, images.held_out)
        records = block.records(torch.from_numpy(chosen.record))
        numbers |= self._likeness(block, chosen, records, images)
        for column, statistics in labels:
            numbers.update(tables.label_numbers(column, statistics))
        table = tables.label_table(labels, self.settings.label_classes, block.first) if labels else None
        p_values = {column.name: statistics.p_value for column, statistics in labels}
        return _Block(numbers, table, p_values, records, chosen)

    def _likeness(
        self, block: Maxima, chosen: ranking.Chosen, records: np.ndarray, images: _Images
    ) -> dict[str, np.ndarray]:
        """Return how alike the images are on which each latent fires, NaN without embeddings."""
        nothing = np.full(block.n_latents, np.nan)
        score = nothing if images.embeddings is None else monosemanticity(block, images.embeddings)
        score = np.where(block.counts.cpu().numpy() > 0, score, np.nan)
        if images.chance is None:
            kinds = ("monosemanticity_excess", "monosemanticity_spread", "top_excess")
            return {"monosemanticity": score, **dict.fromkeys(kinds, nothing)}
        seen = (chosen.group == ranking.GROUPS.index("top")) & ~self.held_out[records["image"]]
        latent, image = records["latent"][seen] - block.first, records["image"][seen]
        return {
            "monosemanticity": score,
            "monosemanticity_excess": images.chance.excess(block, score),
            "monosemanticity_spread": images.chance.spread(block),
            "top_excess": images.chance.of_groups(latent, image, block.n_latents),
        }

    def _write_examples(self, found: _Found, wanted: heat.Wanted, maps: np.ndarray | None, partial: Partial) -> None:
        with tables.TableWriter(partial.file("examples.parquet"), EXAMPLES) as writer:
            for block in found.blocks:
                drawn = None if maps is None else maps[wanted.find(block.records["image"], block.records["latent"])]
                writer.write(tables.examples_table(block.records, block.chosen, wanted.scale, self.held_out, drawn))

    def _write(
        self, found: _Found, spill: Spill, statistics: FiringStatistics, model: Any, partial: Partial
    ) -> dict[str, Any]:
        numbers = {name: found.column(name) for name in found.blocks[0].numbers}
        numbers |= self._frequencies(numbers, statistics)
        numbers |= directions(model)
        tensors = self._tensors(numbers, spill, statistics, model)
        for name, column in (("decoder", "neighbor_similarity"), ("coactivation", "coactivation_similarity")):
            nearest = tensors[f"neighbors_{name}"][:, 0].numpy()
            numbers[column] = np.where(nearest < 0, np.nan, tensors[f"neighbors_{name}_value"][:, 0].numpy())
        partial.write_table("latents.parquet", tables.latents_table(numbers, self.labels, found.discoveries))
        store = self.site.store
        names = [column.name for column in self.labels]
        partial.write_table("images.parquet", tables.images_table(store.images, self.held_out, names))
        partial.write_tensors("tensors.safetensors", tensors)
        shape = (self.site.n_images, self.site.tokens, self.settings.strongest)
        spill.write_strongest(partial.file("patches.safetensors"), shape)
        return self._content(numbers)

    def _frequencies(self, numbers: dict[str, np.ndarray], statistics: FiringStatistics) -> dict[str, Any]:
        tokens, images = self.site.n_images * self.site.tokens, self.site.n_images
        sums = statistics.profile.double().sum(0).numpy() * statistics.unit
        counts = numbers["token_count"]
        frequency = counts / max(tokens, 1)
        status = np.select(
            [counts == 0, frequency < self.settings.rare_below, frequency > self.settings.dense_above],
            ["dead", "rare", "dense"],
            "ok",
        )
        scale = numbers["max"]
        return {
            "latent": np.arange(len(counts)),
            "status": status.tolist(),
            "token_frequency": frequency,
            "image_frequency": numbers["image_count"] / max(images, 1),
            "silent_on_held_out": numbers["held_out_token_count"] == 0,
            "max": np.where(scale > 0, scale, np.nan).astype(np.float32),
            "mean_firing": np.where(counts > 0, sums / np.maximum(counts, 1), np.nan),
            "mean": sums / max(tokens, 1),
            "spatial_entropy": spatial_entropy(statistics.profile.T.numpy()),
        }

    def _tensors(
        self, numbers: dict[str, Any], spill: Spill, statistics: FiringStatistics, model: Any
    ) -> dict[str, Tensor]:
        k, device = self.settings.neighbors, next(model.parameters()).device
        directions_ = model.decoder_directions()
        if directions_ is None:
            none = torch.full((model.n_latents, k), -1, dtype=torch.int32)
            decoder = none, torch.zeros(model.n_latents, k)
        else:
            decoder = neighbors.by_decoder(directions_.detach(), k)
        together = neighbors.by_coactivation(spill, numbers["image_count"], k, device)
        kept = {} if directions_ is None else {"decoder_directions": neighbors.small_directions(directions_.detach())}
        used = statistics.histogram.any(0).nonzero().squeeze(1)
        low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        return {
            "histogram": statistics.histogram[:, low:high],
            "histogram_edges": histogram_edges()[low : high + 1],
            "spatial_profile": (statistics.profile.T.double() * (statistics.unit / max(self.site.n_images, 1))).float(),
            "neighbors_decoder": decoder[0],
            "neighbors_decoder_value": decoder[1],
            "neighbors_coactivation": together[0],
            "neighbors_coactivation_value": together[1],
            "sample_images": torch.from_numpy(self.sample),
            "fires": torch.from_numpy(numbers["fires"]),
            **kept,
        }

    def _content(self, numbers: dict[str, Any]) -> dict[str, Any]:
        stored = self.site.store.artifact.content
        status = numbers["status"]
        return {
            "n_latents": len(status),
            "d_in": self.site.d,
            "images": self.site.n_images,
            "tokens": self.site.n_images * self.site.tokens,
            "held_out_images": int(self.held_out.sum()),
            "grid": self.site.grid,
            "geometry": stored["geometry"],
            "attribution": stored.get("attribution"),
            "labels": [
                {"name": column.name, "kind": "category" if column.ranks is None else "number", "classes": column.names}
                for column in self.labels
            ],
            "site": self.site.info,
            "top": self.settings.top,
            "intervals": self.settings.intervals,
            "sparse_threshold": self.settings.rare_below,
            "dense_threshold": self.settings.dense_above,
            "counts": {name: status.count(name) for name in ("dead", "rare", "ok", "dense")},
        }
