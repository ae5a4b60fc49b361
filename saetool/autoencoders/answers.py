"""What a family of a user's own must answer, asked once when its model is built, and its failures in words."""

import inspect
import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from saetool.autoencoders.base import Autoencoder, Phase
from saetool.errors import RequestError, SaetoolError, first_line, shown, type_name
from saetool.registry import run

CLOSE = 1e-3
"""Of a code's largest value: products over fewer rows round otherwise, a mean over the batch differs by far more."""


@torch.no_grad()
def require_answers(model: Any, d_in: int, n_latents: int, what: str) -> None:
    """Raise RequestError unless a model is one, of these sizes, and answers as `Autoencoder` says."""
    if not isinstance(model, Autoencoder):
        raise RequestError(f"{what}its build returned no saetool.autoencoders.Autoencoder but a {type_name(model)}")
    for name, wanted in (("d_in", d_in), ("n_latents", n_latents)):
        if getattr(model, name, None) != wanted:
            raise RequestError(
                f"{what}its model has {name} {shown(getattr(model, name, None))} where {wanted} is meant"
            )
    if next(model.parameters(), None) is None:
        raise RequestError(f"{what}its model has no parameters: what training changes is torch.nn.Parameter")
    _require_arguments(model, what)
    phases = run(model.phases, f"{what}phases")
    if not phases or not all(isinstance(phase, Phase) for phase in phases):
        raise RequestError(
            f"{what}phases must return a list of saetool.autoencoders.Phase, and returned {shown(phases)}"
        )
    shares = [phase.share for phase in phases]
    if not all(isinstance(share, int | float) and 0 < share < math.inf for share in shares):
        raise RequestError(f"{what}phases must have positive shares, and have {shown(shares)}")
    given = torch.linspace(-1, 1, 6 * d_in).view(2, 3, d_in)
    z = _require_code(model, given, n_latents, what)
    x_hat = run(lambda: model.complete(model.decode(z), given), f"{what}decode")
    _require_numbers(x_hat, (2, 3, d_in), f"{what}decode of [2, 3, {n_latents}]")


def _require_code(model: Autoencoder, given: Tensor, n_latents: int, what: str) -> Tensor:
    """Return the code of some rows; RequestError where it is none, or depends on more than each row."""
    x = given.clone()
    z = run(lambda: model.encode(x), f"{what}encode")
    _require_numbers(z, (2, 3, n_latents), f"{what}encode of [2, 3, {given.shape[-1]}]")
    if not torch.equal(x, given):
        raise RequestError(f"{what}encode changes the rows that it is given: let it work on others")
    if not z.isfinite().all():
        raise RequestError(f"{what}encode gives latents that are not finite for rows between -1 and 1")
    if not torch.equal(z, run(lambda: model.encode(x), f"{what}encode")):
        raise RequestError(f"{what}encode gives other latents for the same rows each time; loss may draw, encode not")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    apart = run(lambda: model.encode(x[0]), f"{what}encode")
    for module, training in modes:
        module.training = training
    if float((apart - z[0]).abs().max()) > CLOSE * float(z.abs().max()):
        raise RequestError(
            f"{what}encode gives a row other latents beside other rows, or after eval(): a row's code may depend on "
            "the row alone"
        )
    return z


def _require_numbers(found: Any, wanted: tuple[int, ...], what: str) -> None:
    if not isinstance(found, Tensor) or tuple(found.shape) != wanted or not found.is_floating_point():
        given = f"{list(found.shape)} of {found.dtype}" if isinstance(found, Tensor) else type_name(found)
        raise RequestError(f"{what} must return a floating-point tensor {list(wanted)}, and returned {given}")


def _require_arguments(model: Autoencoder, what: str) -> None:
    """Raise RequestError where a method takes other arguments than those that it is called with."""
    for name, method in inspect.getmembers(Autoencoder, inspect.isfunction):
        wanted = list(inspect.signature(method).parameters)[1:]
        if name.startswith("_") or name not in vars(Autoencoder):
            continue
        try:
            inspect.signature(getattr(model, name)).bind(*wanted)
        except TypeError:
            said = f"{what}{name} is called with ({', '.join(wanted)}), which its own does not take"
            raise RequestError(said) from None


@contextmanager
def explained(model: Autoencoder) -> Iterator[None]:
    """Let what a user's own model raises end in a sentence that says where."""
    home = type(model).__module__
    try:
        yield
    except (SaetoolError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        frames = traceback.walk_tb(error.__traceback__)
        called = [place for place in frames if place[0].f_globals.get("__name__") == home]
        if home.startswith("saetool.") or not called:
            raise
        frame, line = called[-1]
        code = frame.f_code
        raise RequestError(
            f"{type(model).__name__}.{code.co_name} failed: {type(error).__name__}: {first_line(error)} "
            f"({code.co_filename}, line {line})"
        ) from error
