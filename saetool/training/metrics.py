"""metrics.jsonl: one line a measurement, and the same numbers to TensorBoard or Weights & Biases when asked.

Training lines (`"split": "train"`), every `log_every` steps:

    step, tokens   updates and rows so far            phase    name of the phase
    lr             of the last step                   rate     rows a second since the last line, evaluations and
    loss           mean since the last line                    checkpoints left out; a sweep's members share it
    parts          {name: mean since the last line}: weighted, they add up to loss
    metrics        {name: mean since the last line}: what the model itself reports
    grad_norm      mean norm of the gradient before clipping, only with clip_norm
    fvu, l0        on the first rows of the latest batch, in evaluation mode

Held-out lines (`"split": "held_out"`): step, tokens, phase, rows, fvu, mse, l0, l1, dead_share, dense_share as in
`heldout.Measures`. The last line has `"final": true` and covers the whole split; without held-out rows it covers all
training rows and its split is "train"; a family's own numbers stand in it too (variational: elbo in nats a row at
β = 1, as a density of raw activations, and active_units). A number that is not finite is null.
"""

import math
from typing import Any

import torch
from torch import Tensor

from saetool import distributed
from saetool.artifacts import Partial
from saetool.training.trackers import Tracker

METRICS = "metrics.jsonl"


class Window:
    """The scalars of the steps since the last log line, kept on the device until they are asked for."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}

    def add(self, scalars: dict[str, Tensor]) -> None:
        """Note scalars by name."""
        for name, value in scalars.items():
            self._values.setdefault(name, []).append(value)

    def flush(self, pieces: int) -> tuple[dict[str, float], list[float]]:
        """Return the mean of each scalar and the values of "loss" one by one, and start anew.

        Each step added `pieces` losses; a part that was absent from some counts as 0 there. Averages over processes.
        The one place where training waits for the device.
        """
        losses = len(self._values["loss"]) * pieces
        device = self._values["loss"][0].device
        wide = torch.float32 if device.type == "mps" else torch.float64
        columns = {name: torch.stack([v.to(device, wide) for v in values]) for name, values in self._values.items()}
        self._values.clear()
        means = [
            column.sum() / losses if name.startswith("parts/") else column.mean() for name, column in columns.items()
        ]
        packed = distributed.all_reduce_mean(torch.cat([torch.stack(means), columns["loss"]])).tolist()
        return dict(zip(columns, packed, strict=False)), packed[len(columns) :]


class MetricLog:
    """Writes the lines of one model, from the main process only."""

    def __init__(self, partial: Partial, trackers: list[Tracker]):
        self.partial = partial
        self.trackers = trackers

    def write(self, line: dict[str, Any]) -> None:
        """Append a line and pass its numbers on."""
        if not distributed.is_main():
            return
        self.partial.append_log(METRICS, _finite(line))
        numbers = {name: value for name, value in flatten(line).items() if name != "step"}
        for tracker in self.trackers:
            tracker.log(numbers, line["step"])

    def size(self) -> int:
        """Return the log's length in bytes, made durable."""
        return self.partial.log_size(METRICS)

    def cut(self, size: int) -> None:
        """Drop the lines written after a checkpoint."""
        if distributed.is_main():
            self.partial.cut_log(METRICS, size)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()


def flatten(line: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a line under names like `train/parts/reconstruction`."""
    numbers: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, dict):
            numbers |= {f"{line['split']}/{name}/{inner}": v for inner, v in value.items()}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[f"{line['split']}/{name}" if name != "step" else name] = value
    return numbers


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
