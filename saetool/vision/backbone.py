"""A model with its preprocessing, its token layout and its sites: what the caching job and the evaluation see."""

import fnmatch
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import RLock
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saetool.artifacts import digest_json
from saetool.errors import RequestError
from saetool.vision.hooks import Replacement, reading, replacing
from saetool.vision.layout import TokenLayout, probe, read_layout
from saetool.vision.settings import Tokens
from saetool.vision.transform import Transform


@dataclass(frozen=True)
class Site:
    """A place in the model whose output is stored: a layer counted from 1, or any module."""

    module: str
    """Module path: `blocks.9`."""
    layer: int | None
    """10, where the module is the tenth block."""
    d: int
    """Width of a token there."""
    tokens: Tokens | None = None
    """Which tokens are kept there, where not those that the backbone keeps."""

    @property
    def folder(self) -> str:
        """Name of the site's folder in a store: `layer-10`, or the module path; `layer-08-mean` of other tokens."""
        name = self.module if self.layer is None else f"layer-{self.layer:02d}"
        return name if self.tokens is None else f"{name}-{self.tokens}"

    @property
    def label(self) -> str:
        """Both forms for people: `layer 10 (blocks.9)`."""
        return self.module if self.layer is None else f"layer {self.layer} ({self.module})"


@dataclass(frozen=True)
class Parts:
    """What a loader knows of a model before the probe."""

    name: str
    model: nn.Module
    """On its device, in its precision, in evaluation mode."""
    transform: Transform
    """Its geometry has no grid yet: the probe finds it."""
    blocks: list[str]
    """Module paths of the layers, in order."""
    run: Callable[[Tensor], Any]
    """A whole forward pass of a batch of images in the model's own dtype, and what the model returns."""
    weights_digest: str
    """`xxh3-128:…` over names, dtypes, shapes and values of the weights in their published dtype."""
    declared: TokenLayout | None = None
    """What the library says of the token layout, checked by the probe."""
    patch: tuple[int, int] | None = None
    """Patch size in input pixels, where the library says it."""


class Backbone:
    """A frozen vision model that gives the tokens at its sites.

    name: as in the config; tokens: which tokens are kept; sites: those asked for at loading, in their order;
    layout: the model's tokens; transform: from a picture to its input; precision: "fp32" or "bf16", as it became;
    weights_digest: `xxh3-128:…` of the weights as published.
    """

    def __init__(self, parts: Parts, layers: Sequence[int | str], tokens: Tokens, precision: str = "fp32"):
        self.name = parts.name
        self.model = parts.model
        self.weights_digest = parts.weights_digest
        self.tokens: Tokens = tokens
        self.precision = precision
        self._run = parts.run
        self._blocks = parts.blocks
        self._transform = parts.transform
        self._shapes: dict[str, tuple[int, ...]] = {}
        parameter = next(self.model.parameters(), torch.empty(0))
        self.device, self.dtype = parameter.device, parameter.dtype
        self._turn = RLock()

        modules = [module for layer in layers for module, _ in self._resolve(layer)]
        seen = self._probe(modules)
        self.layout = self._read_layout(seen, parts)
        self.transform = self._with_grid(seen.patch_stride or parts.patch)
        self.sites = self.sites_of(layers)

    @property
    def n_layers(self) -> int:
        """How many blocks the model has."""
        return len(self._blocks)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Module paths of the layers, in order."""
        return tuple(self._blocks)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of patches; None where the tokens form no known grid."""
        return self.layout.grid

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: CLS and registers."""
        return self.layout.prefix_tokens

    def site(self, layer: int | str) -> Site:
        """Return the site of a layer (from 1) or of one module path; RequestError names what there is instead."""
        sites = self._sites_of(layer)
        if len(sites) != 1:
            raise RequestError(f"{layer!r} names {len(sites)} modules; one site is wanted: {sites[0].module}, …")
        return sites[0]

    def sites_of(self, layers: Sequence[int | str]) -> list[Site]:
        """Return the sites of several layers or module paths, wildcards allowed, in their order; each site once."""
        return list(dict.fromkeys(site for layer in layers for site in self._sites_of(layer)))

    def tokens_at(self, site: Site) -> int:
        """Return how many tokens an image has there once they are selected."""
        shape, tokens = self._shapes[site.module], site.tokens or self.tokens
        if tokens in ("cls", "mean") or len(shape) == 2:
            return 1
        return math.prod(shape[1:-1]) - (self.prefix_tokens if tokens == "patches" else 0)

    def forward_to(
        self, images: Float[Tensor, "batch channels height width"], sites: Sequence[Site] | None = None
    ) -> list[Float[Tensor, "batch tokens d"]]:
        """Return the selected tokens at `sites` (default: all asked for), in the dtype they were computed in.

        The forward pass ends at the deepest of them. Nothing is kept for gradients.
        """
        wanted = self.sites if sites is None else sites
        modules = [site.module for site in wanted]
        # Hooks sit on the shared model: a pass in another thread would fill, or end, this one's reading.
        with self._turn, torch.no_grad(), reading(self.model, modules, stop=True) as outputs:
            self._run(self.prepare(images))
        return [self._select(outputs[site.module], site.tokens or self.tokens) for site in wanted]

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch outputs"]:
        """Return what the whole model says of each image, as `output` does; gradients may flow."""
        return _pooled(self._run(self.prepare(images)))

    def output(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch outputs"]:
        """Return what the whole model says of each image: class logits where it has a head, else pooled features."""
        with torch.no_grad():
            return self.forward(images)

    @contextmanager
    def replacing(self, site: Site, function: Replacement) -> Iterator[None]:
        """While the block runs, `function` [batch, tokens, d] → same shape replaces the selected tokens at `site`.

        The tokens that are not selected pass unchanged. Pooled tokens (`mean`) cannot be put back.
        """
        if "mean" in (site.tokens, self.tokens):
            raise RequestError("tokens: mean cannot be replaced in the model; use patches, cls or all")
        start = self.prefix_tokens if self.tokens == "patches" else 0
        stop = 1 if self.tokens == "cls" else None

        def changed(output: Tensor) -> Tensor:
            tokens = _as_rows(output).clone()
            tokens[:, start:stop] = function(tokens[:, start:stop]).to(output.dtype)
            return tokens.view_as(output)

        with replacing(self.model, site.module, changed):
            yield

    def prepare(self, images: Tensor) -> Tensor:
        """Return `images` on the model's device, in its dtype."""
        return images.to(self.device, self.dtype if images.is_floating_point() else None)

    def describe_site(self, site: Site) -> dict:
        """Return a site as JSON types; "digest" is its identity: weights, module, tokens, preprocessing."""
        identity = {
            "weights": self.weights_digest,
            "module": site.module,
            "tokens": site.tokens or self.tokens,
            "preprocessing": self.transform.describe(),
        }
        return {
            "backbone": self.name,
            "folder": site.folder,
            "layer": site.layer,
            "label": site.label,
            "d": site.d,
            **identity,
            "digest": digest_json(identity),
        }

    def describe(self) -> dict:
        """Return the model as JSON types: name, weights, layout, preprocessing, precision."""
        return {
            "name": self.name,
            "weights": self.weights_digest,
            "layers": self.n_layers,
            "grid": None if self.grid is None else list(self.grid),
            "prefix_tokens": self.prefix_tokens,
            "tokens": self.tokens,
            "precision": self.precision,
            "preprocessing": self.transform.describe(),
        }

    def _resolve(self, layer: int | str) -> list[tuple[str, int | None]]:
        if isinstance(layer, int):
            if not 1 <= layer <= self.n_layers:
                raise RequestError(f"{self.name} has layers 1 to {self.n_layers}; layer {layer} was asked for")
            return [(self._blocks[layer - 1], layer)]
        names = [name for name, _ in self.model.named_modules() if name]
        found = sorted(
            (n for n in names if fnmatch.fnmatchcase(n, layer) and n.count(".") == layer.count(".")), key=_natural
        )
        if not found:
            raise RequestError(f"{self.name} has no module {layer!r}; its blocks are {_span(self._blocks)}")
        return [(name, self._blocks.index(name) + 1 if name in self._blocks else None) for name in found]

    def _sites_of(self, layer: int | str) -> list[Site]:
        resolved = self._resolve(layer)
        missing = [module for module, _ in resolved if module not in self._shapes]
        if missing:
            self._probe(missing)
        for module, _ in resolved:
            self._check(module)
        return [Site(module, number, self._shapes[module][-1]) for module, number in resolved]

    def _probe(self, modules: list[str]) -> Any:
        height, width = self._transform.geometry.crop
        image = torch.zeros(1, 1 if self._transform.gray else 3, height, width, device=self.device, dtype=self.dtype)
        first = self._blocks[0] if self._blocks else None
        wanted = [*modules, first] if first else modules
        seen = probe(self.model, self._run, image, wanted, first)
        silent = [module for module in wanted if module not in seen.shapes]
        if silent:
            raise RequestError(f"module {silent[0]!r} of {self.name} takes no part in a forward pass: choose another")
        self._shapes |= seen.shapes
        return seen

    def _read_layout(self, seen: Any, parts: Parts) -> TokenLayout:
        shape = self._shapes[self._blocks[0]] if self._blocks else next(iter(self._shapes.values()))
        tokens = math.prod(shape[1:-1])
        return read_layout(self.name, self.model, seen, tokens, parts.declared)

    def _with_grid(self, patch: tuple[int, int] | None) -> Transform:
        geometry = self._transform.geometry
        height, width = geometry.crop
        if self.grid is None:
            patch = geometry.crop
        elif patch is None or (height // patch[0], width // patch[1]) != self.grid:
            # A stem of several convolutions has no one patch size.
            patch = height // self.grid[0], width // self.grid[1]
        return self._transform.with_geometry(replace(geometry, grid=self.grid, patch=patch))

    def _check(self, module: str) -> None:
        shape = self._shapes[module]
        flat_model = bool(self._blocks) and len(self._shapes[self._blocks[0]]) == 2
        if len(shape) == 2 and (self.tokens != "patches" or flat_model):
            return
        if len(shape) == 4 and shape[1:3] == self.grid and self.tokens != "cls":
            return
        if len(shape) != 3:
            hint = " (it gives one vector an image: ask for tokens: all)" if len(shape) == 2 else ""
            raise RequestError(f"module {module!r} gives shape {list(shape)}, not [images, tokens, d]{hint}")
        if self.tokens == "cls" and not self.layout.has_class_token:
            raise RequestError(f"{self.name} has no CLS token: use tokens: patches, mean or all")
        if self.tokens != "all" and self.grid is None:
            raise RequestError(
                f"the patch grid of {self.name} is unknown: use tokens: all, or wrap(…, grid=(rows, columns))"
            )
        if self.layout.tokens is not None and shape[1] != self.layout.tokens and self.tokens != "all":
            raise RequestError(
                f"module {module!r} gives {shape[1]} tokens where {self.name} has {self.layout.tokens}: "
                "they cannot be told apart; use tokens: all"
            )

    def _select(self, output: Tensor, tokens: Tokens) -> Tensor:
        output = _as_rows(output)
        if output.shape[1] == 1:
            return output
        if tokens == "cls":
            return output[:, :1]
        if tokens == "patches":
            return output[:, self.prefix_tokens :]
        if tokens == "mean":
            return output[:, self.prefix_tokens :].float().mean(1, keepdim=True)
        return output


def _as_rows(output: Tensor) -> Tensor:
    """[batch, d] and [batch, rows, columns, d] as [batch, tokens, d]."""
    return output[:, None] if output.ndim == 2 else output.flatten(1, -2)


def _pooled(output: Any) -> Tensor:
    for name in ("logits", "pooler_output", "last_hidden_state"):
        if getattr(output, name, None) is not None:
            output = getattr(output, name)
            break
    if isinstance(output, tuple | list):
        output = output[0]
    return output.mean(1) if output.ndim == 3 else output


def _natural(path: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"\.", path)]


def _span(paths: list[str]) -> str:
    return f"{paths[0]} to {paths[-1]}" if paths else "not known"
