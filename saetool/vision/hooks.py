"""Hooks that read or replace a module's output, as context managers: whatever happens, they come off."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from saetool.errors import RequestError

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

    def record(path: str) -> Callable:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            outputs[path] = tensor_of(output, path, (places or {}).get(path, 0))
            if stop and len(outputs) == len(wanted):
                raise _AllRead

        return hook

    handles = []
    try:
        for path in wanted:
            handles.append(submodule(model, path).register_forward_hook(record(path)))
        yield outputs
    except _AllRead:
        pass
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replacing(model: nn.Module, module: str, function: Replacement, place: int = 0) -> Iterator[None]:
    """Let `function` replace the named module's output tensor (of a tuple, that at `place`) while the block runs."""

    def hook(_: nn.Module, inputs: Any, output: Any) -> Any:
        return with_tensor(output, function(tensor_of(output, module, place)), module, place)

    handle = submodule(model, module).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def submodule(model: nn.Module, path: str) -> nn.Module:
    """Return the module at a dotted path; the empty path is the model itself."""
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise RequestError(f"the model has no module {path!r}: {error}") from None


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
    found = tensors_in(output, path)
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
