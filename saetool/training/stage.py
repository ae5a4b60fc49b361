"""Training as a stage: from a store (or a stream) and settings to a sealed autoencoder; several at once as a sweep."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from saetool import distributed
from saetool.artifacts import Artifact, Partial, Stage, run_stages
from saetool.artifacts.stage import Force, place_beside
from saetool.autoencoders.base import Stream
from saetool.autoencoders.families import REGISTERED, AnyFamily, AutoencoderSettings, find_family
from saetool.autoencoders.sparse_settings import SparseSettings
from saetool.errors import RequestError, WorkError, shown
from saetool.images.settings import Grouping
from saetool.progress import say
from saetool.settings import Settings
from saetool.sparse.backends import describe
from saetool.training.advice import AutoAutoencoder, AutoTraining, TrainingOrAuto, advise, written_out
from saetool.training.concerns import concerns
from saetool.training.estimate import estimate
from saetool.training.learner import Learner
from saetool.training.metrics import MetricLog
from saetool.training.plan import Plan, as_source, resolved
from saetool.training.settings import TrainingSettings
from saetool.training.source import Source
from saetool.training.trackers import open_trackers
from saetool.training.trainer import Diverged, Run, learn
from saetool.validation import request

KIND = "autoencoder"


@dataclass(frozen=True, kw_only=True)
class TrainingStage(Stage):
    """A stage that keeps its plan, so that several can be trained together."""

    plan: Plan


def training_stage(
    source: "Tensor | np.ndarray | Artifact | Stream | Source",
    autoencoder: AutoencoderSettings | AutoAutoencoder,
    settings: TrainingSettings | AutoTraining,
    seed: int = 0,
    device: torch.device | None = None,
    group: Grouping | None = None,
) -> TrainingStage:
    """Return the stage that trains one autoencoder; nothing is read before it is built.

    `source` is a sealed store of activations, a stream of batches, or any other `Source`. `seed` decides the order
    of the data and the held-out split, and the weights too unless `settings.seed` is given; by `group`, images of a
    store are held out as one. Settings that are `auto` follow from the source's size. Raises RequestError when the site
    is missing or the settings cannot work together.
    """
    rows = as_source(source, group)
    if isinstance(autoencoder, AutoAutoencoder) or isinstance(settings, AutoTraining):
        advice = advise(autoencoder, settings, *rows.size(settings), device)
        autoencoder, settings = advice.autoencoder, advice.training
        say(advice.because)
    assert not isinstance(autoencoder, AutoAutoencoder)
    plan = Plan(rows, resolved(autoencoder, device), settings, seed, device)
    shares = distributed.world_size() * settings.accumulate
    if settings.batch_size % shares:
        raise RequestError(
            f"training.batch_size {settings.batch_size} does not divide into {distributed.world_size()} processes × "
            f"{settings.accumulate} pieces (training.accumulate): choose a multiple of {shares}."
        )
    plan.source.check(settings)
    return TrainingStage(
        kind=KIND,
        config=plan.config(),
        build=lambda partial: _train([plan], [partial])[0],
        inputs=plan.source.inputs,
        listing=plan.source.listing,
        changed=lambda made: _tell_written(plan.source, made.notes.get("times"), made.path),
        estimate=lambda place: estimate(plan),
        plan=plan,
    )


class _Request(Settings):
    """What `train` is asked for: the sections that a config has."""

    autoencoder: Annotated[AutoencoderSettings | AutoAutoencoder, AnyFamily((AutoAutoencoder,))]
    training: TrainingOrAuto
    seed: int = Field(default=0, ge=0)
    group: Grouping | None = None


def train(
    source: "Tensor | np.ndarray | Artifact | Stream | Source | str | os.PathLike",
    autoencoder: AutoencoderSettings | AutoAutoencoder | Mapping[str, Any] | Literal["auto"] | None = None,
    training: TrainingSettings | AutoTraining | Mapping[str, Any] | Literal["auto"] | None = None,
    out: str | os.PathLike = "",
    *,
    seed: int = 0,
    device: torch.device | str | None = None,
    group: "Grouping | Mapping[str, Any] | None" = None,
    force: bool = False,
    **keywords: Any,
) -> Artifact:
    """Train one autoencoder and return its sealed artifact; finished work is skipped, begun work resumed.

    Args:
        source: rows in memory (a tensor or an array [n, d], or [images, tokens, d] whose images are held out whole), a
            store of activations (its path, its artifact, or opened), or a stream.
        autoencoder: settings or a mapping of the keys of a config's `autoencoder` section, or "auto".
        training: likewise of its `training` section; "auto", or `minutes=20`, for what fits the rows and the time.
        out: where the artifact goes.
        seed: decides the order of the rows, what is held out, and the weights.
        device: default: a GPU where there is one.
        group: which images of a store are held out as one (a config's `images.group`): `{"column": "module"}`.
        force: build anew and replace what stands at `out`.
        keywords: single keys of both sections: `kind="topk", k=32, expansion=32, tokens=1_000_000, lr=1e-3`.

    Raises RequestError where anything of it is wrong, WorkError when training diverges.

    >>> rows = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    >>> made = saetool.train(rows, kind="topk", k=4, expansion=2, tokens=512, batch_size=64, out="runs/mine/model")
    >>> saetool.load(made).encode(rows).shape
    torch.Size([200, 32])
    """
    given = {"training": training, "autoencoder": autoencoder}
    sections = {name: written_out(name, section) for name, section in given.items()}
    of_section = sections["autoencoder"].get("kind") if isinstance(sections["autoencoder"], Mapping) else None
    find_family(keywords.get("kind", of_section))  # whose keys the other keywords may be
    asked = request(_Request, "train", sections, keywords, {"seed": seed, "group": group})
    where = _device_of(device)
    source = as_source(source, asked.group)
    stage = training_stage(source, asked.autoencoder, asked.training, asked.seed, where)
    return train_together([(stage, out)], force=force)[0]


def _device_of(given: Any) -> torch.device | None:
    if given is None:
        return None
    try:
        device = torch.device(given) if isinstance(given, str | torch.device) else None
    except RuntimeError:  # a name that torch does not know
        device = None
    kinds = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    if device is None or device.type not in kinds:
        raise RequestError(
            f"train: device: there is no {shown(given)} here; give cpu, cuda or cuda:1, or leave it out."
        )
    return device


def train_together(members: Sequence[tuple[Stage, str | os.PathLike]], *, force: Force = False) -> list[Artifact]:
    """Train several models: those with equal data and equal `SHARED` settings learn side by side from one stream.

    Each has its own directory, metrics, checkpoints and generator, and comes out as if trained alone. When some
    diverge, the others are finished and sealed first. Raises WorkError for the diverged ones.
    """
    stages = [(stage, place_beside(out)) for stage, out in members]
    plans = {out: stage.plan for stage, out in stages if isinstance(stage, TrainingStage)}

    def build_all(partials: list[Partial]) -> list[dict[str, Any]]:
        groups: dict[str, list[int]] = {}
        for i, partial in enumerate(partials):
            groups.setdefault(plans[partial.out].stream_key, []).append(i)
        contents: dict[int, dict[str, Any]] = {}
        for group in groups.values():
            made = _train([plans[partials[i].out] for i in group], [partials[i] for i in group])
            contents |= dict(zip(group, made, strict=True))
        return [contents[i] for i in range(len(partials))]

    try:
        return run_stages(stages, build_all, force=force)
    except Diverged as error:
        good = [(stage, out) for stage, out in stages if out not in error.outs]
        if good:
            train_together(good, force=force)
        raise


def _train(plans: list[Plan], partials: list[Partial]) -> list[dict[str, Any]]:
    """Train a group of models on one stream, write their weights, and return what is known of each."""
    settings, source = plans[0].settings, plans[0].source
    device = plans[0].device or distributed.default_device()
    stream = source.open(settings, plans[0].seed, device)
    runs = []
    for plan, partial in zip(plans, partials, strict=True):
        _note_times(source, partial)
        learner = Learner(plan.model(stream.d_in), plan.settings, plan.model_seed, device)
        log = MetricLog(partial, open_trackers(plan.settings, partial.out, plan.config()))
        runs.append(Run(learner, partial, log))
        _say_where(plan, learner, partial)
    try:
        learn(runs, stream)
    finally:
        for run in runs:
            run.log.close()
    return [_finish(plan, run, stream) for plan, run in zip(plans, runs, strict=True)]


def _finish(plan: Plan, run: Run, stream: Stream) -> dict[str, Any]:
    """Write the weights and return the artifact's content."""
    autoencoder, settings = run.learner.autoencoder, plan.settings
    for name, tensor in autoencoder.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise WorkError(
                f"{run.partial.out}: {name} is not finite after training, so nothing is sealed. The activations may "
                "be too large for float32: look at max_abs in the store's stats.safetensors."
            )
    if distributed.is_main():
        run.partial.write_tensors("model.safetensors", autoencoder.state_dict())
    content = {
        "family": plan.autoencoder.kind,
        "settings": plan.autoencoder.model_dump(mode="json"),
        "d_in": autoencoder.d_in,
        "n_latents": autoencoder.n_latents,
        "site": plan.source.site(settings),
        "loss_convention": autoencoder.loss_convention(),
        "held_out": plan.held_out,
        "trained_on": plan.source.inputs[0].id if plan.source.inputs else None,
        "tokens": stream.n_rows if run.fitted else settings.steps * settings.batch_size,
        "steps": 0 if run.fitted else settings.steps,
        "final": run.final,
    }
    for concern in concerns(content):
        say(f"{run.partial.out}: {concern}")
    return content


def _note_times(source: Source, partial: Partial) -> None:
    """Note when what is read was last written, and say where that is not as it was when the work began."""
    if not distributed.is_main() or (times := source.times()) is None:
        return
    _tell_written(source, partial.record_of("times"), partial.out)
    partial.record("times", times)
    partial.note("times", times)


def _tell_written(source: Source, noted: str | None, place: Path) -> None:
    """Say where files were written since: a model that is trained live keeps no digest of what it saw."""
    if noted is not None and noted != source.times():
        say(
            f"{place}: files of images were written since, and live training does not know whether they are the same. "
            "--force (force=True) trains anew."
        )


def _say_where(plan: Plan, learner: Learner, partial: Partial) -> None:
    """Say in one line what runs where, and keep it in the notes."""
    autoencoder, settings = learner.autoencoder, plan.settings
    pieces = f" in {settings.accumulate} pieces" if settings.accumulate > 1 else ""
    closed = getattr(plan.autoencoder, "solver", None) == "closed_form"
    work = "closed form" if closed else f"{settings.steps:,} steps of {settings.batch_size:,} rows{pieces}"
    parameters = sum(parameter.numel() for parameter in autoencoder.parameters())
    sparse = ""
    if isinstance(plan.autoencoder, SparseSettings):
        sparse = f"{plan.autoencoder.codes} codes, {describe(learner.device)}, "
    partial.say_where(
        f"{plan.autoencoder.kind} {autoencoder.d_in} → {autoencoder.n_latents} ({parameters:,} parameters), "
        f"{work}, {settings.precision}, {sparse}{distributed.where(learner.device)}"
    )
    if distributed.is_main() and (module := REGISTERED.places.get(plan.autoencoder.kind)):
        partial.note("family_registered", module)
