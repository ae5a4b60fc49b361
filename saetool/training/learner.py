"""One model in training: its optimizer, schedule, generator and running numbers. It is fed batches from outside."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saetool import distributed, seeding
from saetool.autoencoders.answers import explained
from saetool.autoencoders.base import Autoencoder, Loss, Step, Stream, Training
from saetool.autoencoders.sparse import SparseAutoencoder
from saetool.errors import RequestError, type_name
from saetool.sparse.adam import SparseAdam
from saetool.sparse.backends import backend_for
from saetool.training.metrics import Window
from saetool.training.replay import Recordings
from saetool.training.schedules import lr_factor, phase_borders
from saetool.training.settings import TrainingSettings

PROBE_ROWS = 512
"""Rows of the latest batch on which a log line's fvu and l0 are taken: a percent of the work between two lines."""


@dataclass(frozen=True)
class Where:
    """The phase that a step belongs to, and the steps it spans."""

    name: str
    start: int
    stop: int


class Learner:
    """A model that learns: `enter_phase`, then `step`, for each batch; `state` and `restore` carry it over a kill."""

    optimizer: torch.optim.Optimizer
    """Of the phase that was entered."""

    def __init__(self, autoencoder: Autoencoder, settings: TrainingSettings, seed: int, device: torch.device):
        self.autoencoder = autoencoder.to(device)
        self.settings = settings
        self.seed = seed
        self.training = Training(settings.steps, settings.steps * settings.batch_size)
        self.device = device
        self.dtype = next(autoencoder.parameters()).dtype
        self.generator = seeding.generator(seed, "training", device=device)
        self.done = 0
        self.window = Window()
        self.latest: Tensor | None = None
        self.phase = Where("", 0, 0)
        self.recordings: Recordings | None = None
        phases = autoencoder.phases()
        borders = phase_borders(phases, settings.steps)
        self.phases = [
            Where(phase.name, start, stop)
            for phase, start, stop in zip(phases, [0, *borders[:-1]], borders, strict=True)
        ]
        for where in self.phases:
            if where.stop == where.start and settings.steps > 0:
                raise RequestError(
                    f"training.tokens: {settings.steps} steps leave none for the phase {where.name!r}: train longer, "
                    "or without pretraining."
                )
            if (steps := where.stop - where.start) > 0 and settings.warmup_steps >= max(steps, 2):
                raise RequestError(
                    f"training.warmup_steps: {settings.warmup_steps} leaves nothing of the {steps} steps of the phase "
                    f"{where.name!r}: lower it, or raise training.tokens."
                )

    def probe(self) -> Float[Tensor, "rows d_in"]:
        """Return the first rows of the latest batch."""
        assert self.latest is not None
        return self.latest[:PROBE_ROWS]

    def initialize(self, stream: Stream) -> None:
        """Set what comes from data before the first step."""
        with torch.no_grad(), explained(self.autoencoder):
            self.autoencoder.initialize(stream, self.generator, self.training)

    def fit(self, stream: Stream) -> bool:
        """Fit in closed form where the model has one and say so; training is then over."""
        with torch.no_grad(), explained(self.autoencoder):
            fitted = self.autoencoder.fit(stream)
        if fitted:
            self.done, self.phase = self.settings.steps, self.phases[-1]
        return fitted

    def enter_phase(self) -> None:
        """Enter the phase of the next step with a fresh optimizer, unless it is the current one."""
        where = self.phase_of(self.done)
        if where is self.phase:
            return
        self.phase = where
        settings, self.recordings = self.settings, None
        with explained(self.autoencoder):
            self.autoencoder.enter(where.name)
            self.optimizer = self.autoencoder.make_optimizer(settings.lr, settings.betas, settings.eps)
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            raise RequestError(
                f"make_optimizer of {type(self.autoencoder).__name__} must return a torch.optim.Optimizer, not a "
                f"{type_name(self.optimizer)}"
            )

    def step(self, batch: Float[Tensor, "batch d_in"]) -> None:
        """Learn from one batch of raw activations (this process's part of the global one)."""
        step = self._now()
        with explained(self.autoencoder):
            with self.autoencoder.step_context() if step.optimizer else nullcontext():
                self._step(batch, step)
            self.autoencoder.after_step(step)
        self.done += 1
        self.latest = batch

    def _step(self, batch: Tensor, step: Step) -> None:
        settings, optimizer = self.settings, self.optimizer
        self._set_lr(optimizer)
        if (scalars := self._repeated(batch, step)) is not None:
            self.window.add(scalars)
            return
        optimizer.zero_grad(set_to_none=True)
        total, losses = None, []
        for piece in batch.split(len(batch) // settings.accumulate):
            loss = self._loss(piece.to(self.device, non_blocking=True).to(self.dtype), step)
            losses.append(loss)
            share = loss.total if settings.accumulate == 1 else loss.total / settings.accumulate
            share.backward()
            self.window.add(loss.scalars())
            total = share.detach() if total is None else total + share.detach()
        assert total is not None
        self.window.add({"loss": total})
        self._update(step, losses)

    def _update(self, step: Step, losses: list[Loss]) -> None:
        """Change the model by the gradients of its losses."""
        autoencoder, optimizer, clip_norm = self.autoencoder, self.optimizer, self.settings.clip_norm
        self._average_gradients()
        with torch.no_grad():
            autoencoder.before_update()
        if clip_norm is not None:
            self.window.add({"grad_norm": nn.utils.clip_grad_norm_(self._learning(), clip_norm)})
        optimizer.step()
        with torch.no_grad():
            autoencoder.after_update(optimizer, step, self.generator, losses)

    def _repeated(self, batch: Tensor, step: Step) -> dict[str, Tensor] | None:
        """Take a step that repeats the launches of others and return its scalars; None where it does not."""
        if self.recordings is None:
            optimizer = self.optimizer
            if not isinstance(optimizer, SparseAdam) or not step.optimizer:
                return None
            if backend_for(*optimizer.rules).name != "cuda":
                return None
            self.recordings = Recordings(self.autoencoder, optimizer, self._rest_of_step, self.device)
        return self.recordings.step(batch, step)

    def _rest_of_step(self, found: Any) -> dict[str, Tensor]:
        """Take a step whose entries are found: loss, gradients, update; return its scalars."""
        step = self._now()
        self.optimizer.zero_grad(set_to_none=True)
        loss = cast(SparseAutoencoder, self.autoencoder).loss(found.x, step, self.generator, found)
        total = loss.total
        total.backward()
        self._update(step, [loss])
        return {"loss": total.detach()} | loss.scalars()

    def summarize(self, blocks: Iterable[Float[Tensor, "rows d_in"]]) -> dict[str, float]:
        """Return the family's own numbers over rows."""
        return self.autoencoder.summarize(blocks, seeding.derive(self.seed, "summary"))

    def read_window(self) -> tuple[dict[str, float], list[float]]:
        """Return the means since the last call and the loss of each step."""
        return self.window.flush(self.settings.accumulate)

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return self.optimizer.param_groups[0]["lr"]

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """Return all that the next step depends on: tensors, and a JSON-able rest."""
        optimizer = self.optimizer.state_dict()
        tensors = {f"model/{name}": tensor for name, tensor in self.autoencoder.state_dict().items()}
        numbers: dict[str, dict] = {}
        for index, entries in optimizer["state"].items():
            for name, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{index}/{name}"] = value
                else:
                    numbers.setdefault(str(index), {})[name] = value
        tensors["generator"] = self.generator.get_state()
        rest = {
            "done": self.done,
            "device": self.device.type,
            "phase_start": self.phase.start,
            "groups": optimizer["param_groups"],
            "numbers": numbers,
        }
        return tensors, rest

    def restore(self, tensors: dict[str, Tensor], rest: dict) -> None:
        """Take up a recorded state: weights, generator, and the optimizer unless its phase ended with the record.

        Raises RequestError where the record is of another kind of device: it would go on to other numbers.
        """
        began = rest.get("device", self.device.type)
        if began != self.device.type:
            raise RequestError(
                f"this training began on {began} and cannot go on on {self.device.type}: its random numbers and sums "
                f"are others there. Resume it on {began}, or begin anew with --force (force=True)."
            )
        self.done = rest["done"]
        model = {key.removeprefix("model/"): value for key, value in tensors.items() if key.startswith("model/")}
        within = self.phase_of(self.done).start == rest["phase_start"]
        if within:
            self.enter_phase()  # before the weights: what it sets in them was set before the record, too
        self.autoencoder.load_state_dict(model)
        self.generator.set_state(tensors["generator"].cpu())
        self.recordings = None
        if within:
            restore_optimizer(self.optimizer, tensors, rest)
        else:
            self.enter_phase()

    def phase_of(self, step: int) -> Where:
        """Return the phase that a step (from 0) belongs to."""
        return next((where for where in self.phases if where.start <= step < where.stop), self.phases[-1])

    def _set_lr(self, optimizer: torch.optim.Optimizer) -> None:
        settings, phase = self.settings, self.phase
        steps = phase.stop - phase.start
        warmup = min(settings.warmup_steps, steps)
        factor = lr_factor(self.done - phase.start, steps, settings.schedule, warmup, settings.lr_end)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * factor

    def _learning(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.requires_grad]

    def _average_gradients(self) -> None:
        """Make every process's gradient the gradient of the global batch's mean loss."""
        if distributed.world_size() == 1:
            return
        for parameter in self._learning():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce_mean(parameter.grad)

    def _loss(self, x: Tensor, step: Step) -> Loss:
        bf16 = self.settings.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            loss = self.autoencoder.loss(x, step, self.generator)
        if not isinstance(loss, Loss):
            raise RequestError(
                f"the loss of {type(self.autoencoder).__name__} is a {type_name(loss)}: return a "
                'saetool.autoencoders.Loss({"reconstruction": …}) of named parts'
            )
        if not any(part.requires_grad for part in loss.parts.values()):
            raise RequestError(f"the loss of {type(self.autoencoder).__name__} depends on no parameter that learns")
        return loss

    def _now(self) -> Step:
        """Return the step to take; its optimizer where it can take recipes and nobody else needs the gradients."""
        settings, optimizer = self.settings, self.optimizer
        alone = distributed.world_size() == 1 and settings.clip_norm is None and settings.accumulate == 1
        taker: Any = optimizer if alone and hasattr(optimizer, "deferred") else None
        return Step(self.done, self.training, self.phase.name, taker)


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], rest: dict) -> None:
    """Load moments and hyperparameters as `Learner.state` recorded them."""
    state: dict[int, dict] = {int(index): dict(numbers) for index, numbers in rest["numbers"].items()}
    for key, tensor in tensors.items():
        if key.startswith("optimizer/"):
            _, index, name = key.split("/", 2)
            state.setdefault(int(index), {})[name] = tensor.clone()  # `tensor` is a mapped file
    groups = [
        {key: tuple(value) if isinstance(mine.get(key), tuple) else value for key, value in saved.items()}
        for mine, saved in zip(optimizer.param_groups, rest["groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            # Fused kernels walk memory: a moment must lie in memory as its parameter does.
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                entries[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
