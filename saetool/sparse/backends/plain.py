"""Pieces in plain torch that backends share: what is found in dense rows, and Adam a block of latents at a time."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.optim.adam import adam

from saetool.sparse.codes import Support, offsets_after
from saetool.sparse.gradients import DeferredGradient
from saetool.sparse.weight import Weight

if TYPE_CHECKING:
    from saetool.sparse.backends import Backend

SLICE_ROWS = 512
"""Rows whose pre-activations are held at once: between the cost of reading the weight for each slice and that of
leaving the cache (measured on CPU: 6 to 9 % faster than 256, 2 to 4 % than 1,024; twice the rate of a whole batch)."""

BLOCK = 2048
"""Latents a block of Adam: from 1,024 to 4,096 equally fast, one block for all is slower (measured on CPU)."""


def search(
    x: Float[Tensor, "batch d_in"],
    W_enc: Weight,
    bias: Float[Tensor, "n_latents"],
    half: bool,
    cut: Tensor | None,
    k: int | None,
) -> "Done":
    """Do what a backend's `search` does, a slice of rows at a time; `half`: by a product in bfloat16."""
    weight, parts = W_enc.tensor.detach(), []
    weight = weight.bfloat16() if half else weight
    for part in x.split(SLICE_ROWS):
        pre = (part.bfloat16() @ weight.T).to(bias.dtype) + bias if half else torch.addmm(bias, part, weight.T)
        if k is not None:
            parts.append(entries_largest(pre, k))
        else:
            assert cut is not None
            parts.append(entries_where(pre, pre > cut))  # a number that is none (NaN) exceeds nothing
    return Done(*joined(parts))


@dataclass(frozen=True)
class Done:
    """A `Search` that has found its entries already."""

    support: Support
    values: Float[Tensor, "entries"]

    @property
    def numbers(self) -> Tensor:
        return torch.tensor([len(self.values)])

    def shape(self, numbers: list[int]) -> None:
        """Return None: what follows depends on everything."""

    def found(self, numbers: list[int], room: int | None = None) -> tuple[Support, Tensor]:
        return self.support, self.values


def entries_largest(pre: Float[Tensor, "rows n_latents"], k: int) -> tuple[Support, Float[Tensor, "entries"]]:
    """Return the positive ones among each row's k largest outputs; of equals the lowest latent goes first."""
    positive = torch.where(pre > 0, pre, 0.0)  # NaN would be the largest of all
    lowest = positive.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    support, outputs = entries_where(positive, (positive >= lowest) & (positive > 0))
    kept = largest_of_entries(outputs, support, k)
    return support.where(kept), outputs[kept]


def entries_where(
    pre: Float[Tensor, "rows n_latents"], kept: Bool[Tensor, "rows n_latents"]
) -> tuple[Support, Float[Tensor, "entries"]]:
    """Return the entries that `kept` marks."""
    rows, latents = kept.nonzero(as_tuple=True)
    return Support.from_rows(rows, latents, len(pre), pre.shape[1]), pre[rows, latents]


def largest_of_entries(values: Float[Tensor, "entries"], support: Support, k: int) -> Bool[Tensor, "entries"]:
    """Mark each row's k largest entries that are positive; among equals the lowest latent goes first."""
    kept = values > 0
    counts = support.offsets.diff()
    width = int(counts.max()) if values.numel() else 0
    if width <= k:
        return kept
    inside = torch.arange(width, device=values.device) < counts[:, None]
    rectangle = values.new_zeros(support.n_rows, width).masked_scatter_(inside, values.clamp_min(0))
    lowest = rectangle.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    above, equal = rectangle > lowest, (rectangle == lowest) & (rectangle > 0)
    # Of the entries that equal the k-th largest, the first ones of the row fill what is left.
    first = equal.cumsum(1, dtype=torch.int32) <= k - above.sum(1, keepdim=True)
    return (above | (equal & first)).masked_select(inside)


def joined(parts: list[tuple[Support, Float[Tensor, "entries"]]]) -> tuple[Support, Float[Tensor, "entries"]]:
    """Stack the rows of several supports over the same latents, with their values."""
    if len(parts) == 1:
        return parts[0]
    supports, values = zip(*parts, strict=True)
    counts = torch.cat([support.offsets.diff() for support in supports])
    latents = torch.cat([support.latents for support in supports])
    return Support(offsets_after(counts), latents, supports[0].n_latents), torch.cat(values)


@dataclass(frozen=True)
class AdamStep:
    """The numbers of one step of Adam (Kingma & Ba 2015), without weight decay; `count` begins at 1.

    `placed`: `values` on a device, where they lie there already.
    """

    lr: float
    betas: tuple[float, float]
    eps: float
    count: int
    placed: Tensor | None = None

    def values(self) -> list[float]:
        """Return lr / (1 − β₁ᵗ), β₁, β₂, √(1 − β₂ᵗ), ε."""
        beta1, beta2 = self.betas
        return [self.lr / (1 - beta1**self.count), beta1, beta2, (1 - beta2**self.count) ** 0.5, self.eps]

    def numbers(self, device: torch.device) -> Float[Tensor, "5"]:
        """Return `values` on a device, without waiting for it."""
        if self.placed is not None:
            return self.placed
        return torch.tensor(self.values(), dtype=torch.float32).to(device, non_blocking=True)


@dataclass(frozen=True)
class Scales:
    """What Adam moves in place of a weight W whose row j is before[j] · V[j]: V, the row becoming after[j] · V'[j].

    Of unit rows, which become V' / ‖V'‖, `after` is written: ‖V'‖.
    """

    before: Float[Tensor, "n_latents"]
    after: Float[Tensor, "n_latents"]


def update_in_blocks(
    backend: "Backend",
    weight: Weight,
    gradient: DeferredGradient,
    moments: tuple[Tensor, Tensor],
    step: AdamStep,
    unit_rows: bool,
    scales: Scales | None = None,
) -> None:
    """Take Adam's step a block of latents at a time: build the gradient, project or scale it, update, unit rows, copy.

    A parameter of less than two dimensions is one block.
    """
    values = weight.tensor.detach()
    if values.dim() < 2:
        assert gradient.dense is not None
        adam_step(values, gradient.dense, moments, step)
        return
    for start in range(0, len(values), BLOCK):
        stop = min(start + BLOCK, len(values))
        grad, rows = gradient.block(start, stop, backend), values[start:stop]
        if scales:
            before = scales.before[start:stop, None]
            rows.div_(before)
            grad = grad * before
        elif unit_rows:
            remove_part_along(rows, grad)
        adam_step(rows, grad, (moments[0][start:stop], moments[1][start:stop]), step)
        if scales and unit_rows:
            norms = torch.linalg.vector_norm(rows, dim=1)
            scales.after[start:stop] = norms.clamp_min(torch.finfo(rows.dtype).tiny)
        if unit_rows:
            normalize_rows(rows)
        elif scales:
            rows.mul_(scales.after[start:stop, None])
        weight.refresh(start, stop)
    weight.mark_current()


def adam_step(parameter: Tensor, grad: Tensor, moments: tuple[Tensor, Tensor], step: AdamStep) -> None:
    """Update a parameter and its moments in place, by torch's own Adam; the device is not waited for."""
    fused = parameter.device.type == "cpu"
    adam(
        [parameter],
        [grad],
        [moments[0]],
        [moments[1]],
        [],
        [torch.tensor(float(step.count - 1))],  # on the CPU, counted up inside
        fused=fused,
        foreach=False if fused else None,
        amsgrad=False,
        beta1=step.betas[0],
        beta2=step.betas[1],
        lr=step.lr,
        weight_decay=0.0,
        eps=step.eps,
        maximize=False,
    )


def remove_part_along(unit: Float[Tensor, "rows d_in"], grad: Float[Tensor, "rows d_in"]) -> None:
    """Remove from each row of `grad`, in place, its part along the unit row of `unit`."""
    grad.addcmul_(unit, torch.linalg.vecdot(grad, unit)[:, None], value=-1.0)


def normalize_rows(rows: Float[Tensor, "rows d_in"]) -> None:
    """Give each row norm 1, in place; a row of zeros stays."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    rows.div_(norms.clamp_min(torch.finfo(rows.dtype).tiny))
