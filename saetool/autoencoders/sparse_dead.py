"""Latents that have not fired for long: counting them, and three ways to bring them back."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saetool import distributed
from saetool.autoencoders.base import Step, Training
from saetool.autoencoders.sparse_activations import Gated
from saetool.autoencoders.sparse_settings import AuxK, Dead, NoRevival, PreActivation, Resample
from saetool.errors import RequestError
from saetool.sparse.backends import Precision, backend_for, count_later, finish, marked
from saetool.sparse.backends.plain import SLICE_ROWS
from saetool.sparse.codes import Support
from saetool.sparse.gradients import DeferredGradient
from saetool.sparse.ops import decode, pre_activations
from saetool.sparse.weight import Weight

if TYPE_CHECKING:
    from saetool.autoencoders.sparse import SparseAutoencoder

WINDOW_TOKENS = 10_000_000
WINDOW_SHARE = 0.2
"""Dead: silent for the last min(10 million, 20 % of all training) tokens (mathematics of §3; Gao et al. 2024)."""


RESAMPLE_SHARE = 0.1
"""Resampling happens every tenth of the training: often enough for short ones, with time to settle in between."""


class DeadLatentTracker(nn.Module):
    """How many training tokens ago each latent last fired, over all processes."""

    silent_tokens: Tensor

    def __init__(self, settings: Dead, n_latents: int):
        super().__init__()
        self.given_tokens: int | None = getattr(settings, "after_tokens", None)
        self._listed = isinstance(settings, AuxK | PreActivation)
        self._count: Callable[[], int] | None = None
        self.register_buffer("silent_tokens", torch.zeros(n_latents, dtype=torch.int64))

    def window(self, training: Training) -> int:
        """Return for how many tokens of a training a dead latent has been silent."""
        if self.given_tokens is not None:
            return self.given_tokens
        return max(1, min(WINDOW_TOKENS, round(WINDOW_SHARE * training.tokens))) if training.tokens else WINDOW_TOKENS

    def dead(self, training: Training) -> Bool[Tensor, "n_latents"]:
        """Mark the latents that were silent for the whole window."""
        return self.silent_tokens >= self.window(training)

    def dead_latents(self, training: Training) -> Int[Tensor, "n_dead"]:
        """Return the dead latents' numbers, ascending."""
        return marked(self.dead(training), self._count)

    def forget_count(self) -> None:
        """Say that `silent_tokens` was changed from outside."""
        self._count = None

    @torch.no_grad()
    def update(self, fired: Bool[Tensor, "n_latents"], rows: int, training: Training) -> None:
        """Count a batch of `rows` rows a process, in which `fired` latents fired."""
        alone = distributed.world_size() == 1
        anywhere = fired if alone else distributed.all_reduce_sum(fired.to(torch.int32)) > 0
        self.silent_tokens.add_(rows * distributed.world_size()).masked_fill_(anywhere, 0)
        if self._listed:
            self._count = count_later(self.dead(training))  # the next step needs it


def auxk_loss(
    settings: AuxK,
    residual: Float[Tensor, "batch d_in"],
    x: Float[Tensor, "batch d_in"],
    center: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Weight,
    dead: Int[Tensor, "n_dead"],
    precision: Precision,
    deferred: tuple[DeferredGradient | None, DeferredGradient | None],
) -> Tensor:
    """Return α ‖e − ê‖², summed over d_in, mean over the batch (Gao et al. 2024).

    e is the detached residual, ê its reconstruction without b_dec from each row's k largest dead pre-activations;
    `x` is the centered input. Encoder, biases and decoder of dead latents get gradient. 0 where none is dead.
    """
    if dead.numel() == 0:
        return residual.new_zeros(())
    k = min(settings.k or min(x.shape[1] // 2, 512), dead.numel())
    some = Weight(W_enc.detach()[dead])
    among, values = finish(backend_for(W_enc).search(x, some, b_enc.detach()[dead], precision, k=max(k, 1)))
    support = Support(among.offsets, dead[among.latents], W_enc.shape[0], among.rows)
    a = pre_activations(values, x, center, W_enc, b_enc, support, deferred[0])
    estimate = decode(a.relu(), W_dec, support, deferred[1])
    return settings.weight * (residual.detach() - estimate).square().sum() / len(x)


def pre_activation_loss(
    settings: PreActivation,
    x: Float[Tensor, "batch d_in"],
    W_enc: Tensor,
    b_enc: Tensor,
    W_dec: Tensor,
    threshold: Float[Tensor, "n_latents"],
    dead: Int[Tensor, "n_dead"],
) -> Tensor:
    """Return weight · √d_in · Σ over dead j of max(θ_j − a_j, 0) ‖W_dec,j‖, mean over the batch (Anthropic, Jan. 2025).

    The loss is piecewise linear in θ, W_enc and b_enc: with c = Σ over rows below θ, it is θ·c − W_enc·(Σ x) − b_enc·c,
    so a slice leaves only those sums behind. `x` is the centered input and gets no gradient, neither does W_dec.
    """
    if dead.numel() == 0:
        return x.new_zeros(())
    weight, offset, theta = (p.index_select(0, dead) for p in (W_enc, b_enc, threshold))
    with torch.no_grad():
        norms = torch.linalg.vector_norm(W_dec[dead], dim=1)
        counts, inputs = torch.zeros_like(offset), torch.zeros_like(weight)
        for part in x.split(SLICE_ROWS):
            below = (torch.addmm(offset, part, weight.T) < theta).to(x.dtype) * norms
            counts += below.sum(0)
            inputs += below.T @ part
    total = (theta * counts - offset * counts).sum() - (weight * inputs).sum()
    return settings.weight * x.shape[1] ** 0.5 * total / len(x)


def resample_every(settings: Resample, training: Training) -> int:
    """Return the steps between two resamplings of a training; 0 (never) where neither it nor they are known."""
    return settings.every_steps or math.ceil(RESAMPLE_SHARE * training.steps)


def require_possible(settings: Dead, training: Training) -> None:
    """Raise RequestError where a training is too short for its cure of dead latents to ever act."""
    total_steps, total_tokens = training.steps, training.tokens
    if isinstance(settings, NoRevival) or not total_steps:
        return
    share = settings.stop_share if isinstance(settings, Resample) else 1.0
    if isinstance(settings, Resample) and (every := resample_every(settings, training)) > share * total_steps:
        ways = "" if settings.every_steps is None else "lower it, leave it out (a tenth of the training), or "
        raise RequestError(
            f"autoencoder.dead.every_steps {every} is never reached: resampling ends with {share:.0%} of {total_steps} "
            f"steps: {ways}raise training.tokens."
        )
    if settings.after_tokens is not None and settings.after_tokens > share * total_tokens:
        raise RequestError(
            f"autoencoder.dead.after_tokens {settings.after_tokens:,} is more than the {share * total_tokens:,.0f} "
            f"tokens in which {settings.kind} could act: no latent would ever count as dead. Lower it or leave it out."
        )


def due(settings: Resample, step: Step, tokens_seen: Tensor) -> bool:
    """Say whether dead latents are to be resampled after this step."""
    every, tokens = resample_every(settings, step.training), step.training.tokens
    if every == 0 or (step.number + 1) % every:
        return False
    return not tokens or int(tokens_seen) <= settings.stop_share * tokens


@torch.no_grad()
def resample_directions(
    errors: Float[Tensor, "batch"],
    x: Float[Tensor, "batch d_in"],
    wanted: int,
    generator: torch.Generator,
) -> Float[Tensor, "drawn d_in"]:
    """Return up to `wanted` unit rows of the centered inputs, drawn with p ∝ error² (Bricken et al. 2023).

    The main process draws from its batch and every process gets the same rows.
    """
    # A training that diverges ends with the trainer's advice: it must get there.
    if generator.device.type == "mps":  # it has no float64
        seed = torch.randint(2**31, (), generator=generator, device=generator.device)
        generator = torch.Generator().manual_seed(int(seed))
    weights = errors.to(generator.device).double().square().nan_to_num(0.0, 0.0, 0.0)
    possible = (weights > 0).sum()
    drawn = torch.zeros(min(wanted, len(x)), x.shape[1], dtype=x.dtype, device=x.device)
    if distributed.is_main() and int(possible):
        rows = torch.multinomial(weights, min(len(drawn), int(possible)), generator=generator).to(x.device)
        drawn[: len(rows)] = nn.functional.normalize(x[rows], dim=1)
    distributed.all_reduce_sum(drawn)
    return drawn[drawn.square().sum(1) > 0]


@torch.no_grad()
def resample(
    model: "SparseAutoencoder",
    settings: Resample,
    dead: Bool[Tensor, "n_latents"],
    errors: Float[Tensor, "batch"],
    x: Float[Tensor, "batch d_in"],
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """Give a sparse model's dead latents the directions of badly reconstructed inputs, a small encoder row, and a fresh
    start; `x` are the last batch's centered inputs and `errors` their squared errors."""
    index = dead.nonzero().squeeze(1)
    if index.numel() == 0:
        return
    drawn = resample_directions(errors, x, index.numel(), generator)
    index = index[: len(drawn)]
    if index.numel() == 0:
        return
    alive = torch.linalg.vector_norm(model.W_enc[~dead], dim=1)
    scale = alive.mean() if alive.numel() else model.W_enc.new_ones(())
    model.W_dec[index] = drawn
    model.W_enc[index] = drawn * (settings.encoder_scale * scale)
    reset = [model.W_enc, model.W_dec, model.b_enc]
    model.b_enc[index] = 0.0
    if isinstance(model.activation, Gated):
        reset += [model.activation.magnitude_bias, model.activation.log_scale]
        model.activation.magnitude_bias[index] = 0.0
        model.activation.log_scale[index] = 0.0
    for parameter in reset:
        for name in ("exp_avg", "exp_avg_sq"):
            if name in optimizer.state.get(parameter, {}):
                optimizer.state[parameter][name][index] = 0.0
    model.silence.silent_tokens[index] = 0
