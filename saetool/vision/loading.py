"""From a backbone's name, or from a module, to a backbone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from saetool import seeding
from saetool.errors import RequestError, type_name
from saetool.vision.backbone import Backbone, Parts
from saetool.vision.geometry import Geometry
from saetool.vision.layout import TokenLayout
from saetool.vision.paths import submodule
from saetool.vision.probe import block_paths
from saetool.vision.settings import PIXELS, BackboneSettings, Tokens, as_settings
from saetool.vision.transform import IMAGENET_MEAN, IMAGENET_STD, Transform
from saetool.vision.weights import digest_weights, resolve_precision


def load_backbone(
    settings: BackboneSettings | Mapping[str, Any] | str, seed: int = 0, device: str | torch.device | None = None
) -> Backbone:
    """Load the backbone of settings, or of a name, on `device` (default: CUDA where there is one, else the CPU).

    `seed` decides the weights where `pretrained` is false. Raises RequestError for names, layers or tokens that do not
    exist, WorkError where weights cannot be fetched.

    >>> saetool.load_backbone({"name": "timm/test_vit", "layers": [2], "pretrained": False}).sites[0].label
    'layer 2 (blocks.1)'
    """
    settings = as_settings(settings, "load_backbone")
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    precision = resolve_precision(settings, where)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.derive(seed, "backbone", settings.name))
        parts = _loader(settings.name)(settings, precision, where)
    return Backbone(parts, settings.layers, settings.tokens, precision)


def wrap(
    module: nn.Module,
    layers: Sequence[int | str],
    tokens: Tokens = "patches",
    *,
    name: str | None = None,
    image_size: int | tuple[int, int] = 224,
    transform: Transform | None = None,
    blocks: str | None = None,
    grid: tuple[int, int] | None = None,
    prefix_tokens: int = 0,
    run: Callable[[Tensor], Any] | None = None,
) -> Backbone:
    """Make a backbone of any module, as it is (device, dtype), frozen and in evaluation mode.

    transform: default squashes to `image_size` with ImageNet's mean and standard deviation. blocks: path of the list of
    layers; default: the longest list of modules of one class. grid, prefix_tokens: where a probe cannot find which
    token is which patch; they are believed. run: a forward pass, where it is not `module(images)`.

    >>> module = timm.create_model("test_vit", img_size=32)
    >>> backbone = saetool.wrap(module, layers=[2], image_size=32)
    >>> backbone.forward_to(torch.rand(3, 3, 32, 32))[0].shape         # pictures, patches, width
    torch.Size([3, 4, 64])
    """
    if not isinstance(module, nn.Module):
        raise RequestError(f"wrap takes a torch.nn.Module, not {type_name(module)}; names go to load_backbone.")
    asked = as_settings({"name": "module", "layers": layers, "tokens": tokens, "image_size": image_size}, "wrap")
    size = asked.size or (224, 224)
    geometry = Geometry("squash", size, size, patch=size, grid=None)
    parameter = next(module.parameters(), torch.empty(0))
    parts = Parts(
        name=name or type(module).__name__,
        model=module.eval().requires_grad_(False),
        transform=transform or Transform(geometry, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        blocks=block_paths(module) if blocks is None else _children(module, blocks),
        run=run or module,
        weights_digest=digest_weights(module.state_dict().items()),
        declared=None if grid is None else TokenLayout(prefix_tokens, grid),
        believed=grid is not None,
    )
    names = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
    return Backbone(parts, asked.layers, asked.tokens, names.get(parameter.dtype, "fp32"))


def _loader(name: str) -> Callable[[BackboneSettings, str, torch.device], Parts]:
    if name == "demo/vits14":
        from saetool.vision import demo_model

        return demo_model.load
    if name.startswith("timm/"):
        from saetool.vision import timm_models

        return timm_models.load
    if name.startswith("hf/"):
        from saetool.vision import transformers_models

        return transformers_models.load
    if name in PIXELS:
        return _pixels
    raise RequestError(
        f"backbone.name: {name!r} is none of timm/NAME, hf/NAME, demo/vits14, pixels, pixels/gray"
        + (f"; did you mean timm/{name}?" if "/" not in name else "")
    )


def _children(module: nn.Module, path: str) -> list[str]:
    return [f"{path}.{key}" for key, _ in submodule(module, path).named_children()]


def _pixels(settings: BackboneSettings, precision: str, device: torch.device) -> Parts:
    """Make the backbone that flattens images of `image_size`: d = channels · height · width, rows within channels."""
    if settings.size is None:
        raise RequestError("backbone.name: pixels needs backbone.image_size (8 for digits, 28 for mnist)")
    gray = settings.name == "pixels/gray"
    channels = 1 if gray else 3
    model = nn.Sequential(nn.Flatten()).to(device)
    return Parts(
        name=settings.name,
        model=model,
        transform=Transform(
            Geometry("squash", settings.size, settings.size, settings.size, None),
            interpolation="bilinear",
            mean=(0.0,) * channels,
            std=(1.0,) * channels,
            fill=(0,) * channels,
            gray=gray,
        ),
        blocks=["0"],
        run=model,
        weights_digest="none",
    )
