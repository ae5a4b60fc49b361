"""Training: one trainer for every family, schedules, checkpoints, sweeps, the metric log.

The names load on first use, so that settings can be read without importing torch.
"""

from typing import TYPE_CHECKING

from saetool.lazy import lazy_names

if TYPE_CHECKING:
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

__getattr__ = lazy_names(
    __name__,
    {
        "DENSE_ABOVE": "heldout",
        "Accumulator": "heldout",
        "Measures": "heldout",
        "TrainingSettings": "settings",
        "evaluate": "heldout",
        "reconstruct": "heldout",
        "train": "stage",
        "train_together": "stage",
        "training_stage": "stage",
    },
)
