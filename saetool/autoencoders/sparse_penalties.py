"""What an active latent costs: L1 (Bricken et al. 2023), L0 for JumpReLU, KL (Ng 2011), and steering towards an L0."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saetool import distributed
from saetool.autoencoders.base import Step, Training
from saetool.autoencoders.sparse_settings import KlPenalty, NoPenalty, Penalty

SMOOTHING = 1e-6
"""q becomes (1 − 2s) q + s: inside (0, 1) with a gradient everywhere, where a clamp would have none."""

START_WEIGHT = {"l1": 0.1, "l0": 1 / 384}
"""Where a steered weight starts: with L1 on ViT activations it meets an L0 of 50 in a hundred steps, and is half of
that after six hundred, as the dictionary becomes better."""

WARMUP_STEPS, WARMUP_SHARE = 500, 0.1
"""The weight rises over so many steps, or over this share of a short training."""

GAIN = 0.02
"""A steered weight changes by L0 / target to this power a step: it can follow a factor of 2 in about 50 steps."""

TREND = 0.1
"""And by L0 / its running mean to this power: where L0 already falls fast, the weight gives way before it is too low
(the mean follows at a tenth a step, so that this adds up to the weight being proportional to L0)."""

LIMITS = (1e-6, 1e4)
"""A steered weight stays within these, whatever the target."""


def kl_bernoulli(rho: float, q: Float[Tensor, "n_latents"]) -> Float[Tensor, "n_latents"]:
    """Return KL(ρ‖q) = ρ ln(ρ/q) + (1−ρ) ln((1−ρ)/(1−q)), in nats."""
    return rho * (math.log(rho) - q.log()) + (1 - rho) * (math.log1p(-rho) - torch.log1p(-q))


def kl_penalty(rho: float, q: Float[Tensor, "n_latents"]) -> Float[Tensor, ""]:
    """Return Σ_j KL(ρ‖q_j) for q_j the mean of latent j over the batches of all processes.

    Every process passes its own mean; the value is that of the common mean, the gradient that of the own part, so
    that averaging gradients over processes gives the gradient of the common value.
    """
    with torch.autocast(q.device.type, enabled=False):
        q = q if q.dtype == torch.float64 else q.float()
        common = distributed.all_reduce_mean(q.detach().clone())
        q = q + (common - q.detach())
        return kl_bernoulli(rho, (1 - 2 * SMOOTHING) * q + SMOOTHING).sum()


class PenaltyWeight(nn.Module):
    """The penalty's weight: given, or steered so that the number of active latents meets a target."""

    weight: Tensor

    def __init__(self, penalty: Penalty):
        super().__init__()
        self.target = None if isinstance(penalty, KlPenalty | NoPenalty) else penalty.target_l0
        self.given_steps = 0 if isinstance(penalty, NoPenalty) else penalty.warmup_steps
        given = 0.0 if isinstance(penalty, NoPenalty) else penalty.weight
        self.register_buffer("weight", torch.tensor(START_WEIGHT[penalty.kind] if given is None else given))

    def warmup_steps(self, training: Training) -> int:
        """Return for how many steps of a training the weight rises."""
        if self.given_steps is not None:
            return self.given_steps
        return min(WARMUP_STEPS, round(WARMUP_SHARE * training.steps)) if training.steps else WARMUP_STEPS

    def risen(self, step: Step) -> bool:
        """Say whether the warm-up is over at a step."""
        return step.number + 1 >= self.warmup_steps(step.training)

    def at(self, step: Step) -> Tensor:
        """Return the weight at a step, warm-up included."""
        if self.risen(step):
            return self.weight.clone()
        return self.weight * ((step.number + 1) / self.warmup_steps(step.training))

    @torch.no_grad()
    def after_update(self, step: Step, l0: Tensor, mean_l0: Tensor) -> None:
        """Steer by the last batch's L0 (of all processes) and its running mean before that."""
        if self.target is None or not self.risen(step):
            return
        error = (l0.clamp_min(self.target / 10) / self.target).clamp_max(10.0)
        trend = (l0 / mean_l0.clamp_min(1e-6)).clamp(0.1, 10.0)
        self.weight.mul_((error**GAIN * trend**TREND).to(self.weight)).clamp_(*LIMITS)
