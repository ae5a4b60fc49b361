"""Adam that walks over large weights a block of latents at a time, while the block is in cache.

For each block: build the gradient from its deferred terms, project it, take torch's fused Adam step, restore unit
rows, refresh the coarser copy. The numbers are those of `torch.optim.Adam`; one pass over memory replaces six.
Where the compiled kernels serve, all of that happens latent by latent.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.adam import adam

from saetool.sparse import compiled
from saetool.sparse.byte import ByteWeight
from saetool.sparse.gradients import Outer, Term
from saetool.sparse.half import HalfWeight
from saetool.sparse.select import Encoder

BLOCK = 2048
"""Latents a block: from 1,024 to 4,096 equally fast, one block for all is slower (measured, d_in 384 and 768)."""


@dataclass
class BlockRule:
    """What is special about one weight: its deferred gradient, and what to do around the update of a block."""

    sink: list[Term] = field(default_factory=list)
    unit_rows: bool = False
    """Rows have norm 1: the part of the gradient along them is removed before the update, the norm restored after."""
    encoder: Encoder | None = None
    """What keeps a copy of this weight that must follow it."""


class BlockAdam(torch.optim.Optimizer):
    """Adam (Kingma & Ba 2015) without weight decay; `rules` name the parameters that are updated in blocks.

    The state is Adam's: step, exp_avg and exp_avg_sq for every parameter.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        rules: dict[nn.Parameter, BlockRule],
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ):
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "fused": True})
        self.rules = rules

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient, and forget deferred ones."""
        for group in self.param_groups:
            for parameter in group["params"]:
                rule, grad = self.rules.get(parameter), parameter.grad
                if grad is None and not (rule and rule.sink):
                    continue
                state = self._state(parameter)
                if rule is not None:
                    self._update_blocks(group, parameter, rule, state)
                elif grad is not None:
                    self._update(group, parameter, grad, state, slice(None))
                state["step"] += 1

    def _state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state

    def _update_blocks(self, group: dict, parameter: nn.Parameter, rule: BlockRule, state: dict) -> None:
        match rule.sink:
            case [Outer(rows, weights, offsets, table)] if parameter.grad is None and compiled.serves(parameter, table):
                kept = rule.encoder.kept if rule.encoder else None
                half = kept.weight if isinstance(kept, HalfWeight) else None
                coded = kept.coded if isinstance(kept, ByteWeight) else None
                gradient = (rows, weights, offsets, table)
                compiled.update(parameter, gradient, state, group, rule.unit_rows, half, coded)
            case _:
                for start in range(0, parameter.shape[0], BLOCK):
                    self._update_block(group, parameter, rule, state, start, min(start + BLOCK, parameter.shape[0]))
        rule.sink.clear()
        if rule.encoder is not None:
            rule.encoder.mark_current()

    def _update_block(self, group: dict, weight: Tensor, rule: BlockRule, state: dict, start: int, stop: int) -> None:
        grad = weight.grad[start:stop] if weight.grad is not None else None
        for term in rule.sink:
            part = term.block(start, stop)
            grad = part if grad is None else grad + part
        assert grad is not None
        if rule.unit_rows:
            remove_part_along(weight[start:stop], grad)
        self._update(group, weight, grad, state, slice(start, stop))
        if rule.unit_rows:
            normalize_rows(weight[start:stop])
        if rule.encoder is not None:
            rule.encoder.refresh(start, stop)

    def _update(self, group: dict, parameter: Tensor, grad: Tensor, state: dict, rows: slice) -> None:
        at = (lambda t: t[rows]) if parameter.dim() else (lambda t: t)
        beta1, beta2 = group["betas"]
        adam(
            [at(parameter)],
            [grad],
            [at(state["exp_avg"])],
            [at(state["exp_avg_sq"])],
            [],
            [state["step"].clone()],  # counted once, after the last block
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )


def remove_part_along(unit: Float[Tensor, "rows d_in"], grad: Float[Tensor, "rows d_in"]) -> None:
    """Remove from each row of `grad`, in place, its part along the unit row of `unit`."""
    grad.addcmul_(unit, torch.linalg.vecdot(grad, unit)[:, None], value=-1.0)


def normalize_rows(rows: Float[Tensor, "rows d_in"]) -> None:
    """Give each row norm 1, in place; a row of zeros stays."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    rows.div_(norms.clamp_min(torch.finfo(rows.dtype).tiny))
