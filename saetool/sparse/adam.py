"""Adam whose weights are updated by the backend, the large ones row by row, their gradients built where they are used.

The numbers are those of `torch.optim.Adam`. For a weight of a sparse model one pass over memory replaces six: gradient,
projection, update, unit rows and the renewal of the weight's copy. Nothing here waits for the device: steps are counted
on the CPU.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from saetool.sparse.backends import backend_for
from saetool.sparse.backends.plain import AdamStep
from saetool.sparse.gradients import DeferredGradient
from saetool.sparse.weight import Copy, Weight


@dataclass
class RowRule:
    """What is special about a weight of a sparse model: its copy, its deferred gradient, and whether rows are units.

    With `unit_rows` the part of the gradient along a row is left out, and the update ends with every row at norm 1.
    """

    weight: Weight
    unit_rows: bool = False
    deferred: DeferredGradient = field(default_factory=DeferredGradient)


class SparseAdam(torch.optim.Optimizer):
    """Adam (Kingma & Ba 2015) without weight decay; `rules` name the parameters that are updated row by row.

    The state is Adam's: step, exp_avg and exp_avg_sq for every parameter.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        rules: dict[nn.Parameter, RowRule],
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ):
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps})
        self.rules = rules
        self.placed: Tensor | None = None

    def deferred(self, parameter: nn.Parameter) -> DeferredGradient:
        """Return where this parameter's gradient can be left as a recipe."""
        return self.rules[parameter].deferred

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient, and forget deferred ones."""
        for group in self.param_groups:
            for parameter in group["params"]:
                rule, grad = self.rules.get(parameter), parameter.grad
                if grad is None and not (rule and rule.deferred.terms):
                    continue
                state = self._state(parameter)
                state["step"] += 1
                numbers = AdamStep(group["lr"], group["betas"], group["eps"], int(state["step"]), self.placed)
                moments = state["exp_avg"], state["exp_avg_sq"]
                rule = rule or RowRule(Weight(parameter))
                gradient = DeferredGradient(rule.deferred.terms, grad)
                backend_for(parameter).update(rule.weight, gradient, moments, numbers, rule.unit_rows)
                rule.deferred.terms.clear()

    def upcoming(self) -> AdamStep | None:
        """Return the numbers of the next step; None where it is the first, or parameters differ in them."""
        (group,) = self.param_groups
        counts = {int(self.state[p]["step"]) if self.state[p] else 0 for p in group["params"]}
        if len(counts) != 1 or counts == {0}:
            return None
        return AdamStep(group["lr"], group["betas"], group["eps"], counts.pop() + 1)

    def copies(self) -> list[tuple[Weight, Copy]]:
        """Return the weights with the copies that steps renew: those that were asked for last."""
        return [(rule.weight, rule.weight.copy) for rule in self.rules.values() if rule.weight.copy is not None]

    def count(self, copies: list[tuple[Weight, Copy]]) -> None:
        """Count a step that was taken without `step`, by a recording of it, and that renewed these copies."""
        for state in self.state.values():
            state["step"] += 1
        for weight, copy in copies:
            torch.autograd.graph.increment_version(weight.tensor)
            weight.mark_current(copy)
            copy.changed()

    def _state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state
