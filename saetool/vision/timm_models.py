"""Backbones of the timm library: `timm/NAME`, with the pretrained tag in the name where one is wanted."""

import difflib
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from saetool.artifacts import hub
from saetool.errors import RequestError, WorkError, first_line
from saetool.vision.backbone import Parts
from saetool.vision.geometry import Geometry
from saetool.vision.layout import TokenLayout
from saetool.vision.settings import BackboneSettings
from saetool.vision.transform import Transform
from saetool.vision.weights import digest_weights, fill, read_weights, settle


def load(settings: BackboneSettings, precision: str, device: torch.device) -> Parts:
    """Load `timm/NAME`; randomly initialized where `pretrained` is false (the caller seeds torch)."""
    model = create(settings)
    if settings.weights is not None:
        state = _in_timm_names(model, read_weights(settings.weights), settings.weights)
        _fit_classifier(model, state)
        fill(model, state, settings.weights)
    return parts_of(settings.name, model, timm_transform(model, settings.size), precision, device)


def create(settings: BackboneSettings) -> nn.Module:
    """Create the timm model; RequestError for an unknown name, WorkError where its weights cannot be fetched."""
    import timm

    name = settings.name.removeprefix("timm/")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(pretrained=False), n=3, cutoff=0.6)
        raise RequestError(f"timm has no model {name!r}" + (f"; near it: {', '.join(near)}" if near else ""))
    size: dict[str, Any] = {} if settings.image_size is None else {"img_size": settings.image_size}
    pretrained = settings.pretrained and settings.weights is None
    try:
        with hub.reaching() if pretrained else nullcontext():
            return timm.create_model(name, pretrained=pretrained, **size)
    except TypeError as error:
        raise RequestError(f"timm/{name} cannot be made with image_size {settings.image_size}: {error}") from None
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        reason = hub.why_unreachable() or first_line(error)
        raise WorkError(
            f"the weights of {settings.name} could not be fetched ({reason}). Without a hub, give a local file "
            "(backbone.weights=FILE) or random weights (backbone.pretrained=false)"
        ) from None


def parts_of(
    name: str, model: nn.Module, transform: Transform, precision: str, device: torch.device, digest: str | None = None
) -> Parts:
    """Return a timm model as parts of a backbone; `digest` of its weights is computed where it is not given."""
    digest = digest or digest_weights(model.state_dict().items())
    model = settle(model, precision, device)
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    return Parts(
        name=name,
        model=model,
        transform=transform,
        blocks=_layers(model),
        run=model,
        weights_digest=digest,
        declared=_declared(model, transform),
        patch=tuple(patch) if isinstance(patch, tuple | list) else None,  # pyright: ignore[reportArgumentType]
    )


def _layers(model: Any) -> list[str]:
    """Return the blocks of a transformer; of a hierarchy (ResNet, ConvNeXt, Swin) its stages, the stem left out."""
    if hasattr(model, "blocks"):
        return [f"blocks.{i}" for i in range(len(model.blocks))]
    paths = [stage["module"] for stage in getattr(model, "feature_info", None) or []]
    modules = dict(model.named_modules())
    # A stem's entry is an activation or a norm, which holds nothing; a list of modules is never called.
    called = [path for path in paths if path in modules and not isinstance(modules[path], nn.ModuleList)]
    return [path for path in called if any(modules[path].children())] or called


def timm_transform(model: nn.Module, size: tuple[int, int] | None) -> Transform:
    """Return the evaluation preprocessing of the model's own data config, at `size` where it is given."""
    from timm.data.config import resolve_model_data_config

    config = resolve_model_data_config(model)
    crop = size or config["input_size"][1:]
    resize = tuple(int(side / config["crop_pct"]) for side in crop)
    mode = config["crop_mode"]
    rule = {"squash": "squash", "border": "longest"}.get(
        mode, "shortest" if resize[0] == resize[1] else "shortest_round"
    )
    return Transform(
        Geometry(rule, resize, tuple(crop), patch=tuple(crop), grid=None),  # pyright: ignore[reportArgumentType]
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        fill=tuple(round(255 * value) for value in config["mean"]) if mode == "border" else (0, 0, 0),
    )


def _declared(model: Any, transform: Transform) -> TokenLayout | None:
    if not hasattr(model, "num_prefix_tokens") or not hasattr(model, "patch_embed"):
        return None
    embed = model.patch_embed
    if hasattr(embed, "dynamic_feat_size"):
        grid = tuple(embed.dynamic_feat_size(transform.geometry.crop))
    elif getattr(embed, "grid_size", None) is not None:
        grid = tuple(embed.grid_size)
    else:
        return None
    return TokenLayout(model.num_prefix_tokens, grid, getattr(model, "cls_token", None) is not None)  # pyright: ignore[reportArgumentType]


def _fit_classifier(model: Any, state: dict[str, Tensor]) -> None:
    """Give the model as many classes as the weights know; none where they come without a classifier."""
    name = model.pretrained_cfg.get("classifier")
    if isinstance(name, str):
        weight = state.get(f"{name}.weight")
        classes = 0 if weight is None else weight.shape[0]
        if classes != model.num_classes:
            model.reset_classifier(classes)


def _in_timm_names(model: nn.Module, state: dict, path: str) -> dict:
    """Translate an original checkpoint's names with the model's own filter, where names differ."""
    import sys

    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if translate is None or set(model.state_dict()) <= set(state):
        return state
    try:
        return translate(state, model)
    except (KeyError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise RequestError(f"{path} does not fit {type(model).__name__}: {error}") from None
