"""Training: the trainer, schedules, checkpoints, sweeps, the metric log."""

from saetool.training.settings import TrainingSettings

__all__ = ["TrainingSettings"]
