"""What two forward passes show of a model: which of a module's outputs belong to the images, and their shapes."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from saetool.errors import RequestError
from saetool.vision.hooks import hooked
from saetool.vision.paths import submodule

SAME_IMAGE, ROUNDING = 0.5, 0.05
"""An image alone and among others must give the same: nearer than this share of its distance from the other image, or
than this share of its own size, which half precision explains."""


@dataclass(frozen=True)
class Output:
    """A module's output of one image."""

    place: int
    """Which tensor it is of those that the module returns."""
    shape: tuple[int, ...]
    """Without the axis of images."""
    channels_first: bool = False
    """Whether it is a convolution's map [d, rows, columns]."""

    @property
    def d(self) -> int:
        """Width of a token."""
        return self.shape[0] if self.channels_first else self.shape[-1]

    @property
    def n_tokens(self) -> int:
        """Tokens of an image: places of a map, one of a vector."""
        return math.prod(self.shape) // self.d if self.d else math.prod(self.shape[:-1])

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of a map."""
        if len(self.shape) != 3:
            return None
        return self.shape[1:] if self.channels_first else self.shape[:2]  # pyright: ignore[reportReturnType]

    def turned(self) -> "Output":
        """Return the same output with its channels at the other end."""
        return replace(self, channels_first=not self.channels_first)

    def rows(self, output: Tensor) -> Tensor:
        """Return the output of a batch, [batch, …], as [batch, tokens, d]."""
        if output.ndim == 2:
            return output[:, None]
        return (output.movedim(1, -1) if self.channels_first else output).flatten(1, -2)

    def of_rows(self, rows: Tensor) -> Tensor:
        """Return [batch, tokens, d] in the shape that the module gives."""
        if not self.channels_first:
            return rows.reshape(len(rows), *self.shape)
        return rows.transpose(1, 2).reshape(len(rows), *self.shape)


@dataclass
class Probe:
    """What the passes showed."""

    outputs: dict[str, Output] = field(default_factory=dict)
    """By module path, where one belongs to the images."""
    refused: dict[str, str] = field(default_factory=dict)
    """By module path, why none does."""
    grids: list[tuple[int, int]] = field(default_factory=list)
    """Output sizes of the convolutions, each once, in their order."""
    patch_stride: tuple[int, int] | None = None
    """Stride in input pixels of the patch embedding before the first block, where stride equals kernel."""


def look(
    model: nn.Module, run: Callable[[Tensor], Any], images: Tensor, modules: Sequence[str], first_block: str | None
) -> Probe:
    """Run two different `images` [2, channels, h, w], then the first alone, and compare what `modules` give.

    Raises RequestError for a module that takes no part in a pass, or runs several times in it.
    """
    seen = Probe()
    with _noting_convolutions(model, seen, first_block, images):
        together = _pass(model, run, images, modules)
    alone = _pass(model, run, images[:1], modules)
    for path in modules:
        if path not in together or path not in alone:
            raise RequestError(f"module {path!r} takes no part in a forward pass: choose another")
        found = [
            Output(place, tuple(two.shape[1:]))
            for place, (two, one) in enumerate(zip(together[path], alone[path], strict=False))
            if _belongs_to_images(two, one)
        ]
        best = min(found, key=_rank, default=None)
        twins = [output for output in found if best and output.shape == best.shape]
        if best and len(twins) > 1 and len(best.shape) == 2 and best.shape[0] == best.shape[1]:
            seen.refused[path] = (
                f"module {path!r} gives {len(twins)} outputs of shape {list(best.shape)}, of which one may be "
                "attention weights: name one of its parts"
            )
        elif best:
            seen.outputs[path] = best
        else:
            seen.refused[path] = _why(path, together[path], alone[path])
    return seen


def _rank(output: Output) -> tuple[int, bool]:
    """Order an image's outputs: tokens × d, rows × columns × d, one vector; tokens × tokens are attention weights."""
    shape = output.shape
    return {2: 0, 3: 1, 1: 2}.get(len(shape), 3), len(set(shape)) < len(shape)


@torch.no_grad()
def _pass(
    model: nn.Module, run: Callable[[Tensor], Any], images: Tensor, modules: Sequence[str]
) -> dict[str, list[Tensor]]:
    outputs: dict[str, list[Tensor]] = {}

    def keep(path: str, found: list[Tensor], _: Any) -> None:
        if path in outputs:
            raise RequestError(f"module {path!r} runs more than once in a forward pass: name one of its parts")
        outputs[path] = found

    with hooked(model, {path: partial(keep, path) for path in modules}):
        run(images)
    return outputs


@contextmanager
def _noting_convolutions(model: nn.Module, seen: Probe, first_block: str | None, images: Tensor) -> Iterator[None]:
    """While the block runs, note the sizes of convolutions' outputs, and the last stride before the blocks."""
    started = False

    def note(module: Any, inputs: Any, output: Tensor) -> None:
        if output.ndim != 4:
            return
        grid = (output.shape[-2], output.shape[-1])
        if grid not in seen.grids:
            seen.grids.append(grid)
        if not started:
            whole = module.stride == module.kernel_size and inputs[0].shape[-2:] == images.shape[-2:]
            seen.patch_stride = tuple(module.stride) if whole else None

    def start(module: nn.Module, inputs: Any) -> None:
        nonlocal started
        started = True

    with ExitStack() as handles:
        for convolution in (module for module in model.modules() if isinstance(module, nn.Conv2d)):
            handles.enter_context(convolution.register_forward_hook(note))
        if first_block is not None:
            handles.enter_context(submodule(model, first_block).register_forward_pre_hook(start))
        yield


def _belongs_to_images(two: Tensor, one: Tensor) -> bool:
    """Say whether the first axis is the images': it has their number, and an image gives the same beside another."""
    if two.ndim < 2 or len(two) != 2 or len(one) != 1 or two.shape[1:] != one.shape[1:] or not two.is_floating_point():
        return False
    distance = (two[0] - two[1]).float().norm()
    error = (two[0] - one[0]).float().norm()
    off = bool(error > SAME_IMAGE * distance) and bool(error > ROUNDING * one.float().norm())
    # Values that are not finite compare as nothing; caching names their image.
    return not off and not bool(distance == 0)


def _why(path: str, together: list[Tensor], alone: list[Tensor]) -> str:
    shapes = [" and ".join(str(list(tensor.shape)) for tensor in tensors) for tensors in (together, alone)]
    if any(len(two) == 2 and len(one) == 1 for two, one in zip(together, alone, strict=False)):
        return (
            f"module {path!r} gives nothing of an image's own (shape {shapes[0]} for two pictures: the same for both, "
            "or other values when one is alone): name a module that computes on the tokens, such as a whole block"
        )
    return (
        f"module {path!r} gives shape {shapes[0]} for two images and {shapes[1]} for one: its first axis is not the "
        "images, so its rows cannot be told apart; name a module around it, such as a whole block"
    )


def block_paths(module: nn.Module) -> list[str]:
    """Return the paths in the longest list of modules of one class: what a model's layers most likely are."""
    lists = []
    for path, child in module.named_modules():
        members = list(child.children())
        if isinstance(child, nn.ModuleList | nn.Sequential) and len({type(member) for member in members}) == 1:
            lists.append((len(members), path, child))
    if not lists:
        return []
    _, path, longest = max(lists, key=lambda found: found[0])
    return [f"{path}.{key}" if path else key for key, _ in longest.named_children()]
