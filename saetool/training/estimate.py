"""What training will need, for a dry run: measured on a few steps, not guessed."""

import time
from typing import Any

import torch

from saetool import distributed
from saetool.autoencoders.base import Stream
from saetool.training.learner import Learner
from saetool.training.plan import Plan

BYTES_A_PARAMETER = 16
"""Weight, gradient and two moments, each in fp32."""
TIMED_STEPS = 3
FIRST_STEPS = {"cuda": 12}
"""Steps before the timed ones, by kind of device, else one: a GPU's kernels are compiled and its steps recorded."""


def estimate(plan: Plan) -> dict[str, Any]:
    """Return tokens, steps, parameters, bytes on disk (in the end and at most), bytes of memory, and seconds.

    Takes a few steps on real rows and throws them away; evaluations and checkpoints are not in the time. On a GPU its
    memory is stated too: the most that these steps took.
    """
    device = plan.device or distributed.default_device()
    settings, stream = plan.settings, plan.source.open(plan.settings, plan.seed, device)
    autoencoder = plan.model(stream.d_in)
    parameters = sum(parameter.numel() for parameter in autoencoder.parameters())
    saved = sum(tensor.numel() * tensor.element_size() for tensor in autoencoder.state_dict().values())
    row_bytes = 4 * autoencoder.d_in
    learner = Learner(autoencoder, settings, plan.model_seed, device)
    seconds = _seconds_a_step(learner, stream) * settings.steps
    return {
        "tokens": settings.steps * settings.batch_size,
        "steps": settings.steps,
        "parameters": parameters,
        "bytes_on_disk": saved,
        # Two checkpoints, each of weights and two moments, stand side by side for a moment.
        "bytes_on_disk_while_training": 2 * 3 * saved,
        "bytes_of_memory": BYTES_A_PARAMETER * parameters + row_bytes * (settings.pool_rows + settings.batch_size),
        **({"bytes_of_gpu_memory": torch.cuda.max_memory_reserved(device)} if device.type == "cuda" else {}),
        "seconds": seconds,
    }


def _seconds_a_step(learner: Learner, stream: Stream) -> float:
    """Return the mean time of a step after the first ones, or 0 where a closed form takes none."""
    learner.initialize(stream)
    if learner.fit(stream):
        return 0.0
    first = FIRST_STEPS.get(learner.device.type, 1)
    if first > 1:
        learner.done = learner.settings.steps // 2  # most steps are like those of the middle, where nothing warms up
    learner.enter_phase()
    start, done = 0.0, 0
    for i, batch in zip(range(TIMED_STEPS + first), stream.batches(), strict=False):
        learner.step(batch)
        if i + 1 == first:
            _wait(learner.device)
            start = time.monotonic()
        done = i + 1 - first
    _wait(learner.device)
    return (time.monotonic() - start) / max(done, 1)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
