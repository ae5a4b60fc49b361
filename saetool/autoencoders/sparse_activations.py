"""From pre-activations to latents: one small module a kind, with whatever it learns beside the encoder.

The formulas see pre-activations `a` of any shape and a function `gather` that lays a parameter [n_latents] out beside
them, so that the same lines serve all latents ([batch, n_latents]) and only the active ones ([entries]).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from saetool import distributed
from saetool.autoencoders.sparse_settings import JumpReluActivation
from saetool.sparse.backends import Found, Precision, Search, backend_for, finish, kth_largest
from saetool.sparse.codes import Support
from saetool.sparse.weight import Weight

Gather = Callable[[Tensor], Tensor]
Chosen = tuple[Support, Tensor, Tensor | None]
"""A support, the encoder's outputs on it, and the smallest that was kept where the activation remembers it."""

GUESS, LOWER, TRIES = 0.95, 0.8, 4
"""BatchTopK looks for candidates above a share of its last cut, which moves a percent or two a step; too few, and it
looks again lower, at last at all. (Above .8 of the cut there are four times as many as wanted, measured.)"""

THRESHOLD_DECAY = 0.99
"""BatchTopK's running mean of the smallest kept value looks back over about 100 batches."""


class SparseActivation(nn.Module):
    """ReLU, and what all share: a support that holds every active entry, and the latents' values."""

    dense_only = False
    competes = False
    """Whether a latent's value depends on the row's others."""

    def __init__(self, settings: Any, n_latents: int, d_in: int):
        """`settings` are those of its kind."""
        super().__init__()
        self.k: int = getattr(settings, "k", 0)  # latents a row; 0: their number is not bounded

    def cut(self, b_enc: Tensor) -> Tensor:
        """Return for each latent the pre-activation at or below which its value (and gradient) is zero."""
        return torch.zeros_like(b_enc)

    def select_training(self, W_enc: Weight, x: Tensor, b_enc: Tensor, precision: Precision) -> Chosen:
        """Return the entries of a batch, as training selects them."""
        return self.chosen(finish(self.search(W_enc, x, b_enc, precision)), len(x))

    def search(self, W_enc: Weight, x: Tensor, b_enc: Tensor, precision: Precision) -> Search:
        """Begin to look for a batch's support and the pre-activations on it, as inference does: row by row."""
        return backend_for(W_enc.tensor).search(x, W_enc, b_enc, precision, cut=self.cut(b_enc))

    def search_training(self, W_enc: Weight, x: Tensor, b_enc: Tensor, precision: Precision) -> Search | None:
        """Begin what `select_training` does; None where that cannot be done apart from the rest."""
        return self.search(W_enc, x, b_enc, precision)

    def chosen(self, found: Found, rows: int) -> Chosen:
        """Return what training keeps of what was found in so many rows."""
        return (*found, None)

    def selected(self, a: Tensor, training: bool) -> tuple[Tensor | None, Tensor | None]:
        """Return which of all pre-activations [batch, n_latents] are selected, and the smallest of them where training
        remembers it; None: the values say it."""
        return None, None

    def values(self, a: Tensor, gather: Gather, b_enc: Tensor, training: bool) -> Tensor:
        """Return z from a, as training or inference does."""
        return a.relu()

    def after_update(self, smallest: list[Tensor | None]) -> None:
        """Update running state after a step: `smallest` are the values that its pieces kept."""


class Sigmoid(SparseActivation):
    """z = 1 / (1 + exp(−a)) (Ng 2011)."""

    dense_only = True

    def values(self, a: Tensor, gather: Gather, b_enc: Tensor, training: bool) -> Tensor:
        return a.sigmoid()


class OneMinusExp(SparseActivation):
    """z = 1 − exp(−max(a, 0)): a probability with true zeros."""

    def values(self, a: Tensor, gather: Gather, b_enc: Tensor, training: bool) -> Tensor:
        return -torch.expm1(-a.relu())


class TopK(SparseActivation):
    """The k largest of each row, then max(·, 0) (Gao et al. 2024, 2406.04093)."""

    competes = True

    def search(self, W_enc: Weight, x: Tensor, b_enc: Tensor, precision: Precision) -> Search:
        return backend_for(W_enc.tensor).search(x, W_enc, b_enc, precision, k=self.k)

    def selected(self, a: Tensor, training: bool) -> tuple[Tensor, None]:
        found = a.topk(min(self.k, a.shape[1]), dim=1)
        if training:
            return torch.zeros_like(a, dtype=torch.bool).scatter_(1, found.indices, True), None
        # Of equals the lowest latents, as the search has them.
        least = found.values[:, -1:]
        above, equal = a > least, a == least
        room = self.k - above.sum(1, keepdim=True)
        return above | (equal & (equal.cumsum(1) <= room)), None


class SignedTopK(TopK):
    """The k largest of each row as they are, negative ones too, as saev has them."""

    dense_only = True

    def values(self, a: Tensor, gather: Gather, b_enc: Tensor, training: bool) -> Tensor:
        return a


class BatchTopK(SparseActivation):
    """The k · batch largest of a batch, then max(·, 0) (Bussmann et al. 2024, 2412.06410).

    At inference a threshold decides instead, so that a row's code does not depend on its batch: the running mean of
    the smallest kept value, corrected for its start at 0. With several processes the batch is that of all of them.
    """

    running: Tensor
    updates: Tensor
    guess: Tensor

    def __init__(self, settings: Any, n_latents: int, d_in: int):
        super().__init__(settings, n_latents, d_in)
        self.register_buffer("running", torch.zeros(()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("guess", torch.zeros(()))

    def threshold(self) -> Tensor:
        """Return the inference threshold; 0 before the first update."""
        weight = 1 - THRESHOLD_DECAY ** self.updates.float()
        return torch.where(self.updates > 0, self.running / weight.clamp_min(1e-12), self.running)

    def cut(self, b_enc: Tensor) -> Tensor:
        return self.threshold().to(b_enc).expand_as(b_enc)

    def values(self, a: Tensor, gather: Gather, b_enc: Tensor, training: bool) -> Tensor:
        return a.relu() if training else a.relu() * (a > self.threshold())

    def select_training(self, W_enc: Weight, x: Tensor, b_enc: Tensor, precision: Precision) -> Chosen:
        backend, guess, wanted = backend_for(W_enc.tensor), self.guess.to(b_enc) * GUESS, self.k * len(x)
        for tries in count(1):
            support, a = finish(backend.search(x, W_enc, b_enc, precision, cut=guess.expand_as(b_enc)))
            if self._enough(a, guess, wanted, precision) or float(guess) == 0:
                break
            guess = guess * LOWER if tries < TRIES else torch.zeros_like(guess)
        return self.chosen((support, a), len(x))

    def search_training(self, W_enc: Weight, x: Tensor, b_enc: Tensor, precision: Precision) -> Search | None:
        if precision == "exact":
            return None  # how many exceed the guess is known only when their outputs are
        backend, guess = backend_for(W_enc.tensor), self.guess.to(b_enc) * GUESS
        search = backend.search(x, W_enc, b_enc, precision, cut=guess.expand_as(b_enc))
        return _BatchSearch(search, self.k * len(x))

    def chosen(self, found: Found, rows: int) -> Chosen:
        kept, smallest = self._largest(found[1], self.k * rows)
        return (*backend_for(found[1]).keep(*found, kept), smallest)

    def _enough(self, a: Tensor, guess: Tensor, wanted: int, precision: Precision) -> bool:
        """Say whether every process has enough outputs above the guess: then the batch's largest are all among them.

        What bfloat16 selects is above it; of exact mode's candidates some may not be, and a GPU is asked.
        """
        above = len(a) if precision == "bf16" else int(torch.sum(a > guess))
        if distributed.world_size() == 1:
            return above >= wanted
        enough = torch.tensor(int(above >= wanted), device=a.device)
        return int(distributed.all_reduce_sum(enough)) == distributed.world_size()

    def selected(self, a: Tensor, training: bool) -> tuple[Tensor | None, Tensor | None]:
        if not training:
            return None, None
        kept, smallest = self._largest(a.flatten(), self.k * len(a))
        return kept.view_as(a), smallest

    def _largest(self, a: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
        """Mark the `wanted` · world_size largest positive ones of all processes, and return the smallest of them.

        Equals at the cut all stay.
        """
        positive = a.detach().clamp_min(0)
        lowest = global_kth_largest(positive, wanted * distributed.world_size())
        return (positive >= lowest) & (positive > 0), lowest.clamp_min(0)

    def after_update(self, smallest: list[Tensor | None]) -> None:
        """Take the last batch's smallest kept value into the running mean; of several pieces, their mean."""
        given = [value for value in smallest if value is not None]
        mean = reduce(torch.add, given) / len(given)
        self.running.mul_(THRESHOLD_DECAY).add_((1 - THRESHOLD_DECAY) * mean.to(self.running))
        self.guess.copy_(mean)
        self.updates += 1


@dataclass(frozen=True)
class _BatchSearch:
    """What exceeds the guess, where it is enough for a batch; see `Search`."""

    above: Search
    wanted: int

    @property
    def numbers(self) -> Tensor:
        return self.above.numbers

    def shape(self, numbers: list[int]) -> tuple[int, ...] | None:
        return self.above.shape(numbers) if numbers[0] >= self.wanted else None

    def found(self, numbers: list[int], room: int | None = None) -> Found:
        return self.above.found(numbers, room)


def global_kth_largest(values: Tensor, k: int) -> Tensor:
    """Return the k-th largest of the non-negative `values` of all processes; 0 where there are fewer."""
    if distributed.world_size() == 1:
        if values.numel() < k:
            return values.new_zeros(())
        return kth_largest(values, k)
    # Non-negative floats order like their bits: find the largest bit pattern that at least k values reach.
    wide = values if values.dtype == torch.float64 else values.float()
    word = torch.int64 if wide.dtype == torch.float64 else torch.int32
    bits = wide.view(word).long()
    low = torch.zeros((), dtype=torch.int64, device=values.device)
    for place in range(torch.iinfo(word).bits - 2, -1, -1):
        trial = low + (1 << place)
        count = distributed.all_reduce_sum((bits >= trial).sum())
        low = torch.where(count >= k, trial, low)
    return low.to(word).view(wide.dtype).to(values.dtype)


class JumpRelu(SparseActivation):
    """z = a · H(a − θ), θ learned through a rectangle kernel (Rajamanoharan et al. 2024, 2407.14435)."""

    def __init__(self, settings: JumpReluActivation, n_latents: int, d_in: int):
        super().__init__(settings, n_latents, d_in)
        self.bandwidth = settings.bandwidth * math.sqrt(d_in)
        self.log_threshold = nn.Parameter(torch.full((n_latents,), math.log(settings.threshold * math.sqrt(d_in))))

    def cut(self, b_enc: Tensor) -> Tensor:
        # Within the kernel's window below the threshold the value is 0 but its gradient is not.
        return self.log_threshold.detach().exp() - self.bandwidth / 2

    def values(self, a: Tensor, gather: Gather, b_enc: Tensor, training: bool) -> Tensor:
        return _JumpRelu.apply(a, gather(self.log_threshold.exp()), self.bandwidth)

    def active(self, a: Tensor, gather: Gather) -> Tensor:
        """Return H(a − θ), whose sum is L0, with the kernel's gradient to θ."""
        return _Step.apply(a, gather(self.log_threshold.exp()), self.bandwidth)


def _kernel(a: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Return the rectangle K((a − θ) / ε)."""
    return ((a - threshold).abs() < bandwidth / 2).to(a.dtype)


def _sum_to(grad: Tensor, like: Tensor) -> Tensor:
    return grad.sum(0) if grad.dim() > like.dim() else grad


class _JumpRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, threshold, bandwidth):
        ctx.save_for_backward(a, threshold)
        ctx.bandwidth = bandwidth
        return a * (a > threshold)

    @staticmethod
    def backward(ctx, grad):
        a, threshold = ctx.saved_tensors
        towards = -(threshold / ctx.bandwidth) * _kernel(a, threshold, ctx.bandwidth) * grad
        return grad * (a > threshold), _sum_to(towards, threshold), None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, threshold, bandwidth):
        ctx.save_for_backward(a, threshold)
        ctx.bandwidth = bandwidth
        return (a > threshold).to(a.dtype)

    @staticmethod
    def backward(ctx, grad):
        a, threshold = ctx.saved_tensors
        towards = -_kernel(a, threshold, ctx.bandwidth) / ctx.bandwidth * grad
        return None, _sum_to(towards, threshold), None


class Gated(SparseActivation):
    """z = 1[a > 0] · max(exp(r) (a − b_gate) + b_magnitude, 0), a the gate (Rajamanoharan et al. 2024, 2404.16014)."""

    def __init__(self, settings: Any, n_latents: int, d_in: int):
        super().__init__(settings, n_latents, d_in)
        self.log_scale = nn.Parameter(torch.zeros(n_latents))
        self.magnitude_bias = nn.Parameter(torch.zeros(n_latents))

    def values(self, a: Tensor, gather: Gather, b_enc: Tensor, training: bool) -> Tensor:
        magnitude = gather(self.log_scale.exp()) * (a - gather(b_enc)) + gather(self.magnitude_bias)
        return magnitude.relu() * (a > 0)


ACTIVATIONS: dict[str, type[SparseActivation]] = {
    "relu": SparseActivation,
    "sigmoid": Sigmoid,
    "one_minus_exp": OneMinusExp,
    "topk": TopK,
    "signed_topk": SignedTopK,
    "batch_topk": BatchTopK,
    "jump_relu": JumpRelu,
    "gated": Gated,
}
"""By the `kind` of their settings."""
