"""How an autoencoder is trained: the `training:` section of a config."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from saetool.settings import Settings

Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainingSettings(Settings):
    """One training run. `tokens` counts training rows; an epoch is however many the store holds.

    The batch is `batch_size` rows over all processes and accumulation steps together, so that the numbers of a run
    do not depend on how many devices share it.
    """

    tokens: int = Field(gt=0)
    """Rows to train on, rounded up to whole batches."""
    lr: float = Field(default=1e-3, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the learning rate after the warm-up, over what is left of the phase."""
    lr_end: float = Field(default=0.0, ge=0, le=1)
    """Where linear and cosine end, as a share of `lr`."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly to `lr`, in every phase."""
    seed: int | None = None
    """Seed of weights and noise; null: the run's seed. Sweep this one for several seeds on one stream."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the whole gradient, of W_enc, b_enc and W_dec with `initial_gain` too; null does not clip."""
    batch_size: int = Field(default=2048, gt=0)
    accumulate: int = Field(default=1, gt=0)
    """Pieces that a batch is cut into to save memory; their gradients are averaged before the one update. What a
    formula takes over the batch (KL's q, BatchTopK's cut) is then taken over a piece."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs `loss` under autocast. Weights, moments and evaluation stay fp32. Of sparse models it changes the dense
    step alone (sigmoid, or many active latents); what their sparse step does stands at `codes`."""
    pool_rows: int = Field(default=262_144, gt=0)
    """Rows mixed at a time by the loader."""
    layer: int | str | None = None
    """Which site of the store, where several were cached: a layer counted from 1, or a module path."""
    held_out: float = Field(default=0.1, ge=0, lt=1)
    """Share of the images kept out of training."""
    log_every: int = Field(default=50, gt=0)
    """Steps between two lines of metrics.jsonl; also how often loss is checked and a checkpoint can be written."""
    evaluate_every: int | None = Field(default=None, gt=0)
    """Steps between two held-out evaluations; null: four times, evenly. The last one is always made."""
    evaluate_rows: int | None = Field(default=32_768, gt=0)
    """Held-out rows, evenly over the images, used by evaluations along the way; null: all. The last one uses all."""
    checkpoint_minutes: float = Field(default=2.0, ge=0)
    """Least time between two checkpoints; 0 writes one at every log step."""
    tensorboard: bool = False
    wandb: str | None = None
    """A Weights & Biases project to log to."""

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingSettings":
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate={self.accumulate} does not divide batch_size={self.batch_size}: "
                "choose a batch_size that is a multiple of it"
            )
        if self.steps > 0 and self.warmup_steps >= max(self.steps, 2):
            raise ValueError(
                f"warmup_steps={self.warmup_steps} leaves nothing of the {self.steps} steps that "
                f"tokens={self.tokens} at batch_size={self.batch_size} make: lower it or raise tokens"
            )
        return self

    @property
    def steps(self) -> int:
        """Updates in the whole run."""
        return math.ceil(self.tokens / self.batch_size)

    def content(self) -> dict:
        """Return the settings that determine the weights, as JSON types: the others may differ when a run resumes."""
        return self.model_dump(mode="json", exclude={"checkpoint_minutes", "tensorboard", "wandb"})
