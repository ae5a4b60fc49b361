"""What every autoencoder shares: the protocol, the loss record, the data stream it learns from, normalization.

Conventions, everywhere: raw activations in, normalization inside the model; reconstruction error is summed over
d_in and averaged over the batch.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import torch
from jaxtyping import Float, Int
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from saetool.activations.sites import name_site
from saetool.errors import RequestError
from saetool.settings import Settings
from saetool.sparse.codes import Codes
from saetool.sparse.gradients import DeferredGradient
from saetool.statistics import Statistics

Normalize = Literal["center_scale", "scale", "none"]
ROW_EPS = 1e-5
"""What layer norm adds to a row's deviation before dividing by it, as those do whose autoencoders are read here."""


class FamilySettings(Settings):
    """What the settings of every family hold: its name as `kind`, and exactly one of `n_latents` and `expansion`."""

    if TYPE_CHECKING:
        kind: Any
    n_latents: PositiveInt | None = None
    expansion: PositiveFloat | None = None
    """n_latents / d_in."""

    @model_validator(mode="after")
    def _one_width(self) -> Self:
        if (self.n_latents is None) == (self.expansion is None):
            raise ValueError("give exactly one of n_latents and expansion")
        return self

    def width(self, d_in: int) -> int:
        """Return the number of latents for inputs of width `d_in`, at least 1."""
        return self.n_latents if self.n_latents is not None else max(1, round(float(self.expansion or 1) * d_in))


class Stream(Protocol):
    """Where a model's data comes from: shuffled training batches, one ordered pass, held-out rows, statistics.

    Rows are raw activations in their stored dtype; everything but `held_out` sees training images only.
    """

    d_in: int
    batch_size: int
    n_rows: int
    """Training rows in one epoch."""

    def statistics(self) -> Statistics:
        """Return the moments of the training rows."""
        ...

    def sample(self, rows: int) -> Float[Tensor, "rows d_in"]:
        """Return up to `rows` training rows in float32, the same ones for the same seed; batches are unaffected."""
        ...

    def batches(self) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Yield shuffled training batches without end, from the current position; every batch is full."""
        ...

    def ordered(self) -> Iterator[Float[Tensor, "rows d_in"]]:
        """Yield every training row once, in order, in blocks (for closed forms)."""
        ...

    def held_out(self, rows: int | None = None) -> Iterator[Float[Tensor, "rows d_in"]]:
        """Yield every held-out row once, in order, in blocks of at most `batch_size`.

        With `rows`, at most so many of them, spread evenly over the held-out images; always the same ones.
        """
        ...

    def position(self) -> dict:
        """Return a JSON-able record of where `batches` stands."""
        ...

    def seek(self, position: dict) -> None:
        """Continue `batches` exactly where `position` was recorded."""
        ...


@dataclass
class Loss:
    """The named, already weighted parts of a loss (scalars with gradient), and numbers worth logging (detached)."""

    parts: dict[str, Tensor]
    metrics: dict[str, Tensor] = field(default_factory=dict)
    kept: Any = None
    """What the family's own `after_update` needs of this batch."""

    def __post_init__(self) -> None:
        """Raise RequestError unless there are parts, and each of them, and each metric, is a tensor of one number."""
        named = [*self.parts.items(), *self.metrics.items()]
        wrong = [name for name, value in named if not isinstance(value, Tensor) or value.dim() > 0]
        if wrong or not self.parts:
            what = f"{wrong[0]!r} is none" if wrong else "there is none"
            raise RequestError(f"a Loss has named parts and metrics, each a tensor of one number without axes: {what}")

    @property
    def total(self) -> Tensor:
        """The sum of the parts."""
        return torch.stack([part.float() if part.dtype.itemsize < 4 else part for part in self.parts.values()]).sum()

    def scalars(self) -> dict[str, Tensor]:
        """Return parts and metrics under names like `parts/reconstruction`, without gradient."""
        groups = (("parts", self.parts), ("metrics", self.metrics))
        return {f"{group}/{name}": value.detach() for group, values in groups for name, value in values.items()}


@dataclass(frozen=True)
class Training:
    """How long a training is, where its caller knows: steps and rows of all of it; 0 is unknown."""

    steps: int = 0
    tokens: int = 0


UNKNOWN = Training()


class Deferring(Protocol):
    """An optimizer that takes the gradients of some weights as recipes and builds them where it uses them."""

    def deferred(self, parameter: nn.Parameter) -> DeferredGradient:
        """Return where a recipe of this parameter's gradient is put."""
        ...


@dataclass(frozen=True)
class Step:
    """A step of training as whoever takes it knows it: its number (from 0), the length of the whole, its phase."""

    number: int
    training: Training = UNKNOWN
    phase: str = "train"
    optimizer: Deferring | None = None
    """Who takes the gradients of some weights as recipes; None: they are made as usual."""


@dataclass(frozen=True)
class Phase:
    """A stretch of training: its name, its share of the steps beside the other shares, a fresh optimizer."""

    name: str
    share: float = 1.0


class Normalizer(nn.Module):
    """x' = (x − mean) · factor, undone on the way out; mean and factor come from training rows and are saved.

    center_scale: factor = √(d_in / E‖x − mean‖²); scale: mean 0, factor = √(d_in / E‖x‖²); none: the identity.
    layer_norm takes both from each row itself, so that going back needs the row: see `row_units`.
    """

    mean: Tensor
    factor: Tensor

    def __init__(self, d_in: int, kind: Normalize | Literal["layer_norm"]):
        super().__init__()
        self.kind = kind
        self.register_buffer("mean", torch.zeros(d_in))
        self.register_buffer("factor", torch.ones(()))

    def fit(self, statistics: Statistics) -> None:
        """Take mean and factor from the training rows' moments."""
        if self.kind in ("none", "layer_norm"):
            return
        square = statistics.variance.double().sum()
        if self.kind == "center_scale":
            self.mean.copy_(statistics.mean)
        else:
            square = square + statistics.mean.double().square().sum()
        if float(square) > 0:
            factor = math.sqrt(self.mean.numel() / float(square))
            if factor > torch.finfo(self.factor.dtype).max:
                raise RequestError(
                    f"The training rows differ by {math.sqrt(float(square)):.1e} only, too little for float32: "
                    f"autoencoder.normalize {self.kind} cannot bring them to unit size. Multiply the rows first."
                )
            self.factor.fill_(factor)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Map raw activations into the model's units."""
        if self.kind == "layer_norm":
            mean, deviation = self.row_units(x)
            return (x - mean) / (deviation + ROW_EPS)
        return x if self.kind == "none" else (x - self.mean).mul_(self.factor)

    def inverse(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Map the model's units back to raw activations; of layer norm, whose rows only `row_units` knows, not."""
        return x if self.kind in ("none", "layer_norm") else x / self.factor + self.mean

    @staticmethod
    def row_units(x: Float[Tensor, "*batch d_in"]) -> tuple[Float[Tensor, "*batch 1"], Float[Tensor, "*batch 1"]]:
        """Return the mean and the deviation of each row."""
        return x.mean(-1, keepdim=True), x.std(-1, keepdim=True)


def of_width(given: Any, width: int, what: str) -> Tensor:
    """Return what is given; RequestError unless it is a tensor [..., width]."""
    if not isinstance(given, Tensor) or given.dim() == 0 or given.shape[-1] != width:
        found = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise RequestError(f"{what} must be a tensor [..., {width}], got {found}")
    return given


def finite_rows(x: Any, width: int) -> Tensor:
    """Return activations [..., width] as rows; RequestError where one is not finite: it has no code, and no latent
    exceeds its threshold there, which would look like silence."""
    rows = of_width(x, width, "activations").reshape(-1, width)
    if not rows.isfinite().all():
        wrong = int((~rows.isfinite()).any(1).sum())
        raise RequestError(f"activations are not finite in {wrong:,} of {len(rows):,} rows: they have no codes")
    return rows


class Autoencoder(nn.Module):
    """A map from raw activations [batch, d_in] to latents [batch, n_latents] and back.

    `encode`, `decode` and the call itself take any axes before the last, [..., d_in]; `encode_sparse` takes their rows.
    Subclasses set `d_in` and `n_latents`, and answer `encode`, `decode` and `loss`; the rest has a default that
    does nothing. All state that training needs to resume lives in parameters and buffers.
    """

    d_in: int
    n_latents: int
    site: dict[str, Any] | None = None
    """Where the activations come from that it was trained on, as a store describes it; None: from anywhere."""
    active_above: float = 0.0
    """A latent counts as active (L0, dead, frequency) when its value exceeds this."""
    adds_input: bool = False
    """Whether the reconstruction is x + decode(encode(x)): the code of a residual model holds a correction."""

    def __repr__(self) -> str:
        settings = getattr(self, "settings", None)
        hidden = [f"{width:,}" for width in getattr(settings, "hidden", None) or ()]
        activation = getattr(settings, "activation", None)
        k = getattr(activation, "k", None)
        facts = [getattr(activation, "kind", activation), k and f"k = {k}"]
        facts += [getattr(settings, "normalize", None), name_site(self.site) if self.site else None]
        widths = " → ".join([f"{self.d_in:,}", *hidden, f"{self.n_latents:,} latents"])
        return f"{type(self).__name__}({', '.join([widths, *(str(fact) for fact in facts if fact)])})"

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        """Return the latents of raw activations; deterministic, never corrupts its input, independent of the batch.

        `train()` and `eval()` make no difference to it, and nothing here calls them.
        """
        raise NotImplementedError

    def decode(self, z: Float[Tensor, "*batch n_latents"]) -> Float[Tensor, "*batch d_in"]:
        """Return the reconstruction in raw units, where codes alone tell it; else what `complete` makes it from."""
        raise NotImplementedError

    def complete(
        self, decoded: Float[Tensor, "*batch d_in"], x: Float[Tensor, "*batch d_in"]
    ) -> Float[Tensor, "*batch d_in"]:
        """Return the reconstruction in raw units of x from what `decode` gave for its code."""
        return x + decoded if self.adds_input else decoded

    def loss(self, x: Float[Tensor, "batch d_in"], step: Step, generator: torch.Generator) -> Loss:
        """Return the training loss of a batch of raw activations; all randomness comes from `generator`.

        It changes nothing of the model: what `after_update` needs of the batch goes along in `Loss.kept`.
        """
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Return the reconstruction of raw activations, in raw units."""
        return self.complete(self.decode(self.encode(x)), x)

    def encode_sparse(self, x: Float[Tensor, "*batch d_in"]) -> Codes:
        """Return the active latents of raw activations; families with exact zeros override it and stay sparse."""
        return Codes.from_dense(self.encode(x.reshape(-1, x.shape[-1])), self.active_above)

    def encode_some(self, x: Float[Tensor, "rows d_in"], latents: Int[Tensor, "some"]) -> Codes:
        """Return the codes of some latents, ascending, numbered as they stand there.

        Families whose latents do not depend on each other override it and compute no others; last bits may differ.
        """
        return self.encode_sparse(x).only(latents)

    def decode_sparse(self, codes: Codes) -> Float[Tensor, "batch d_in"]:
        """Return the reconstruction of sparse codes, in raw units."""
        return self.decode(codes.dense())

    def initialize(self, stream: Stream, generator: torch.Generator, training: Training = UNKNOWN) -> None:
        """Set what comes from data before the first step: normalization, biases, decoder."""

    def step_context(self) -> AbstractContextManager[None]:
        """Return what a whole training step, from loss to update, runs in."""
        return nullcontext()

    def before_update(self) -> None:
        """Project gradients, after they are complete and averaged over processes, before the optimizer's step."""

    def after_update(
        self, optimizer: torch.optim.Optimizer, step: Step, generator: torch.Generator, losses: Sequence[Loss]
    ) -> None:
        """Restore constraints and update running state after the optimizer's step; `losses` are its pieces'."""

    def after_step(self, step: Step) -> None:
        """Decide how later steps are taken, once this one is over: a GPU's recording of it does not hold this."""

    def phases(self) -> list[Phase]:
        """Return the phases of training, in order."""
        return [Phase("train")]

    def enter(self, phase: str) -> None:
        """Choose which parameters learn in a phase. A resumed training comes here and not to `initialize`."""

    def fit(self, stream: Stream) -> bool:
        """Fit in closed form where one exists and say so; the trainer then takes no step."""
        return False

    def make_optimizer(self, lr: float, betas: tuple[float, float], eps: float) -> torch.optim.Optimizer:
        """Return the optimizer of the parameters that learn in this phase."""
        parameters: Iterable[nn.Parameter] = [p for p in self.parameters() if p.requires_grad]
        return torch.optim.Adam(parameters, lr=lr, betas=betas, eps=eps, fused=True)

    def decoder_directions(self) -> Float[Tensor, "n_latents d_in"] | None:
        """Return each latent's decoder direction in raw units, or None where the decoder is not linear."""
        return None

    def encoder_directions(self) -> Float[Tensor, "n_latents d_in"] | None:
        """Return each latent's row of W_enc as it acts on raw activations; None where more than one layer encodes."""
        return None

    def summarize(self, blocks: Iterable[Float[Tensor, "rows d_in"]], seed: int) -> dict[str, float]:
        """Return the family's own numbers over held-out rows, for the last evaluation; most families have none.

        Several processes share the blocks; every one gets the numbers of all, which depend on nobody's count.
        """
        return {}

    def loss_convention(self) -> str:
        """Say in words what `loss` sums and averages; it is written into every checkpoint."""
        return "reconstruction error: squared, summed over d_in, mean over the batch"
