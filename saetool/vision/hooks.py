"""Hooks that read or replace what is at a path, as context managers: whatever happens, they come off."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from saetool.errors import RequestError
from saetool.vision.paths import find_place

Replacement = Callable[[Tensor], Tensor]


class _AllRead(Exception):
    """Unwinds a forward pass once nothing is left to read."""


@contextmanager
def reading(
    model: nn.Module, modules: Sequence[str], stop: bool = False, places: Mapping[str, int] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that the next forward passes fill with the named modules' outputs (the latest call's).

    `places` says which tensor of a tuple is meant, where it is not the first. With `stop`, a forward pass inside the
    `with` block ends as soon as every module has been read, and with it the block: nothing after that call runs.
    """
    outputs: dict[str, Tensor] = {}
    wanted = set(modules)

    def record(path: str, found: list[Tensor], _: Any) -> None:
        outputs[path] = _at(found, path, (places or {}).get(path, 0))
        if stop and len(outputs) == len(wanted):
            raise _AllRead

    with suppress(_AllRead), hooked(model, {path: partial(record, path) for path in wanted}):
        yield outputs


@contextmanager
def replacing(model: nn.Module, module: str, function: Replacement, place: int = 0) -> Iterator[None]:
    """Let `function` replace the named module's output tensor (of a tuple, that at `place`) while the block runs."""
    part = find_place(model, module).part

    def put(found: list[Tensor], values: Any) -> Any:
        new = function(_at(found, module, place))
        if part is not None:
            whole = tensor_of(values, module, place).clone()
            whole[..., part] = new
            new = whole
        return with_tensor(values, new, module, place)

    with hooked(model, {module: put}):
        yield


@contextmanager
def hooked(model: nn.Module, functions: Mapping[str, Callable[[list[Tensor], Any], Any]]) -> Iterator[None]:
    """While the block runs, a `_hook` is at each of some paths."""
    with ExitStack() as handles:
        for path, function in functions.items():
            handles.enter_context(_hook(model, path, function))
        yield


def _hook(model: nn.Module, path: str, function: Callable[[list[Tensor], Any], Any]) -> RemovableHandle:
    """Call `function(tensors, values)` with what is found at a path whenever a forward pass comes by.

    `values` is what the module gives or takes, `tensors` are those in it, each cut to its part. What the function
    returns, where it is not None, goes on in their stead.
    """
    found = find_place(model, path)

    def tensors(values: Any) -> list[Tensor]:
        held, part = tensors_in(values, path), found.part
        return held if part is None else [tensor[..., part] for tensor in held]

    if found.input:
        return found.module.register_forward_pre_hook(lambda _, inputs: function(tensors(inputs), inputs))
    return found.module.register_forward_hook(lambda _, inputs, output: function(tensors(output), output))


def tensors_in(output: Any, path: str) -> list[Tensor]:
    """Return the tensor that a module's output is or, of a tuple, list or mapping, those it holds, in their order."""
    values = (
        output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else [output]
    )
    found = [value for value in values if isinstance(value, Tensor)]
    if not found:
        raise RequestError(f"module {path!r} gives {type(output).__name__}, which holds no tensor to read")
    return found


def tensor_of(output: Any, path: str, place: int = 0) -> Tensor:
    """Return a module's output tensor: of a tuple, list or mapping the one at `place` among its tensors."""
    return _at(tensors_in(output, path), path, place)


def _at(found: list[Tensor], path: str, place: int) -> Tensor:
    if place >= len(found):
        raise RequestError(f"module {path!r} gives {len(found)} tensors, where a probe saw {place + 1}")
    return found[place]


def with_tensor(output: Any, tensor: Tensor, path: str, place: int = 0) -> Any:
    """Return `output` with `tensor` where `tensor_of` found one; tuples stay tuples."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, Mapping):
        key = [key for key, value in output.items() if isinstance(value, Tensor)][place]
        kind: Any = type(output)
        return kind({**output, key: tensor})
    values = list(output)
    values[[i for i, value in enumerate(values) if isinstance(value, Tensor)][place]] = tensor
    if hasattr(output, "_fields"):
        return type(output)(*values)
    return type(output)(values)
