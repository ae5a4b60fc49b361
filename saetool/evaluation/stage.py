"""The evaluation as a stage: evaluation.json (docs/evaluation.md says what each number is) and evaluation.md."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field

from saetool import distributed
from saetool.activations.asking import as_backbone
from saetool.activations.sites import find_site, name_site, open_others
from saetool.artifacts import Artifact, Partial, Stage, artifact_of, run_stage
from saetool.artifacts.artifact import ROWS
from saetool.errors import RequestError
from saetool.evaluation.settings import EvaluationSettings
from saetool.images import ImageSettings
from saetool.settings import Settings
from saetool.validation import request
from saetool.vision.settings import BackboneSettings

if TYPE_CHECKING:
    from saetool.activations import ActivationStore
    from saetool.features import Features
    from saetool.images import ImageSource
    from saetool.vision import Backbone

KIND = "evaluation"
SCHEMA = 1
"""Of evaluation.json."""


class _Request(Settings):
    """What `evaluate` is asked for: the sections that a config has."""

    evaluation: EvaluationSettings
    images: ImageSettings | None = None
    seed: int | None = Field(default=None, ge=0)


def evaluate(
    autoencoder: Artifact | str | os.PathLike,
    activations: Artifact | ActivationStore | str | os.PathLike,
    out: str | os.PathLike = "",
    settings: EvaluationSettings | Mapping[str, Any] | None = None,
    *,
    features: Artifact | Features | str | os.PathLike | None = None,
    backbone: BackboneSettings | Backbone | str | Mapping[str, Any] | None = None,
    images: ImageSource | ImageSettings | str | os.PathLike | None = None,
    seed: int | None = None,
    force: bool = False,
    **keywords: Any,
) -> Artifact:
    """Measure an autoencoder on a store's held-out images; return the sealed evaluation artifact.

    Args:
        settings: of a config's `evaluation` section, or single keys of it as keywords. Held-out numbers
            are measured always, `baselines` unless they are switched off, `probing`, `effect`, `refit` and `references`
            where they are asked for.
        features: an index of the autoencoder, for the monosemanticity of its latents.
        backbone, images: what `effect` runs again; by default the model and the pictures that the store was made from.
        seed: of bootstraps and baselines; by default the one that decided what is held out.

    >>> rows = torch.randn(60, 4, 16, generator=torch.Generator().manual_seed(0))      # images, tokens, d
    >>> store = saetool.write_store("runs/eval/activations", rows)
    >>> model = saetool.train(store, kind="topk", k=4, n_latents=32, tokens=512, batch_size=64, out="runs/eval/model")
    >>> found = saetool.evaluate(model, store, "runs/eval/evaluation", bootstrap=20, clusters=8)
    >>> 0 < found.content["fvu"] < 1
    True
    """
    given = {"seed": seed} | ({"images": images} if isinstance(images, Mapping | ImageSettings) else {})
    asked = request(_Request, "evaluate", {"evaluation": settings}, keywords, given)
    model = artifact_of(autoencoder, "autoencoder", "evaluate")
    store = artifact_of(activations, "activations", "evaluate", ROWS)
    stage = evaluation_stage(
        model,
        store,
        asked.evaluation,
        backbone=_backbone(backbone, store) if asked.evaluation.effect else None,
        source=_source(asked.images or images, store) if asked.evaluation.effect else None,
        features=None if features is None else artifact_of(features, "features", "evaluate"),
        seed=model.content["held_out"]["seed"] if asked.seed is None else asked.seed,
    )
    return run_stage(stage, out, force=force)


def _backbone(given: Any, store: Artifact) -> BackboneSettings | Backbone | None:
    """Return the backbone that was given, as settings or loaded; by default the one that the store names."""
    if given is None and "weights_file" in (noted := store.config.get("backbone") or {}):
        raise RequestError(f"evaluate: {store.path} was made with a file of weights: give backbone, with its place.")
    if given is None and "layers" in noted:
        return BackboneSettings.model_validate(noted)
    return as_backbone(given, "evaluate")


def _source(given: Any, store: Artifact) -> ImageSource | None:
    """Return the pictures that were given, opened; by default those that the store names."""
    from saetool.images import open_cached, open_source

    if given is None:
        return open_cached(store)
    return given if hasattr(given, "listing") else open_source(given)


def evaluation_stage(
    autoencoder: Artifact,
    store: Artifact,
    settings: EvaluationSettings,
    *,
    backbone: BackboneSettings | Backbone | None = None,
    source: ImageSource | None = None,
    features: Artifact | None = None,
    seed: int = 0,
) -> Stage:
    """Return the stage that evaluates an autoencoder on a store's held-out images; nothing is read before it is built.

    `features` (an index of the same autoencoder) adds the distribution of monosemanticity; `settings.effect` needs
    the `backbone` and the images' `source`. Raises RequestError where autoencoder, store and features do not fit.
    """
    find_site(autoencoder, store)
    if settings.effect and (backbone is None or source is None):
        raise RequestError("evaluation.effect runs the images through the backbone again: give both, or effect: false")
    if features is not None and autoencoder.id not in [entry["id"] for entry in features.inputs]:
        raise RequestError(f"{features.path} is the index of another autoencoder than {autoencoder.path}")
    others = open_others(settings.stability, autoencoder)
    config: dict[str, Any] = {"settings": settings.content(), "seed": seed}
    if settings.effect:
        config["backbone"] = _describe(backbone)
    inputs = [autoencoder, store, *([features] if features else []), *others]

    def build(partial: Partial) -> dict[str, Any]:
        return _build(partial, autoencoder, store, settings, backbone, source, features, others, seed)

    return Stage(KIND, config, build, tuple(inputs))


def _describe(backbone: BackboneSettings | Backbone | None) -> Any:
    if isinstance(backbone, BackboneSettings):
        return backbone.model_dump(mode="json", exclude={"layers", "weights"})
    return backbone.describe() if backbone is not None else None


def _build(
    partial: Partial,
    autoencoder: Artifact,
    store: Artifact,
    settings: EvaluationSettings,
    backbone: BackboneSettings | Backbone | None,
    source: ImageSource | None,
    features: Artifact | None,
    others: list[Artifact],
    seed: int,
) -> dict[str, Any]:
    from saetool.evaluation import sections
    from saetool.evaluation.figures import figures
    from saetool.evaluation.pareto import mark_frontier, point
    from saetool.evaluation.sharing import Shared
    from saetool.evaluation.subject import Subject
    from saetool.evaluation.tables import all_tables, render
    from saetool.training.concerns import concerns

    subject = Subject.open(autoencoder, store, settings, seed, Shared(partial))
    journal = Journal(partial)
    found: dict[str, Any] = {"schema": SCHEMA, "subject": _facts(autoencoder, store, subject)}

    def section(name: str, make: Callable[[], Any], asked: bool = True, alone: bool = False) -> None:
        if asked:
            found[name] = (journal.alone if alone else journal)(name, make)

    section("held_out", lambda: sections.held_out(subject))
    section("training", lambda: sections.training(subject))
    section("decoder", lambda: sections.decoder(subject), alone=True)
    l0 = found["held_out"]["l0"]["value"]
    fitted = sections.fitted_baselines(subject, l0) if settings.baselines or settings.probing else []
    section("baselines", lambda: sections.baselines(subject, fitted), settings.baselines)
    section("refitted", lambda: sections.refitted(subject), settings.refit)
    section("references", lambda: sections.references(subject, l0), settings.references, alone=True)
    if features is not None:
        section("features", lambda: sections.features(subject, features), alone=True)
    section("probing", lambda: sections.probing(subject, fitted), settings.probing)
    section("effect", lambda: _effect(subject, backbone, source, seed, fitted), settings.effect)
    section("stability", lambda: sections.other_seeds(subject, others), bool(others), alone=True)
    if not distributed.is_main():
        return {}
    points = [point("this autoencoder", "autoencoder", found["held_out"])]
    points += [point(row["name"], "baseline", row["numbers"]) for row in found.get("baselines", [])]
    found["pareto"] = mark_frontier(points)
    found["concerns"] = concerns(autoencoder.content, found)
    found["tables"] = all_tables(found)
    facts = found["subject"]
    title = (
        f"Evaluation of a {facts['family']} autoencoder, {facts['d_in']:,} → {facts['n_latents']:,}, {facts['site']}"
    )
    partial.write_json("evaluation.json", found)
    partial.write_bytes("evaluation.md", render(title, found["tables"], found["concerns"]).encode())
    if facts["family"] != "sparse":
        partial.write_tensors("figures.safetensors", figures(subject))
    summary = {key: found["held_out"][key]["value"] for key in ("fvu", "l0", "cosine")}
    return {"sections": sorted(found), "images": found["held_out"]["images"], **summary}


class Journal:
    """Sections that are done stay done: a killed evaluation goes on with the next one."""

    def __init__(self, partial: Partial):
        self.partial = partial

    def __call__(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the section, from the journal or made now; every process makes it, and what the main one has counts.

        A new section is taken as it will be read again, in the journal's order of keys.
        """
        key = f"section/{name}"
        if not distributed.all_gather(self.partial.unit_of(key) is not None)[0]:
            made = make()
            if distributed.is_main():
                self.partial.record(key, {"found": made})
            distributed.barrier()
        return self.partial.record_of(key)["found"]

    def alone(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the section; the main process makes it, and the others wait."""
        return self(name, lambda: make() if distributed.is_main() else None)


def _facts(autoencoder: Artifact, store: Artifact, subject: Any) -> dict[str, Any]:
    content = autoencoder.content
    return {
        "autoencoder": autoencoder.id,
        "store": store.id,
        "trained_on": content["trained_on"],
        "family": content["family"],
        "d_in": content["d_in"],
        "n_latents": content["n_latents"],
        "tokens_trained": content["tokens"],
        "site": name_site(subject.site.info),
        "active_above": subject.autoencoder.active_above,
        "held_out": {**content["held_out"], "images": len(subject.held_out)},
    }


def _effect(subject: Any, backbone: Any, source: Any, seed: int, fitted: list[Any]) -> dict[str, Any]:
    from saetool.evaluation.model_sections import effect
    from saetool.vision import load_backbone

    if subject.site.info.get("token_kind", subject.site.info.get("tokens")) == "mean":
        return {"skipped": "mean tokens cannot be put back into the model"}
    loaded = load_backbone(backbone, seed) if isinstance(backbone, BackboneSettings) else backbone
    return effect(subject, loaded, source, fitted)
