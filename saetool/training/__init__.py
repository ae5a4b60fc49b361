"""Training: one trainer for every family, schedules, checkpoints, sweeps, the metric log."""

from saetool.training.heldout import DENSE_ABOVE, Accumulator, Measures, evaluate, reconstruct
from saetool.training.settings import TrainingSettings
from saetool.training.stage import train, train_together, training_stage

__all__ = [
    "DENSE_ABOVE",
    "Accumulator",
    "Measures",
    "TrainingSettings",
    "evaluate",
    "reconstruct",
    "train",
    "train_together",
    "training_stage",
]
