"""From a run to its pages and its model, ready to be asked."""

from typing import TYPE_CHECKING, Any

from saetool.artifacts import Artifact
from saetool.artifacts.manifest import MANIFEST
from saetool.errors import RequestError
from saetool.pipeline import Member, Run
from saetool.progress import say
from saetool.report.summary import summarize
from saetool.serving.app import make_app
from saetool.serving.session import Session
from saetool.standing import made_at

if TYPE_CHECKING:
    from starlette.applications import Starlette


def open_site(run: Run, name: str | None = None, label: str | None = None) -> "Starlette":
    """Return the site of a run's report with a page that asks its model; of a sweep, that of the member `name`.

    Raises RequestError where the run has no report of an index yet, or several members and none is named.

    >>> from saetool.pipeline import Run
    >>> from saetool.serving.opening import open_site
    >>> site = open_site(Run.load("runs/all"))                                     # doctest: +SKIP
    """
    member = _member(run, name)
    report, model = (made_at(member.path(kind), kind) for kind in ("report", "autoencoder"))
    if "n_latents" not in report.content:
        raise RequestError(
            f"{report.path}: was made without an index: `saetool index` and `saetool report --force` make it."
        )
    features, evaluation = (
        Artifact.open(member.path(kind), kind) if (member.path(kind) / MANIFEST).is_file() else None
        for kind in ("features", "evaluation")
    )
    config = member.config
    try:
        source = run.source
    except RequestError as problem:
        say(str(problem))
        source = None
    session = Session.open(model, run.store, config.backbone, source, label=label, seed=config.seed)
    about = summarize(features, run.store, model, evaluation)
    facts: dict[str, Any] = {
        "run": about,
        "title": config.report.title or f"{about['n_latents']:,} latents of {about['backbone']}",
        "own_images": source is not None,
        "changeable": session.backbone.tokens != "mean",
        "answers": session.answers.words,
        "usual": (model.content.get("final") or {}).get("fvu"),
    }
    return make_app(session, report.path, facts)


def _member(run: Run, name: str | None) -> Member:
    found = [member for member in run.members if name in (None, member.name)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(member.name for member in run.members if member.name)
    if not names:
        raise RequestError(f"--member: {run.directory} is no sweep and holds one model: leave it out.")
    which = "name one" if name is None else f"{name!r} is none"
    raise RequestError(f"--member: {which} of the models of {run.directory}: {names}.")
