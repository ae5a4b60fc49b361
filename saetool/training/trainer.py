"""The loop: one stream of batches, one or several learners on it, metrics, held-out evaluation, checkpoints.

For each step s of 0 … steps the order is: evaluate if due, stop at the end, learn from the batch, then at log steps
read the numbers back, check them, write a line and perhaps a checkpoint. A checkpoint so stands before the evaluation
of its step, and a resumed run makes that evaluation again: metrics.jsonl comes out the same.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from saetool import distributed
from saetool.artifacts import Partial
from saetool.autoencoders.base import Stream
from saetool.errors import WorkError
from saetool.progress import bar
from saetool.training import checkpoints
from saetool.training.heldout import Measures, evaluate
from saetool.training.learner import Learner
from saetool.training.metrics import MetricLog

DIVERGED_FVU = 1e4
"""A reconstruction ten thousand times worse than the constant mean does not come back."""
EVALUATIONS = 4
"""How many held-out evaluations a run makes along the way where the settings do not say."""


@dataclass
class Run:
    """One model's training: who learns, where it is written, and when it was last saved."""

    learner: Learner
    partial: Partial
    log: MetricLog
    fitted: bool = False
    """A closed form was found: no steps were taken."""
    final: dict | None = None
    """The last evaluation, of the whole held-out split (of the training rows where nothing is held out)."""
    failure: str | None = None
    saved_at: float = field(default_factory=time.monotonic)


class Diverged(WorkError):
    """Some runs diverged; `outs` are their places."""

    def __init__(self, runs: Sequence[Run]):
        super().__init__("\n".join(str(run.failure) for run in runs))
        self.outs = {run.partial.out for run in runs}


class Clock:
    """Time spent on training itself, evaluations and checkpoints left out."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def lap(self) -> float:
        """Return the seconds since the last lap, pauses left out."""
        now = time.monotonic()
        seconds, self.start = now - self.start, now
        return max(seconds, 1e-9)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what happens inside."""
        began = time.monotonic()
        yield
        self.start += time.monotonic() - began


def learn(runs: Sequence[Run], stream: Stream) -> None:
    """Train every run to its end on one stream; a run that fails keeps its checkpoint and lets the others go on.

    All runs share steps, batch size, log and evaluation times (the caller sees to it). Raises Diverged at the end, or
    as soon as no run is left, naming those that did.
    """
    center = stream.statistics().mean
    positions = [_begin(run, stream) for run in runs]
    step = min(run.learner.done for run in runs)
    steps = runs[0].learner.settings.steps
    behind = [at for run, at in zip(runs, positions, strict=True) if run.learner.done == step and at is not None]
    if step < steps and behind:
        stream.seek(behind[0])
    batches = stream.batches()
    clock = Clock()
    rows = stream.batch_size
    with bar("training", steps * rows, "rows", done=step * rows) as advance:
        while True:
            current = [run for run in runs if run.failure is None and run.learner.done == step]
            waiting = [run for run in runs if run.failure is None and run.learner.done > step]
            if _evaluation_due(step, runs[0]):
                with clock.paused():
                    _evaluate(current, stream, center, final=step == steps)
            if step == steps or not current + waiting:
                break
            for run in current:
                run.learner.enter_phase()
            batch = next(batches)
            for run in current:
                run.learner.step(batch)
            step += 1
            if step % runs[0].learner.settings.log_every == 0 or step == steps:
                seconds = clock.lap()
                with clock.paused():
                    _report(current, stream, seconds, center)
            advance(rows)
    failed = [run for run in runs if run.failure is not None]
    if failed:
        raise Diverged(failed)


def _begin(run: Run, stream: Stream) -> dict | None:
    """Take up the run's checkpoint and return where the stream stood then, or start it."""
    found = checkpoints.load(run.partial)
    if found is None:
        run.log.cut(0)
        run.learner.initialize(stream)
        run.fitted = run.learner.fit(stream)
        # Unlike devices round, and draw, differently: all begin with the same model.
        for tensor in run.learner.autoencoder.state_dict().values():
            distributed.broadcast(tensor)
        return None
    tensors, rest = found
    run.learner.restore(tensors, rest["learner"])
    run.log.cut(rest["log_bytes"])
    return rest["position"]


def _evaluation_due(step: int, run: Run) -> bool:
    settings = run.learner.settings
    every = settings.evaluate_every or math.ceil(settings.steps / EVALUATIONS)
    return step == settings.steps or (step > 0 and step % every == 0)


def _evaluate(runs: Sequence[Run], stream: Stream, center: Tensor, final: bool) -> None:
    """Measure on held-out rows; at the end on all of them, or on all training rows where none are held out."""
    for run in runs:
        learner = run.learner
        split, rows = "held_out", None if final else learner.settings.evaluate_rows
        blocks = stream.held_out() if rows is None else stream.held_out(rows)
        measures = evaluate(learner.autoencoder, blocks, center)
        if measures.rows == 0:
            if not final:
                return
            split, measures = "train", evaluate(learner.autoencoder, stream.ordered(), center)
        place = {"step": 0, "tokens": stream.n_rows, "phase": "closed form"} if run.fitted else _place(learner, stream)
        line = {"split": split, **place, **measures.as_json()}
        if final:
            own = learner.summarize(stream.held_out() if split == "held_out" else stream.ordered())
            run.final = {"split": split, **measures.as_json(), "dead": measures.dead, "dense": measures.dense, **own}
            line |= {**own, "final": True}
        run.log.write(line)


def _report(runs: Sequence[Run], stream: Stream, seconds: float, center: Tensor) -> None:
    """Read the numbers of the steps since the last report, check them, write a line; save when it is time."""
    for run in runs:
        learner = run.learner
        means, losses = learner.read_window()
        probe = evaluate(learner.autoencoder, [learner.probe()], center)
        run.failure = _diverged(run.partial.out.name, learner, losses, probe)
        if run.failure is None:
            run.log.write(_train_line(learner, stream, means, len(losses) * stream.batch_size / seconds, probe))
            _save_when_due(run, stream)


def _train_line(learner: Learner, stream: Stream, means: dict[str, float], rate: float, probe: Measures) -> dict:
    place = _place(learner, stream)
    line: dict = {"split": "train", **place, "lr": learner.lr, "rate": rate, "parts": {}, "metrics": {}}
    for name, value in means.items():
        group, _, inner = name.partition("/")
        if inner:
            line[group][inner] = value
        else:
            line[name] = value
    return {**line, "fvu": probe.fvu, "l0": probe.l0}


def _place(learner: Learner, stream: Stream) -> dict:
    phase = learner.phase_of(learner.done - 1)
    return {"step": learner.done, "tokens": learner.done * stream.batch_size, "phase": phase.name}


def _diverged(label: str, learner: Learner, losses: list[float], probe: Measures) -> str | None:
    """Return what went wrong in the last steps, with advice; None when all is well."""
    bad = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if bad is None and (probe.fvu is None or probe.fvu < DIVERGED_FVU):
        return None
    settings = learner.settings
    at = bad if bad is not None else len(losses) - 1
    step = learner.done - len(losses) + at + 1
    before = f", {losses[at - 1]:.6g} the step before" if at > 0 else ""
    advice = [f"a lower training.lr (now {settings.lr:g})"]
    if settings.clip_norm is None:
        advice.append("training.clip_norm=1")
    if settings.warmup_steps == 0:
        advice.append("training.warmup_steps")
    return (
        f"{label}: training diverged at step {step}: loss {losses[at]:.6g}{before}, "
        f"FVU {'undefined' if probe.fvu is None else format(probe.fvu, '.3g')}. Try {', '.join(advice)}. "
        "The last good checkpoint is kept in the partial directory; --force (force=True) starts anew."
    )


def _save_when_due(run: Run, stream: Stream) -> None:
    settings = run.learner.settings
    old_enough = time.monotonic() - run.saved_at >= settings.checkpoint_minutes * 60
    due = old_enough or run.learner.done == settings.steps
    # The main process's clock decides for all, because all take part in recording a live stream's position.
    if not distributed.all_gather(due)[0]:
        return
    run.saved_at = time.monotonic()
    position = stream.position()
    if distributed.is_main():
        tensors, rest = run.learner.state()
        record = {"learner": rest, "position": position, "log_bytes": run.log.size()}
        checkpoints.save(run.partial, run.learner.done, tensors, record)
