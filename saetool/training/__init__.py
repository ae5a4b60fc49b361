"""Training: one trainer for every family, schedules, checkpoints, sweeps, the metric log."""

from typing import TYPE_CHECKING

from saetool.lazy import face

if TYPE_CHECKING:
    from saetool.training.heldout import (
        DENSE_ABOVE as DENSE_ABOVE,
        Accumulator as Accumulator,
        Measures as Measures,
        evaluate as evaluate,
        reconstruct as reconstruct,
    )
    from saetool.training.settings import TrainingSettings as TrainingSettings
    from saetool.training.stage import (
        train as train,
        train_together as train_together,
        training_stage as training_stage,
    )

__all__, __getattr__, __dir__ = face(
    __name__,
    {
        "heldout": ("Accumulator", "DENSE_ABOVE", "Measures", "evaluate", "reconstruct"),
        "settings": ("TrainingSettings",),
        "stage": ("train", "train_together", "training_stage"),
    },
)
