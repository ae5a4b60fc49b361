"""Learning-rate schedules: pure functions of the step, so that nothing about them needs saving."""

import math
from typing import Literal

from saetool.autoencoders.base import Phase


def lr_factor(
    step: int, steps: int, schedule: Literal["constant", "linear", "cosine"], warmup: int = 0, end: float = 0.0
) -> float:
    """Return the share of the full learning rate at `step` of 0 … `steps` − 1.

    Rises linearly over the first `warmup` steps (the first has 1/warmup), then stays, or falls to `end`, which the
    last step has. Linear: Goyal et al. 2017 (warm-up); cosine: Loshchilov & Hutter 2017, without restarts.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(steps - 1 - warmup, 1)
    falling = 1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return end + (1 - end) * falling


def phase_borders(phases: list[Phase], steps: int) -> list[int]:
    """Return the step at which each phase ends; the last one ends at `steps`."""
    total = math.fsum(phase.share for phase in phases)
    borders, done = [], 0.0
    for phase in phases:
        done += phase.share / total
        borders.append(round(done * steps))
    borders[-1] = steps
    return borders
