"""Adam whose weights are updated by the backend, the large ones row by row, their gradients built where they are used.

The numbers are those of `torch.optim.Adam`. For a weight of a sparse model one pass over memory replaces six: gradient,
projection, update, unit rows and the renewal of the weight's copy. Nothing here waits for the device: steps are counted
on the CPU.
"""

import inspect
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from saetool.sparse.backends import backend_for
from saetool.sparse.backends.plain import AdamStep, Scales
from saetool.sparse.gradients import DeferredGradient
from saetool.sparse.weight import Copy, Weight


@dataclass
class RowRule:
    """What is special about a weight of a sparse model: its copy, its deferred gradient, and whether rows are units.

    With `unit_rows` the update ends with every row at norm 1; the part of the gradient along a row is left out, unless
    there are gains, which it moves.
    """

    weight: Weight
    unit_rows: bool = False
    deferred: DeferredGradient = field(default_factory=DeferredGradient)


@dataclass(frozen=True)
class Gains:
    """A gain g of each latent's own: Adam moves W_enc / g, b_enc / g and g W_dec, and g is the norm of the last's rows.

    A decoder that starts small so learns its directions fast, the encoder slowly, and each latent's gain grows to what
    the latent is worth. What the model computes, and holds, stays as it was: unit rows of W_dec. Only for codes that
    are linear in the pre-activations and that no penalty reads. Gradients are clipped, and their norm logged, as those
    of W_enc, b_enc and W_dec.
    """

    decoder: nn.Parameter
    encoder: tuple[nn.Parameter, ...]
    """Divided by g: W_enc and b_enc."""
    initial: float


class SparseAdam(torch.optim.Optimizer):
    """Adam (Kingma & Ba 2015) without weight decay; `rules` name the parameters that are updated row by row.

    The state is Adam's: step, exp_avg and exp_avg_sq for every parameter; with `gains` that of W_dec has gain too.
    """

    # As torch has them, but for its compiler, which they load (in more than half the time of torch itself) to be told
    # not to compile them.
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

    def __init__(
        self,
        parameters: list[nn.Parameter],
        rules: dict[nn.Parameter, RowRule],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        gains: Gains | None = None,
    ):
        first = [parameter for parameter in parameters if gains and parameter is gains.decoder]
        rest = [parameter for parameter in parameters if not gains or parameter is not gains.decoder]
        super().__init__(first + rest, {"lr": lr, "betas": betas, "eps": eps})
        self.rules, self.gains = rules, gains
        self.placed: Tensor | None = None

    def deferred(self, parameter: nn.Parameter) -> DeferredGradient:
        """Return where this parameter's gradient can be left as a recipe."""
        return self.rules[parameter].deferred

    def begin(self) -> None:
        """Make the moments of all parameters now: later they may lie where the first steps' memory was, and the rest of
        that could not be given back."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self._state(parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient, and forget deferred ones."""
        gain = self._gain()
        before = None if gain is None else gain.clone()
        for group in self.param_groups:
            for parameter in group["params"]:
                rule, grad = self.rules.get(parameter), parameter.grad
                if grad is None and not (rule and rule.deferred.terms):
                    continue
                state = self._state(parameter)
                state["step"] += 1
                numbers = AdamStep(group["lr"], group["betas"], group["eps"], int(state["step"]), self.placed)
                moments = state["exp_avg"], state["exp_avg_sq"]
                scales = self._scales(parameter, before, gain)
                rule = rule or RowRule(Weight(parameter))
                gradient = DeferredGradient(rule.deferred.terms, grad)
                update = partial(backend_for(parameter).update, rule.weight)
                if scales and grad is not None and parameter.dim() == 1:
                    parameter.div_(scales.before)
                    update(DeferredGradient(dense=grad * scales.before), moments, numbers, False)
                    parameter.mul_(scales.after)
                else:
                    update(gradient, moments, numbers, rule.unit_rows, scales)
                rule.deferred.terms.clear()

    def _gain(self) -> Tensor | None:
        """Return the latents' gains, which steps change in place."""
        return None if self.gains is None else self._state(self.gains.decoder)["gain"]

    def _scales(self, parameter: nn.Parameter, before: Tensor | None, after: Tensor | None) -> Scales | None:
        """Return what a parameter is divided by while Adam moves it, from the gains before this step and after it."""
        if self.gains is None or before is None or after is None:
            return None
        if parameter is self.gains.decoder:
            return Scales(before.reciprocal(), after)
        return Scales(before, after) if any(parameter is one for one in self.gains.encoder) else None

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
            if self.gains and parameter is self.gains.decoder:
                state["gain"] = torch.full_like(parameter[:, 0], self.gains.initial)
        return state
