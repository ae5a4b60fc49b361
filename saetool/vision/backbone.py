"""A model with its preprocessing, its token layout and its sites: what the caching job and the evaluation see."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import RLock
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from saetool import seeding
from saetool.artifacts import digest_json
from saetool.errors import RequestError, SaetoolError, WorkError, first_line, shown
from saetool.vision.hooks import Replacement, reading, replacing
from saetool.vision.layout import TokenLayout, has_class_token, possible_grids, prove
from saetool.vision.paths import matching_paths
from saetool.vision.probe import Output, block_paths, look
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
    whole: nn.Module | None = None
    """What `run` calls, where that is more than `model`: a classifier around it."""
    declared: TokenLayout | None = None
    """What the library says of the token layout, compared with the probe's; or what the caller says."""
    believed: bool = False
    """Whether `declared` is the caller's word, which no probe contradicts."""
    patch: tuple[int, int] | None = None
    """Patch size in input pixels, where the library says it."""


class Backbone:
    """A frozen vision model that gives the tokens at its sites.

    name: as in the config; tokens: which tokens are kept; sites: those asked for at loading, in their order;
    layout: the model's tokens; transform: from a picture to its input; precision: "fp32" or "bf16", as it became;
    weights_digest: `xxh3-128:…` of the weights as published.
    """

    whole: nn.Module
    """The model with the head around it, where there is one: what `forward` runs."""

    def __init__(self, parts: Parts, layers: Sequence[int | str], tokens: Tokens, precision: str = "fp32"):
        self.name = parts.name
        self.model = parts.model
        self.whole = parts.whole or parts.model
        self.weights_digest = parts.weights_digest
        self.tokens: Tokens = tokens
        self.precision = precision
        self._run = parts.run
        self._blocks = parts.blocks
        self._transform = parts.transform
        self._declared, self._believed = parts.declared, parts.believed
        self._outputs: dict[str, Output] = {}
        self._layouts: dict[str, TokenLayout] = {}
        self._grids: list[tuple[int, int]] = []
        parameter = next(self.model.parameters(), torch.empty(0))
        self.device, self.dtype = parameter.device, parameter.dtype
        self._turn = RLock()

        modules = [module for layer in layers for module, _ in self._resolve(layer)]
        stride = self._probe(modules)
        self.layout = self._layout_of(self._reference(modules))
        self.transform = self._with_grid(stride or parts.patch)
        self.sites = self.sites_of(layers)

    def __repr__(self) -> str:
        sites = ", ".join(f"{site.label}: {site.d}" for site in self.sites)
        return f"Backbone({self.name}, {self.n_layers} layers, {self.tokens}, grid {self.grid}; widths at {sites})"

    @property
    def n_layers(self) -> int:
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
        tokens, n_tokens = site.tokens or self.tokens, self._n_tokens(site.module)
        if tokens in ("cls", "mean") or n_tokens == 1:
            return 1
        return len(range(n_tokens)[self._layout_of(site.module).patches]) if tokens == "patches" else n_tokens

    def forward_to(
        self, images: Float[Tensor, "batch channels height width"], sites: Sequence[Site] | None = None
    ) -> list[Float[Tensor, "batch tokens d"]]:
        """Return the selected tokens at `sites` (default: all asked for), in the dtype they were computed in.

        The forward pass ends at the deepest of them. Nothing is kept for gradients.
        """
        wanted = self.sites if sites is None else sites
        outputs = self._read(images, [site.module for site in wanted])
        for module in (site.module for site in wanted):
            if len(outputs[module]) != len(images):
                given = list(outputs[module].shape)
                raise WorkError(f"module {module!r} gives shape {given} for {len(images)} images: name another module")
        return [self._select(outputs[site.module], site) for site in wanted]

    @torch.no_grad()
    def _read(self, images: Tensor, modules: Sequence[str]) -> dict[str, Tensor]:
        """Return modules' outputs as they give them."""
        places = {module: self._output(module).place for module in modules}
        # Hooks sit on the shared model: a pass in another thread would fill, or end, this one's reading.
        with self._turn, reading(self.model, modules, True, places) as outputs:
            self._run(self.prepare(images))
        return outputs

    def inputs(
        self, pixels: UInt8[Tensor, "batch height width channels"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Return decoded pixels as the model's input, scaled and normalized on its device; nothing waits for it."""
        return self.transform.normalize(pixels.to(self.device, non_blocking=True))

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
        layout = self._layout_of(site.module)
        chosen = {"patches": layout.patches, "cls": slice(0, 1)}.get(site.tokens or self.tokens, slice(None))

        looked = self._output(site.module)

        def changed(output: Tensor) -> Tensor:
            tokens = looked.rows(output).clone()
            tokens[:, chosen] = function(tokens[:, chosen]).to(output.dtype)
            return looked.of_rows(tokens)

        with replacing(self.model, site.module, changed, looked.place):
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
            if not self._blocks:
                near = block_paths(self.model)
                hint = f", such as {near[0]} to {near[-1]}" if near else ""
                raise RequestError(f"{self.name} has no numbered layers: name modules by their paths{hint}")
            if not 1 <= layer <= self.n_layers:
                raise RequestError(f"{self.name} has layers 1 to {self.n_layers}; layer {layer} was asked for")
            return [(self._blocks[layer - 1], layer)]
        found = matching_paths(self.model, layer)
        if not found:
            blocks = f"{self._blocks[0]} to {self._blocks[-1]}" if self._blocks else "not known"
            raise RequestError(f"{self.name} has no module {layer!r}; its blocks are {blocks}")
        return [(name, self._blocks.index(name) + 1 if name in self._blocks else None) for name in found]

    def _sites_of(self, layer: int | str) -> list[Site]:
        if not isinstance(layer, int | str):
            raise RequestError(f"a site is a layer counted from 1 or a module's path, not {shown(layer)}.")
        resolved = self._resolve(layer)
        missing = [module for module, _ in resolved if module not in self._outputs]
        if missing:
            self._probe(missing)
        for module, _ in resolved:
            self._check(module)
        return [Site(module, number, self._output(module).d) for module, number in resolved]

    def _probe(self, modules: list[str]) -> tuple[int, int] | None:
        """Look at modules' outputs; return the stride of the patch embedding, where there is one."""
        noise = torch.randn(2, *self._picture, generator=seeding.generator(0, "pictures of the probe"))
        first = self._blocks[0] if self._blocks else None
        wanted = [*modules, first] if first and first not in self._outputs else modules
        try:
            with self._turn:
                seen = look(self.model, self._run, self.prepare(noise), wanted, first)
        except (SaetoolError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # another's code: it has its own ways to say that a size or an input does not suit
            raise RequestError(
                f"{self.name} cannot look at pictures of {noise.shape[-2]}×{noise.shape[-1]} pixels "
                f"({first_line(error)}): give the size it takes (image_size), or hand the module to "
                "saetool.vision.wrap with a forward pass of its own (run=…)"
            ) from error
        refused = [seen.refused[module] for module in modules if module in seen.refused]
        if refused:
            raise RequestError(f"{self.name}: {refused[0]}")
        self._outputs |= {path: self._orders(output)[0] for path, output in seen.outputs.items()}
        self._grids = self._grids or seen.grids
        return seen.patch_stride

    def _output(self, module: str) -> Output:
        """Return a module's output, looked at now where it was not asked for: as a site of a twin of this model."""
        if module not in self._outputs:
            self._probe([module])
        return self._outputs[module]

    @property
    def _picture(self) -> tuple[int, int, int]:
        """Channels, height and width of the model's input."""
        return (1 if self._transform.gray else 3, *self._transform.geometry.crop)

    def _n_tokens(self, module: str) -> int:
        return self._output(module).n_tokens

    def _reference(self, modules: list[str]) -> str:
        """Return the module whose layout is the backbone's: the first block, or where tokens differ the first site.

        Where every site gives one vector an image, so does the backbone.
        """
        if all(len(self._output(module).shape) == 1 for module in modules):
            return modules[0]
        first = self._blocks[0] if self._blocks and self._blocks[0] in self._outputs else modules[0]
        other = [module for module in modules if 1 < self._n_tokens(module) != self._n_tokens(first)]
        alike = any(self._n_tokens(module) == self._n_tokens(first) for module in modules)
        return other[0] if other and not alike else first

    def _layout_of(self, module: str) -> TokenLayout:
        if module not in self._layouts:
            self._layouts[module] = self._find_layout(module)
        return self._layouts[module]

    def _find_layout(self, module: str) -> TokenLayout:
        """Return the layout at a module: the first block's where the tokens are as many, else one of its own."""
        n_tokens, shape = self._n_tokens(module), self._output(module).shape
        first = self._blocks[0] if self._blocks else module
        if n_tokens == 1 or len(shape) > 3:
            return TokenLayout(0, None)
        if len(shape) == 3:
            return self._map_layout(module)
        if module != first and first in self._outputs and self._n_tokens(first) == n_tokens:
            return self._layout_of(first)
        declared = self._declared if self._declared and self._declared.tokens == n_tokens else None
        found = self._declared_at(module) if self._believed else self._proven(module, declared)
        return replace(found, has_class_token=found.prefix_tokens > 0 and has_class_token(self.model))

    def _declared_at(self, module: str) -> TokenLayout:
        """Return the caller's layout, taken at its word where a module has as many tokens."""
        said, n_tokens = self._declared, self._n_tokens(module)
        if said is None or said.tokens != n_tokens:
            says = f"declares {said.says()}, which makes {said.tokens} tokens" if said else "declares nothing"
            raise RequestError(
                f"{self.name} {says}, but {module!r} gives {n_tokens}: say the grid and prefix_tokens that it has there"
            )
        return said

    def _proven(self, module: str, declared: TokenLayout | None) -> TokenLayout:
        """Return the layout that the probe proves or, where it proves none, the one that the library declares."""
        hints = [*self._grids, *([declared.grid] if declared and declared.grid else [])]
        found = self._prove(module, possible_grids(self._n_tokens(module), self._picture[1:], hints))
        if found and declared and (found.prefix_tokens, found.grid) != (declared.prefix_tokens, declared.grid):
            raise RequestError(
                f"{self.name} declares {declared.says()}, but bright cells of a picture are answered as by "
                f"{found.says()}: its tokens cannot be told apart; hand the module to saetool.vision.wrap with the "
                "grid and prefix_tokens it has"
            )
        return declared or found or TokenLayout(0, None)

    def _map_layout(self, module: str) -> TokenLayout:
        """Return the layout of a map, once the probe has shown which of its axes are the rows and columns."""
        orders = self._orders(self._output(module))
        if self._believed and self._declared and (len(orders) == 1 or self._declared.grid != orders[0].grid):
            return self._declared_at(module)
        for order in orders:
            self._outputs[module] = order
            found = self._prove(module, [order.grid] if order.grid else [])
            if found:
                return found
        self._outputs[module] = orders[0]
        return self._declared_at(module) if self._believed else TokenLayout(0, None)

    def _orders(self, output: Output) -> list[Output]:
        """Return an output as it may be read: a map with its channels last or first, where its grid may be a picture's.

        A grid that the caller gives is the only one. Of two the probe decides; of none channels last stand first.
        """
        if output.grid is None:
            return [output]
        both = [output, output.turned()]
        if self._believed and self._declared and any(order.grid == self._declared.grid for order in both):
            return [order for order in both if order.grid == self._declared.grid]
        height, width = self._picture[1:]
        return [o for o in both if o.grid and abs(o.grid[0] - o.grid[1] * height / width) < 1] or both

    def _prove(self, module: str, grids: list[tuple[int, int]]) -> TokenLayout | None:
        def read(image: Tensor) -> Tensor:
            return self._outputs[module].rows(self._read(image, [module])[module])[0]

        return prove(read, self._picture, self._n_tokens(module), grids)

    def _with_grid(self, patch: tuple[int, int] | None) -> Transform:
        geometry = self._transform.geometry
        height, width = geometry.crop
        if self.grid is None:
            patch = geometry.crop
        elif patch is None or (height // patch[0], width // patch[1]) != self.grid:
            # A stem of several convolutions has no one patch size.
            patch = height // self.grid[0], width // self.grid[1]
        return replace(self._transform, geometry=replace(geometry, grid=self.grid, patch=patch))

    def _check(self, module: str) -> None:
        """Raise RequestError where the tokens asked for cannot be told at a module."""
        shape = self._output(module).shape
        if (len(shape) == 1 and (self.tokens != "patches" or self.grid is None)) or (
            len(shape) == 2 and self.tokens == "all"
        ):
            return
        layout = self._layout_of(module)
        if len(shape) not in (2, 3) or (len(shape) == 3 and layout.grid is None):
            hint = " (it gives one vector an image: ask for tokens: all)" if len(shape) == 1 else ""
            raise RequestError(f"module {module!r} gives shape {['images', *shape]}, not [images, tokens, d]{hint}")
        if self.tokens == "cls" and not layout.has_class_token:
            raise RequestError(f"{self.name} has no CLS token: use tokens: patches, mean or all")
        if self.tokens != "all" and layout.grid is None:
            raise RequestError(
                f"the patch grid of {self.name} is unknown at {module}: its {self._n_tokens(module)} tokens do not "
                "answer bright cells of a picture as rows and columns of patches would. Use tokens: all, or "
                "wrap(…, grid=(rows, columns), prefix_tokens=n)"
            )
        if self.tokens != "all" and layout.grid != self.grid:
            raise RequestError(
                f"{self.name} has {layout.says()} at {module}, where the other sites have {self.layout.says()}: "
                "a store holds one grid; cache them apart"
            )

    def _select(self, output: Tensor, site: Site) -> Tensor:
        output, tokens = self._output(site.module).rows(output), site.tokens or self.tokens
        if output.shape[1] == 1 or tokens == "all":
            return output
        if tokens == "cls":
            return output[:, :1]
        patches = output[:, self._layout_of(site.module).patches]
        return patches.float().mean(1, keepdim=True) if tokens == "mean" else patches


def _pooled(output: Any) -> Tensor:
    for name in ("logits", "pooler_output", "last_hidden_state"):
        if getattr(output, name, None) is not None:
            output = getattr(output, name)
            break
    if isinstance(output, tuple | list):
        output = output[0]
    if output.ndim == 4:  # what a convolutional model without a head gives: [batch, d, rows, columns]
        output = output.flatten(2).transpose(1, 2)
    return output.mean(1) if output.ndim == 3 else output
