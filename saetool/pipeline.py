"""A run: from one config to its stages, and where each one's artifact goes.

runs/NAME/config.yaml                                                   what it was asked for, defaults included
runs/NAME/{activations, autoencoder, features, evaluation, report}/      one model
runs/NAME/activations  runs/NAME/MEMBER/{autoencoder, features, …}/     a sweep
"""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from saetool import distributed
from saetool.activations import LiveSource, caching_stage, require_space
from saetool.activations.thumbnails import StoredThumbnails
from saetool.artifacts import Artifact, Stage, run_stage
from saetool.artifacts.manifest import COMMANDS, MANIFEST
from saetool.artifacts.remote import place_of
from saetool.artifacts.stage import Force
from saetool.config import (
    KEPT,
    LIVE,
    RunConfig,
    Trained,
    build_config,
    find_config,
    keep_config,
    load_config,
    set_key,
    sweep_members,
)
from saetool.errors import RequestError, shown, type_name
from saetool.images import ImageSource, open_source
from saetool.progress import say
from saetool.settings import Settings
from saetool.standing import (
    FULL,
    answers_cheap,
    differs_only_in,
    made_at,
    shows_another,
    standing_at,
    store_answers,
    whole_stands,
    whole_was_begun,
)
from saetool.training import train_together, training_stage
from saetool.training.concerns import concerns, measured_on

# Stages that need scikit-learn or scipy, seconds to import, are imported where they are used.


_READS = {
    "activations": frozenset({"seed", "images", "backbone", "activations", "cache"}),
    "autoencoder": frozenset({"seed", "images.group", "activations", "autoencoder", "training", "sweep"}),
    "features": frozenset({"index"}),
    "evaluation": frozenset({"evaluation"}),
    "report": frozenset({"report"}),
    "sweep": frozenset({"sweep"}),
}
"""The keys of the config that each stage is made from."""


class Run:
    """One config and the places of its artifacts. Images and store are opened when they are first needed."""

    def __init__(self, config: RunConfig, command: str):
        self.config = config
        self.command = command
        self.directory = Path(config.run).expanduser()
        self.members = [Member(self, name, member) for name, member in sweep_members(config)]

    @classmethod
    def load(cls, config: str, overrides: list[str] | None = None) -> "Run":
        """Read a config (joining `torchrun`'s processes where there are any); raise RequestError when it is wrong."""
        overrides = overrides or []
        # Places are no part of what is made, so they are left out of the command that the report shows.
        shown = [override for override in overrides if not override.startswith(("run=", "activations="))]
        place = Path(config).expanduser().resolve()
        name = f"{place.name}/{KEPT}" if find_config(config).parent == place else place.name
        run = cls(load_config(config, overrides), shlex.join(["saetool", "run", name, *shown]))
        distributed.start()
        return run

    def build(self, members: Sequence[tuple[Stage, Path]], force: Force = False) -> list[Artifact]:
        """Make artifacts of this run, several autoencoders together, and keep its config in its folder.

        It is kept before the work where nothing is there yet, so that killed work goes on without a config at hand.
        """
        kept = self.directory / KEPT
        if distributed.is_main() and not kept.exists() and not any(out.exists() for _, out in members):
            keep_config(self.config, self.directory)
        together = len(members) > 1 or members[0][0].kind == "autoencoder"
        stood = [found and found.manifest for found in (standing_at(out) for _, out in members)]
        made = train_together(members, force=force) if together else [run_stage(*members[0], force=force)]
        # What only stood there already says nothing of a config that a later stage may refuse.
        if distributed.is_main() and (stood != [artifact.manifest for artifact in made] or not kept.exists()):
            keep_config(self.config, self.directory, None if self.live else _READS[members[0][0].kind])
        return made

    def __getitem__(self, name: str) -> Artifact:
        """Return an artifact by its kind, or MEMBER/KIND in a sweep; raises RequestError where it is not made."""
        member, _, kind = str(name).rpartition("/")
        found = next((m for m in self.members if m.name == member), None)
        if kind == "activations" or (kind == "sweep" and not member):
            return self.store if kind == "activations" else made_at(self.directory / kind, kind)
        if found is None or kind not in COMMANDS:
            names = ", ".join(f"{m.name}/KIND" if m.name else "KIND" for m in self.members)
            raise RequestError(
                f"{self.directory}: has no {name!r}; ask for {names}, KIND one of {', '.join(COMMANDS)}."
            )
        return made_at(found.path(kind), kind)

    def __repr__(self) -> str:
        results = [member.result() for member in self.members if (member.path("autoencoder") / MANIFEST).is_file()]
        return "\n".join([f"run {self.directory}", *results])

    @cached_property
    def source(self) -> ImageSource:
        """The images."""
        return open_source(self.config.images)

    @property
    def live(self) -> bool:
        """Whether the model trains straight from the backbone, without a store."""
        return self.config.activations == LIVE

    @property
    def store_path(self) -> Path:
        """Where the activations are: in the run, or shared, at an address too."""
        return place_of(self.config.activations or self.directory / "activations")

    @cached_property
    def store(self) -> Artifact:
        """The sealed activations; raises RequestError when they are not made yet."""
        if self.live:
            raise RequestError("activations: live keeps no store; index and report need one: set activations to null.")
        return made_at(self.store_path, "activations")

    def caching(self) -> Stage:
        """Return the stage that caches activations."""
        if self.config.activations:
            raise RequestError(
                f"activations: {self.config.activations} is given, so there is nothing to cache; set it to null."
            )
        c = self.config
        return caching_stage(c.backbone, self.source, c.images, c.cache, c.seed)

    def cache(self, force: Force = False) -> Artifact:
        """Cache activations, or take them as they are when they are sealed and the images are not at hand any more."""
        try:
            stage = self.caching()
        except RequestError:
            if force is True or not store_answers(self.store_path, self.config):
                raise
            say(f"{self.store_path}: sealed; the images themselves are not at hand.")
            return self.store
        return self.build([(stage, self.store_path)], force)[0]

    def train(self, force: Force = False) -> list[Artifact]:
        """Train the models: several on one stream. One that the config names by its path is trained already."""
        if isinstance(self.config.autoencoder, Trained):
            return [made_at(self.members[0].path("autoencoder"), "autoencoder")]
        stages = [(member.training(), member.path("autoencoder")) for member in self.members]
        return self.build(stages, force)

    def estimate(self, kind: str) -> dict[str, Any]:
        """Return what a dry run of caching or training says (of a sweep: its first member)."""
        stage = self.caching() if kind == "activations" else self.members[0].training()
        if stage.estimate is None:
            raise RequestError(f"{COMMANDS[kind]} has no dry run.")
        return stage.estimate(self.directory)

    def require_space(self, estimate: dict[str, Any]) -> None:
        """Raise RequestError when the disk cannot hold what an estimate says."""
        require_space(self.directory, estimate.get("bytes_on_disk", 0))

    def make(self, kind: str, force: Force = False) -> list[Artifact]:
        """Make one kind of artifact, for every member of the run; what it is made from must be there."""
        if kind == "activations":
            return [self.cache(force)]
        if kind == "autoencoder":
            return self.train(force)
        made = [getattr(member, COMMANDS[kind])(force=force) for member in self.members]
        for member, artifact in zip(self.members, made, strict=True):
            if kind != "report" and shows_another(page := member.path("report"), artifact):
                say(f"{page}: does not show it yet; `saetool report` writes the page again.")
        return made

    def make_all(self, force: Force = False) -> list["Member"]:
        """Make everything, the cheap part of the evaluation included; return the members.

        Live training ends with the model. A sweep ends with each member's evaluation and their summary in `sweep/`;
        `saetool index` and `saetool report` go on with all of its members.
        """
        if len({member.config.seed for member in self.members}) > 1:
            raise RequestError(
                "sweep: seed also decides which images are held out, so the members could not be compared; "
                "sweep training.seed: the seed of weights and noise."
            )
        self._require_inputs()
        if isinstance(self.config.autoencoder, Trained):
            self.train()
        if not self.config.activations:
            self.cache(force)
        self.train(force)
        if self.live:
            say("activations: live leaves no store, so there is nothing to index, evaluate and report on.")
        elif self.config.sweep:
            from saetool.evaluation import sweep_stage

            evaluations = {member.name: member.evaluate(force, full=False) for member in self.members}
            models = {member.name: Artifact.open(member.path("autoencoder")) for member in self.members}
            self.build([(sweep_stage(evaluations, models), self.directory / "sweep")], force)
        else:
            member = self.members[0]
            member.index(force)
            if self.config.training.held_out:
                member.evaluate(force, full=False)
            else:
                say("training.held_out is 0: there is nothing to evaluate on.")
            member.report(force)
        if distributed.is_main():
            keep_config(self.config, self.directory)
        return self.members

    def _require_inputs(self) -> None:
        """Raise RequestError, before any work, where what a later stage needs cannot be had."""
        if self.config.sweep and not all(member.config.training.held_out for member in self.members):
            raise RequestError("sweep: members are compared on held-out images: set training.held_out above 0.")
        layers, training = self.config.backbone.layers, [member.config.training for member in self.members]
        several = len(layers) > 1 or any("*" in str(layer) for layer in layers)
        trained = isinstance(self.config.autoencoder, Trained)
        if several and not self.config.activations and not trained and any(one.layer is None for one in training):
            names = ", ".join(map(str, layers))
            raise RequestError(f"training.layer: missing; backbone.layers are {names}: name the site to train on.")
        index, evaluation = self.config.index, self.config.evaluation
        if index.embeddings is not None:
            Artifact.open(index.embeddings, "activations")
        for path in evaluation.stability:
            Artifact.open(path, "autoencoder")


def run(
    config: str | os.PathLike | Mapping[str, Any] | RunConfig,
    overrides: Mapping[str, Any] | Sequence[str] | None = None,
    *,
    force: bool = False,
) -> Run:
    """Make everything that a config asks for, up to the page: skips what is done, resumes what was begun.

    Args:
        config: a YAML file, the name of a packaged config, a run's folder, or the same as nested dictionaries.
        overrides: by dotted key (`{"training.lr": 1e-3}`), or as the command line has them (`["training.lr=1e-3"]`).
        force: replace what was made otherwise than asked for now.

    Returns the run: `run["features"]` is its artifact of a kind, in a sweep `run["MEMBER/features"]`.

    >>> made = saetool.run("digits", {"run": "runs/all", "images.limit": 60, "training.tokens": 4096})
    >>> made["autoencoder"].kind
    'autoencoder'
    """
    given, texts = _overrides(overrides)
    if isinstance(config, str | os.PathLike) and not given:
        made = Run.load(os.fspath(config), texts)
    else:
        values = _values(config)
        for key, value in given.items():
            set_key(values, key, value)
        made_of = build_config(values, "run")
        made = Run(made_of, shlex.join(["saetool", "run", f"{Path(made_of.run).name}/{KEPT}"]))
        distributed.start()
    made.make_all(force="different" if force else False)
    return made


def _overrides(given: Any) -> tuple[dict[str, Any], list[str]]:
    if given is None or isinstance(given, Mapping):
        return dict(given or {}), []
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(text, str) for text in given):
        raise RequestError(
            f"run takes overrides as {{'training.lr': 1e-3}} or ['training.lr=1e-3'], not {shown(given)}."
        )
    return {}, list(given)


def _values(config: Any) -> dict[str, Any]:
    """Return a config as nested dictionaries of its own."""
    if isinstance(config, str | os.PathLike):
        config = load_config(config)
    if isinstance(config, RunConfig):
        return config.model_dump(exclude_unset=True)
    if not isinstance(config, Mapping):
        raise RequestError(f"run takes no {type_name(config)}: give a YAML file, a packaged config's name, or a dict.")
    return {k: v.model_dump(exclude_unset=True) if isinstance(v, Settings) else deepcopy(v) for k, v in config.items()}


@dataclass(frozen=True)
class Member:
    """One model of a run, with the artifacts made from it."""

    run: Run
    name: str
    config: RunConfig

    def path(self, kind: str) -> Path:
        """Return where an artifact of this member goes; a trained autoencoder is where the config says."""
        if kind == "autoencoder" and isinstance(self.config.autoencoder, Trained):
            return place_of(self.config.autoencoder.path, kind)
        return self.run.directory / self.name / kind

    def training(self) -> Stage:
        """Return the stage that trains this model."""
        c = self.config
        if isinstance(c.autoencoder, Trained):
            raise RequestError(f"autoencoder: {c.autoencoder.path} is trained already: index and evaluate it.")
        store = LiveSource(c.backbone, self.run.source, c.images, c.cache) if self.run.live else self.run.store
        return training_stage(store, c.autoencoder, c.training, c.seed, group=None if self.run.live else c.images.group)

    def index(self, force: Force = False) -> Artifact:
        """Find what each latent responds to."""
        from saetool.features import index_stage

        stage = index_stage(made_at(self.path("autoencoder"), "autoencoder"), self.run.store, self.config.index)
        return self.run.build([(stage, self.path("features"))], force)[0]

    def evaluate(self, force: Force = False, full: bool = True) -> Artifact:
        """Measure held-out numbers and baselines; `full` adds probes and the effect on the model.

        Both answers go to one place: the full one replaces the cheap one and serves where the cheap one is asked for.
        An evaluation made before there was an index is made again with it.
        """
        place = self.path("evaluation")
        cheap = self._evaluation(full=False)
        standing = standing_at(place)
        if not full and not force and standing is not None and answers_cheap(standing, cheap):
            say(f"{place}: done already")
            return standing
        whole, found = self._evaluation(full=True), standing and standing.manifest["recipe"]
        if full:
            replaces = found == cheap.recipe or differs_only_in(whole, place, "features")
            return self.run.build([(whole, place)], force or replaces)[0]
        # What costs minutes to hours is never replaced by what costs seconds: it is made again, or kept.
        stage = whole if found == whole.recipe or whole_stands(place) or whole_was_begun(place) else cheap
        return self.run.build([(stage, place)], force or differs_only_in(stage, place, "features"))[0]

    def _evaluation(self, full: bool) -> Stage:
        from saetool.evaluation import evaluation_stage

        settings = self.config.evaluation
        if full:
            settings = settings.model_copy(update=dict.fromkeys(FULL, True))
        features = self.path("features")
        return evaluation_stage(
            made_at(self.path("autoencoder"), "autoencoder"),
            self.run.store,
            settings,
            backbone=self.config.backbone,
            source=self.run.source if settings.effect else None,
            features=Artifact.open(features, "features") if (features / MANIFEST).is_file() else None,
            seed=self.config.seed,
        )

    def report(self, force: Force = False) -> Artifact:
        """Write the web page. One that differs only in a newer evaluation or index is written again without asking."""
        from saetool.report import report_stage

        features, evaluation = (
            Artifact.open(self.path(kind), kind) if (self.path(kind) / MANIFEST).is_file() else None
            for kind in ("features", "evaluation")
        )
        model = made_at(self.path("autoencoder"), "autoencoder")
        report, command, place = self.config.report, self.run.command, self.path("report")
        try:
            source = None if StoredThumbnails.are_in(self.run.store) else self.run.source
        except RequestError:
            stage = report_stage(features, self.run.store, model, evaluation, None, report, command)
            standing = standing_at(place)
            if force is True or standing is None or standing.manifest["recipe"] != stage.recipe:
                raise
            say(f"{place}: done already; the images themselves are not at hand.")
            return standing
        stage = report_stage(features, self.run.store, model, evaluation, source, report, command)
        if not force and differs_only_in(stage, place, "evaluation", "features"):
            say(f"{place}: the evaluation or the index is newer; writing the page again.")
            force = True
        return self.run.build([(stage, place)], force)[0]

    def result(self) -> str:
        """Return the result in a few lines: quality on held-out images, dead latents, where the report is.

        Dead latents, said where there is an index, never fired on the whole store.
        """
        facts = made_at(self.path("autoencoder"), "autoencoder").content
        evaluated = self._evaluated()
        # A model from elsewhere was measured on another store, if at all.
        elsewhere = isinstance(self.config.autoencoder, Trained) and evaluated
        final = (evaluated if elsewhere else facts.get("final")) or evaluated
        name = f"{self.name}: " if self.name else ""
        lines = [
            f"{name}{facts['family']} autoencoder, {facts['d_in']:,} → {facts['n_latents']:,} latents, "
            f"{_training_of(facts)}; on {measured_on(final)}:",
            f"  FVU {_number(final.get('fvu'), '.3f')}   L0 {_number(final.get('l0'), '.1f')}   "
            f"silent there {_number(final.get('dead_share'), '.1%')}",
        ]
        if "elbo" in final:
            lines.append(f"  ELBO {final['elbo']:.2f} nats   active units {final['active_units']:,}")
        if (self.path("features") / MANIFEST).is_file():
            dead = Artifact.open(self.path("features"), "features").content["counts"]["dead"]
            lines.append(f"  dead {dead / facts['n_latents']:.2%} ({dead:,} latents never fire on any image)")
        lines += [f"  note: {concern}" for concern in self._concerns(facts)]
        page = self.path("report") / "index.html"
        if page.is_file():
            lines.append(f"  report: {page.resolve().as_uri()}")
            member = f" --member {shlex.quote(self.name)}" if self.name else ""
            lines.append(f"  a photograph of your own: saetool serve {shlex.quote(str(self.run.directory))}{member}")
        return "\n".join(lines)

    def _evaluated(self) -> dict[str, Any]:
        """Return the numbers of the evaluation, for an autoencoder that nobody measured while it was trained."""
        place = self.path("evaluation")
        return Artifact.open(place, "evaluation").content if (place / MANIFEST).is_file() else {}

    def _concerns(self, facts: dict[str, Any]) -> list[str]:
        """Return what the evaluation gives to think of; where there is none, the training's end."""
        place = self.path("evaluation")
        made = (place / MANIFEST).is_file()
        return concerns(
            facts, json.loads(Artifact.open(place, "evaluation").read_bytes("evaluation.json")) if made else None
        )


def _training_of(facts: dict[str, Any]) -> str:
    """Say how an autoencoder was trained, or where it was imported from."""
    if "origin" in facts:
        return f"imported from {facts['origin']['source']} ({facts['origin']['format']})"
    return f"{facts['tokens']:,} activations of training"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
