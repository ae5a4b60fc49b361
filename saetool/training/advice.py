"""`autoencoder: auto` and `training: auto`: settings that follow from the rows at hand and the time one has.

docs/settings.md has the measurements behind every constant; scripts/study_settings.py makes them again.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Discriminator, Field, PositiveFloat, Tag, model_validator

from saetool import distributed
from saetool.autoencoders.families import AutoencoderSettings
from saetool.autoencoders.sparse_settings import AuxK, SparseSettings, TopKActivation
from saetool.settings import Settings
from saetool.training.settings import TrainingSettings

K, K_OF_WIDTH = 32, 8
"""Active latents a token, and no more than one for so many dimensions."""
EXPANSIONS = (32, 16, 8, 4, 2)
FIRINGS = 4000
"""Times that a latent must fire in training, on average: with a quarter of it a tenth to a quarter never fire again."""
DISTINCT = 60
"""Rows on which a latent must fire in one pass, on average: with less, those of few rows are learned by heart."""
PASSES, LEAST_TOKENS = 6, 300_000
"""Most times that training sees a row, unless so few tokens, seconds of work, make more of them."""
STEPS = 1500
"""Least steps, as far as the batch can be cut for them."""
BATCHES = {"cpu": (64, 2048), "cuda": (512, 16_384)}
"""Smallest and largest batch."""
LR, LR_BATCH, MOST_LR = 5e-3, 2048, 4e-3
"""The learning rate at this batch, falling linearly to 0; it follows the batch's root, up to what was tried."""
USUAL_MINUTES = 10.0
RATE = {"cpu": 1e8, "cuda": 2e10}
"""Latents times rows a second, of a slow machine: two cores without AMX, a GPU some years old. How many there are makes
no difference: a run that moves to another machine asks for the same."""


class AutoAutoencoder(Settings):
    """An autoencoder as wide as the rows at hand can teach."""

    kind: Literal["auto"] = "auto"


class AutoTraining(Settings):
    """A training as long as the time at hand; its other settings follow."""

    minutes: PositiveFloat = USUAL_MINUTES
    """At most about so long, on a slow machine."""
    held_out: float = Field(default=0.1, ge=0, lt=1)
    layer: int | str | None = None
    seed: int | None = None
    tensorboard: bool = False
    wandb: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _leaves_the_rest(cls, given: Any) -> Any:
        decided = set(TrainingSettings.model_fields) - set(cls.model_fields)
        own = sorted(decided & set(given)) if isinstance(given, dict) else []
        if own:
            raise ValueError(
                f"minutes decides about {' and '.join(own)} too: leave them out, or give tokens instead of minutes"
            )
        return given


def written_out(section: str, given: Any) -> Any:
    """Return the keys that `auto` stands for in a section, so that others can be given beside them; else `given`."""
    if not isinstance(given, str) or given != "auto":
        return given
    return {"kind": "auto"} if section == "autoencoder" else {"minutes": USUAL_MINUTES}


def _which(given: Any) -> str:
    auto = isinstance(given, AutoTraining) or (isinstance(given, dict) and "minutes" in given)
    return AutoTraining.__name__ if auto else TrainingSettings.__name__


TrainingOrAuto = Annotated[
    Annotated[TrainingSettings, Tag("TrainingSettings")] | Annotated[AutoTraining, Tag("AutoTraining")],
    Discriminator(_which),
]


@dataclass(frozen=True)
class Advice:
    """Settings, and in one sentence where they come from."""

    autoencoder: Any
    training: TrainingSettings
    because: str


def advise(
    autoencoder: "AutoencoderSettings | AutoAutoencoder",
    training: TrainingSettings | AutoTraining,
    rows: int,
    d_in: int,
    device: torch.device | None = None,
) -> Advice:
    """Return the settings in place of those that are `auto`, for `rows` rows of width `d_in` to train on.

    The same rows, minutes and kind of device give the same settings.
    """
    device = device or distributed.default_device()
    if isinstance(autoencoder, AutoAutoencoder):
        k = max(1, min(K, d_in // K_OF_WIDTH))
        lengths = {expansion: _tokens(training, rows, d_in * expansion, device) for expansion in EXPANSIONS}
        taught = [x for x in EXPANSIONS if k * min(lengths[x] / FIRINGS, rows / DISTINCT) >= d_in * x]
        expansion = taught[0] if taught else EXPANSIONS[-1]
        autoencoder = SparseSettings(
            kind="sparse", expansion=expansion, activation=TopKActivation(kind="topk", k=k), dead=AuxK(kind="auxk")
        )
    latents = autoencoder.width(d_in)
    if isinstance(training, AutoTraining):
        training = _training(training, _tokens(training, rows, latents, device), device)
    because = (
        f"auto: {rows:,} rows to train on of width {d_in:,} → {latents:,} latents, {training.tokens:,} tokens in "
        f"{training.steps:,} steps of {training.batch_size:,}, lr {training.lr:.2g}"
    )
    return Advice(autoencoder, training, because)


def _tokens(training: TrainingSettings | AutoTraining, rows: int, latents: int, device: torch.device) -> int:
    """Return the given number of rows to train on, or as many as help and as there is time for."""
    if isinstance(training, TrainingSettings):
        return training.tokens
    latents_and_rows = training.minutes * 60 * RATE.get(device.type, RATE["cpu"])
    return max(1, int(min(max(PASSES * rows, LEAST_TOKENS), latents_and_rows / latents)))


def _training(auto: AutoTraining, tokens: int, device: torch.device) -> TrainingSettings:
    least, most = BATCHES.get(device.type, BATCHES["cpu"])
    batch = min(most, max(least, 1 << max(tokens // STEPS, 1).bit_length() - 1))
    tokens = -(-tokens // batch) * batch
    lr = float(f"{min(LR * math.sqrt(batch / LR_BATCH), MOST_LR):.2g}")
    given = auto.model_dump(exclude={"minutes"})
    return TrainingSettings(tokens=tokens, batch_size=batch, lr=lr, schedule="linear", **given)
