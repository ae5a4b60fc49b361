"""The caching job: images in, sealed store out, at the speed of the forward pass.

Decoding runs in processes or threads ahead of the model; rounding and statistics (on a CPU) and writing run in threads
behind it. A shard is finished by one process and recorded; whatever happens, another start does only the shards that
are missing.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Literal

from saetool import distributed
from saetool.activations.asking import asked_of, no_backbone
from saetool.activations.decoding import Decoder, decoding_processes
from saetool.activations.forward import Forward, measure_errors
from saetool.activations.gpu_decoding import GpuDecoder, difference
from saetool.activations.settings import CacheSettings
from saetool.activations.shard_keeper import ShardKeeper
from saetool.activations.store import KIND, ActivationStore
from saetool.activations.waits import Waits
from saetool.activations.writer import Plan, StoreWriter
from saetool.artifacts import Artifact, Partial, Stage, run_stage
from saetool.errors import RequestError, WorkError
from saetool.images import ImageSettings, ImageSource, open_source
from saetool.images.registry import registered_in
from saetool.images.settings import is_named, is_section
from saetool.progress import bar, say
from saetool.vision import Backbone, BackboneSettings, Site, load_backbone
from saetool.vision.weights import digest_weights_file, resolve_precision


@dataclass(frozen=True)
class CachingJob:
    """What is cached: a model's sites over a source's images."""

    backbone: Callable[[], Backbone]
    """Loads the model: planning a stage that is done already must not need it."""
    sites: Callable[[Backbone], list[Site]]
    source: ImageSource
    settings: CacheSettings
    on_error: Literal["fail", "skip"]
    reference: Callable[[], Backbone] | None = None
    """Loads the same model in float32, where it computes in less."""
    identity: dict[str, Any] | None = None
    """What the manifest says of the source; no places."""
    decode: Literal["pillow", "gpu"] = "pillow"
    """What decodes the pictures."""

    def plan(self, backbone: Backbone) -> Plan:
        """Return how the images fall into slices and shards."""
        described = []
        for site in self.stored(backbone):
            facts = {**backbone.describe_site(site), "n_tokens": backbone.tokens_at(site)}
            described.append(facts if site.tokens is None else {**facts, "embedding": True})
        return Plan(len(self.source), described, self.settings)

    def stored(self, backbone: Backbone) -> list[Site]:
        """Return the sites, then the one whose mean token embeds an image, where one is asked for."""
        layer = self.settings.embedding
        return [*self.sites(backbone), *([] if layer is None else [replace(backbone.site(layer), tokens="mean")])]

    def build(self, partial: Partial) -> dict[str, Any]:
        """Cache what is missing, then merge; the builder of the stage."""
        backbone = self.backbone()
        plan = self.plan(backbone)
        _refuse_other_weights(partial, plan)
        self._refuse_other_images(partial, plan)
        labels = [{"name": c.name, "kind": c.kind, "classes": c.classes} for c in self.source.label_columns]
        writer = StoreWriter(partial, plan, labels)
        mine = range(distributed.rank(), plan.n_shards, distributed.world_size())
        missing = [shard for shard in mine if not writer.is_done(shard)]
        sites = ", ".join(site.label for site in self.sites(backbone))
        partial.say_where(
            f"{backbone.name} at {sites}, {backbone.precision}, {plan.n_images:,} images in {plan.n_shards:,} shards, "
            f"{distributed.where(backbone.device)}"
        )
        if 0 < len(missing) < len(mine):
            whose = " of this process" if distributed.world_size() > 1 else ""
            say(f"resuming: {len(mine) - len(missing)} of {len(mine)} shards{whose} are there")
        if missing:
            if distributed.is_main():
                self._measure_errors(partial, backbone, plan)
            self._fill(writer, backbone, mine, missing)
        distributed.barrier()
        if not distributed.is_main():
            return {}
        partial.note("images_root", self.source.root)
        partial.note("images_registered", registered_in(self.source.name))
        partial.note("times", times_of(self.source))
        partial.note("labels", labels_of(self.source))
        decoded = partial.record_of("decoded")
        return writer.finish(self._facts(backbone) | ({"decoded": decoded} if decoded else {}))

    def _refuse_other_images(self, partial: Partial, plan: Plan) -> None:
        """Raise RequestError where an image that is done already, or a label, was replaced since the work began."""
        labels, begun = labels_of(self.source), partial.record_of("labels")
        if begun is None and distributed.is_main():
            partial.record("labels", labels)
        if begun is not None and labels != begun:
            raise RequestError(f"{partial.path}: {OTHER_LABELS}. Give --force (force=True) to begin anew.")
        times, begun = times_of(self.source), partial.record_of("times")
        if begun is None and distributed.is_main():
            partial.record("times", times)
        if begun is None or begun == times:
            return
        records = (partial.record_of(f"shards/{shard:05d}") for shard in range(plan.n_shards))
        changed = first_changed(self.source, [image for record in records if record for image in record["images"]])
        if changed:
            raise RequestError(f"{partial.path}: {changed}. Give --force (force=True) to begin anew.")

    def _fill(self, writer: StoreWriter, backbone: Backbone, mine: Sequence[int], missing: list[int]) -> None:
        plan, sites, waits = writer.plan, self.stored(backbone), Waits()
        decoder, forward = self.decoder(backbone, plan), Forward(backbone, sites, plan.dtype)
        numbers = [number for shard in missing for number in plan.slices_of(shard)]
        total = sum(len(plan.images_of(number)) for shard in mine for number in plan.slices_of(shard))
        left = sum(len(plan.images_of(number)) for number in numbers)
        with (
            ShardKeeper.of(writer, sites, waits) as keeper,
            bar("caching", total, "images", done=total - left, remark=waits.words) as advance,
            closing(decoder.slices(numbers)) as slices,  # now, though an error's traceback may hold them
        ):
            for decoded in waits.decoded(slices):
                keeper.keep(decoded, forward.launch(decoded))
                advance(len(plan.images_of(decoded.number)))
        waits.advise(decoder.workers)

    def decoder(self, backbone: Backbone, plan: Plan) -> Decoder:
        """Return what decodes the images, with as many processes or threads as suit this machine."""
        given: Any = (self.source, backbone.transform, plan, self.on_error)
        pinned = backbone.device.type == "cuda"
        if self.decode == "gpu":
            return GpuDecoder(*given, device=backbone.device, pinned=pinned)
        return Decoder(*given, processes=decoding_processes(self.source), pinned=pinned)

    def _facts(self, backbone: Backbone) -> dict[str, Any]:
        return {
            "backbone": backbone.describe(),
            "grid": list(backbone.grid) if backbone.tokens == "patches" and backbone.grid else None,
            "token_kind": backbone.tokens,
            "geometry": backbone.transform.geometry.describe(),
            "source": self.identity,
            "attribution": self.source.attribution,
        }

    def _measure_errors(self, partial: Partial, backbone: Backbone, plan: Plan) -> None:
        """Note, on the first batch, what computing and storing in fewer bits costs: relative errors (RMS)."""
        pillow = Decoder(self.source, backbone.transform, plan, self.on_error)
        if self.decode == "gpu" and partial.record_of("decoded") is None:
            found = difference(self.decoder(backbone, plan), pillow)
            say(f"decoding on the GPU: pixels differ from Pillow's by {found['mean']:.2f} on average, of 255")
            partial.record("decoded", {"by": "gpu", "difference": found})
        if "errors" not in partial.notes:
            first = next(iter(pillow.slices([0])))
            partial.note("errors", measure_errors(backbone, self.reference, self.stored(backbone), first, plan.dtype))


def caching_stage(
    backbone: BackboneSettings, source: ImageSource, images: ImageSettings, cache: CacheSettings, seed: int = 0
) -> Stage:
    """Return the stage that caches the activations of `backbone` over `source`; nothing is loaded yet."""
    device = distributed.default_device()
    precision = resolve_precision(backbone, device)
    resolved = backbone.model_copy(update={"precision": precision})
    where = images.source if is_named(images.source) else "folder"
    identity = images.content() | {"source": where}
    exact = resolved.model_copy(update={"precision": "fp32"})
    job = CachingJob(
        backbone=lambda: load_backbone(resolved, seed, device),
        sites=lambda loaded: loaded.sites,
        source=source,
        settings=cache,
        on_error=images.on_error,
        reference=None if precision == "fp32" else lambda: load_backbone(exact, seed, device),
        identity=identity,
        decode=images.decode,
    )
    described = resolved.model_dump(mode="json")
    if resolved.weights:  # where the file stands says nothing about what it holds
        described |= {"weights": None, "weights_file": digest_weights_file(resolved.weights)}
    config = {"backbone": described, "images": identity, "cache": cache.content()}
    if not resolved.pretrained:
        config["seed"] = seed
    return _stage(job, config)


def cache(
    backbone: Backbone | BackboneSettings | Mapping[str, Any] | str,
    images: Any,
    sites: Sequence[int | str] | int | str | None = None,
    out: str | os.PathLike = "",
    settings: CacheSettings | Mapping[str, Any] | None = None,
    *,
    on_error: Literal["fail", "skip"] | None = None,
    seed: int = 0,
    force: bool = False,
    **keywords: Any,
) -> Artifact:
    """Cache the activations at `sites` (layers from 1, or module paths) over `images` into the store `out`.

    Args:
        backbone: a name, settings, or a loaded one (any nn.Module: `saetool.wrap`).
        images: a folder, a name, settings, or whatever else `open_source` takes. Pictures that exist in memory only
            leave thumbnails in the store, so that a report can show them.
        sites: default: what the backbone's settings say, or those that it was loaded with.
        settings: of a config's `cache` section.
        on_error: what happens at an image that cannot be read (default: what the images' settings say).
        seed: of the weights, where `pretrained` is false.
        keywords: single keys of the sections `cache`, `backbone` and `images`: `dtype="float16", limit=100`.

    Skips when the same is there, resumes when it was begun. Returns the sealed artifact; raises RequestError where
    anything of the request is wrong.

    >>> store = saetool.cache("pixels/gray", "digits", 1, "runs/digits/activations", image_size=8, limit=20)
    >>> store.content["images"]
    20
    """
    if on_error is not None and (isinstance(images, str | os.PathLike) or is_section(images)):
        keywords = {**keywords, "on_error": on_error}
    backbone, images, settings, seed = asked_of("cache", backbone, images, sites, settings, seed, keywords)
    if isinstance(images, ImageSettings):
        on_error = images.on_error
    if isinstance(backbone, BackboneSettings) and isinstance(images, ImageSettings):
        return run_stage(caching_stage(backbone, open_source(images), images, settings, seed), out, force=force)
    loaded = load_backbone(backbone, seed) if isinstance(backbone, BackboneSettings) else backbone
    if not isinstance(loaded, Backbone):
        raise no_backbone(loaded, "cache")
    source = open_source(images)
    skips: Literal["fail", "skip"] = on_error or getattr(source, "on_error", None) or "fail"
    if getattr(source, "in_memory", False) and not is_named(source.name):
        settings = settings.model_copy(update={"thumbnails": True})
    named = [sites] if isinstance(sites, int | str) else sites
    wanted = loaded.sites if named is None or isinstance(backbone, BackboneSettings) else loaded.sites_of(named)
    decode = images.decode if isinstance(images, ImageSettings) else "pillow"
    identity = {"source": source.name} | ({} if decode == "pillow" else {"decode": decode})
    job = CachingJob(lambda: loaded, lambda _: wanted, source, settings, skips, identity=identity, decode=decode)
    config = {
        "backbone": loaded.describe(),
        "sites": [loaded.describe_site(site) for site in wanted],
        "images": identity,
        "cache": settings.content(),
    }
    return run_stage(_stage(job, config), out, force=force)


def _stage(job: CachingJob, config: dict[str, Any]) -> Stage:
    from saetool.activations.estimate import estimate

    return Stage(
        KIND,
        config,
        job.build,
        listing=job.source.listing(),
        estimate=lambda place: estimate(job, place),
        listed=f"{len(job.source):,} images",
        changed=lambda store: changed_since(job.source, store),
    )


def _refuse_other_weights(partial: Partial, plan: Plan) -> None:
    """Raise RequestError when shards from other weights, tokens or preprocessing are there already."""
    sites = [{"folder": site["folder"], "digest": site["digest"]} for site in plan.sites]
    begun = partial.record_of("sites")
    if begun is None and distributed.is_main():
        partial.record("sites", sites)
    if begun is not None and begun != sites:
        raise RequestError(
            f"{partial.path}: begun with other weights or preprocessing than this model has now ({begun} there, "
            f"{sites} now). Take the former, or give --force (force=True) to begin anew."
        )


OTHER_LABELS = "the images have other labels than those that were cached"


def labels_of(source: ImageSource) -> str | None:
    """Return a digest over the images' labels; None where that is not known without reading every image."""
    ask = getattr(source, "labels_digest", None)  # a source of one's own need not know
    return ask() if ask else None


def times_of(source: ImageSource) -> str | None:
    """Return when the source's files were last written; None where that is not known."""
    ask = getattr(source, "times", None)  # a source of one's own need not know
    return ask() if ask else None


def changed_since(source: ImageSource, store: Artifact) -> str | None:
    """Return a sentence that names the first image whose content is not the cached one, or says that labels are others;
    None where all are the same.

    Files that were not written since are believed; where any was, all are read.
    """
    noted, now = store.notes.get("labels"), labels_of(source)
    if noted is not None and now is not None and noted != now:
        return OTHER_LABELS
    noted, now = store.notes.get("times"), times_of(source)
    if noted is None or now is None or noted == now:
        return None
    say(f"{store.path}: files of images were written since; comparing their contents")
    rows = ActivationStore(store).images.select(["path", "digest"]).to_pylist()
    return first_changed(source, rows)


def first_changed(source: ImageSource, rows: list[dict[str, Any]]) -> str | None:
    """Return a sentence that names the first of the cached rows {path, digest} whose image is another now."""
    places = {source.path(i): i for i in range(len(source))}
    with bar("comparing", len(rows), "images") as advance:
        for row in rows:
            try:
                same = row["path"] in places and source.digest(places[row["path"]]) == row["digest"]
            except WorkError as error:
                return str(error)
            if not same:
                return f"the image {row['path']!r} is not the one that was cached (its content differs)"
            advance(1)
    return None
