"""Which of a model's tokens is which: read off a probe forward pass, checked against what the model declares."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from saetool.errors import RequestError
from saetool.vision.hooks import submodule, tensor_of

CLASS_TOKEN_NAMES = {"cls_token", "class_token", "class_embedding", "cls_embedding", "cls"}
"""What timm, transformers and open_clip call the parameter of a CLS token."""


@dataclass(frozen=True)
class TokenLayout:
    """Prefix tokens (CLS, registers, distillation), then patches in row-major order."""

    prefix_tokens: int
    grid: tuple[int, int] | None
    """(rows, columns) of patches; None where the tokens form no known grid."""
    has_class_token: bool

    @property
    def tokens(self) -> int | None:
        """Tokens in all; None without a grid."""
        return None if self.grid is None else self.prefix_tokens + self.grid[0] * self.grid[1]


@dataclass
class Probe:
    """What one forward pass of a single image showed: the shapes of outputs, by module path."""

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    patch_grid: tuple[int, int] | None = None
    """Output size of the last convolution before the first block: the patch embedding."""
    patch_stride: tuple[int, int] | None = None
    """Its stride in input pixels, where it is a patch embedding's (stride equals kernel)."""


def probe(model: nn.Module, run: Any, image: Tensor, modules: list[str], first_block: str | None) -> Probe:
    """Run `image` [1, channels, h, w] through the model and note the output shapes of `modules`."""
    seen = Probe()
    started = False

    def note_convolution(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if not started and output.ndim == 4:
            seen.patch_grid = (output.shape[-2], output.shape[-1])
            whole = module.stride == module.kernel_size and inputs[0].shape[-2:] == image.shape[-2:]
            seen.patch_stride = tuple(module.stride) if whole else None  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]

    def note_start(module: nn.Module, inputs: Any) -> None:
        nonlocal started
        started = True

    def note_shape(path: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if path in seen.shapes:
                raise RequestError(f"module {path!r} runs more than once in a forward pass: name one of its parts")
            seen.shapes[path] = tuple(tensor_of(output, path).shape)

        return hook

    handles = [m.register_forward_hook(note_convolution) for m in model.modules() if isinstance(m, nn.Conv2d)]
    try:
        if first_block is not None:
            handles.append(submodule(model, first_block).register_forward_pre_hook(note_start))
        for path in dict.fromkeys(modules):
            handles.append(submodule(model, path).register_forward_hook(note_shape(path)))
        with torch.no_grad():
            run(image)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def read_layout(name: str, model: nn.Module, seen: Probe, tokens: int, declared: TokenLayout | None) -> TokenLayout:
    """Return the layout of `tokens` tokens, from the probe where the model's patch embedding is a convolution.

    Raises RequestError where the model declares another layout than the probe found, naming both.
    """
    grid = seen.patch_grid
    if grid is not None and grid[0] * grid[1] > tokens:
        grid = None
    if grid is None and declared is not None:
        grid = declared.grid
    has_class_token = _has_class_token(model)
    if grid is None:
        return TokenLayout(0, None, has_class_token)
    found = TokenLayout(tokens - grid[0] * grid[1], grid, has_class_token)
    if declared is not None and (found.prefix_tokens, found.grid) != (declared.prefix_tokens, declared.grid):
        raise RequestError(
            f"{name} declares {_say(declared)}, but a probe forward pass gave {tokens} tokens, {_say(found)}: "
            "its tokens cannot be told apart; hand the module to saetool.vision.wrap with the grid it has"
        )
    if has_class_token and found.prefix_tokens == 0:
        return TokenLayout(0, grid, False)
    return found


def _has_class_token(model: nn.Module) -> bool:
    return any(path.rpartition(".")[2] in CLASS_TOKEN_NAMES for path, _ in model.named_parameters())


def _say(layout: TokenLayout) -> str:
    grid = "no grid" if layout.grid is None else f"a {layout.grid[0]}×{layout.grid[1]} grid"
    return f"{layout.prefix_tokens} prefix tokens and {grid}"
