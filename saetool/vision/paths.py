"""Paths of places in a model: a module's output, what goes into a module, the heads of an attention.

`blocks.9.mlp` is the module's output, `blocks.9.attn.proj.input` what goes into a module, `blocks.9.attn.heads` the
outputs of all heads side by side, before the attention's last projection mixes them, and `blocks.9.attn.heads.3` those
of the fourth head (heads count from 0, as module paths do).
"""

import fnmatch
import re
from dataclasses import dataclass

from torch import nn

from saetool.errors import RequestError

_HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads")
_PROJECTIONS = ("proj", "out_proj", "o_proj", "output.dense", "dense", "to_out.0")
"""What timm, open_clip and transformers call the projection that mixes the heads."""
_SUFFIX = re.compile(r"(.+?)\.(input|heads(?:\.(?:\d+|\*))?)")


@dataclass(frozen=True)
class Place:
    """Where a path leads: a module's output, or its input, and which part of the last axis (None: all)."""

    module: nn.Module
    input: bool = False
    part: slice | None = None


def submodule(model: nn.Module, path: str) -> nn.Module:
    """Return the module at a dotted path; the empty path is the model itself."""
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise RequestError(f"the model has no module {path!r}: {error}") from None


def find_place(model: nn.Module, path: str) -> Place:
    """Return where a path leads; RequestError where the model has no such module, or an attention no such head."""
    written = _SUFFIX.fullmatch(path)
    if written is None or find_module(model, path) is not None:
        return Place(submodule(model, path))
    base, what = written.groups()
    if what == "input":
        return Place(submodule(model, base), input=True)
    count, projection = _heads(model, base)
    if what == "heads":
        return Place(projection, input=True)
    head = int(what.rpartition(".")[2])
    if head >= count:
        raise RequestError(f"{base!r} has heads 0 to {count - 1}; {path!r} was asked for")
    width = projection.in_features // count
    return Place(projection, True, slice(head * width, (head + 1) * width))


def matching_paths(model: nn.Module, pattern: str) -> list[str]:
    """Return the paths that a pattern names, in the order of the model; wildcards stand for parts of names."""
    found = _modules(model, pattern)
    written = _SUFFIX.fullmatch(pattern)
    if found or written is None:
        return found
    base, what = written.groups()
    modules = _modules(model, base)
    if what != "heads.*":
        return [f"{path}.{what}" for path in modules]
    return [f"{path}.heads.{head}" for path in modules for head in range(_heads(model, path)[0])]


def _modules(model: nn.Module, pattern: str) -> list[str]:
    names = [name for name, _ in model.named_modules() if name]
    found = [n for n in names if fnmatch.fnmatchcase(n, pattern) and n.count(".") == pattern.count(".")]
    return sorted(found, key=_natural)


def _natural(path: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"\.", path)]


def find_module(model: nn.Module, path: str) -> nn.Module | None:
    """Return the module at a path, through wrappers that show what they wrap (`torch.compile`'s does), or None."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _heads(model: nn.Module, path: str) -> tuple[int, nn.Linear]:
    """Return how many heads the attention at a path has, and the projection that their outputs go into."""
    attention = submodule(model, path)
    owners = [attention, *attention.children()]
    counts = [count for m in owners for name in _HEAD_COUNTS if isinstance(count := getattr(m, name, None), int)]
    # A projection of a block itself (one that changes the width) is not that of the attention in it.
    own = any(isinstance(getattr(attention, name, None), int) for name in _HEAD_COUNTS)
    named = (find_module(attention, name) for name in _PROJECTIONS if own or "." in name)
    projection = next((module for module in named if isinstance(module, nn.Linear)), None)
    if isinstance(attention, nn.MultiheadAttention):
        projection = None  # it multiplies by the projection's weight and never calls it
    if not counts or projection is None or projection.in_features % counts[0]:
        raise RequestError(
            f"{path!r} ({type(attention).__name__}) does not show its heads: name the module that takes their outputs, "
            "as PATH.input"
        )
    return counts[0], projection
