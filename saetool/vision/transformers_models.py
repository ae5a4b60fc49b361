"""Backbones of the transformers library: `hf/NAME`, or `hf/PATH` of a local folder; of CLIP and SigLIP the vision half.

With `pretrained: false`, a model type alone (`hf/dinov2`) gives that type's default architecture, without a hub.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from saetool.artifacts import hub
from saetool.errors import RequestError, SaetoolError, WorkError, first_line
from saetool.vision.backbone import Parts
from saetool.vision.geometry import Geometry
from saetool.vision.layout import TokenLayout
from saetool.vision.probe import block_paths
from saetool.vision.settings import BackboneSettings
from saetool.vision.transform import IMAGENET_MEAN, IMAGENET_STD, Transform
from saetool.vision.weights import digest_weights, read_weights, settle

USUAL_SIZE = 224
"""Input in pixels of a model that says nothing of it."""


def load(settings: BackboneSettings, precision: str, device: torch.device) -> Parts:
    """Load `hf/NAME`; randomly initialized where `pretrained` is false (the caller seeds torch)."""
    source = settings.name.removeprefix("hf/")
    local = Path(source).expanduser().is_dir()
    here = local or _is_model_type(source, settings)
    with nullcontext() if here else hub.reaching(), _explained(settings.name, local):
        whole = _create(source, settings)
        model: Any = _without_classifier(whole)
        config: Any = model.config
        transform = _transform(source, config, settings)
        patch = _patch_of(config)
        grid = (transform.geometry.crop[0] // patch[0], transform.geometry.crop[1] // patch[1]) if patch else None
    digest = digest_weights(model.state_dict().items())
    whole = settle(whole, precision, device)
    return Parts(
        name=settings.name,
        model=model,
        transform=transform,
        blocks=_block_paths(model, getattr(config, "num_hidden_layers", None)),
        run=_runner(whole, transform, patch, grid),
        weights_digest=digest,
        whole=whole,
        declared=TokenLayout(_prefix_tokens(model), grid) if grid and hasattr(config, "hidden_size") else None,
        patch=patch,
    )


@contextmanager
def _explained(name: str, local: bool) -> Iterator[None]:
    """Turn what goes wrong with a model's files into a message: every reader of damaged ones has errors of its own."""
    try:
        yield
    except (SaetoolError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise RequestError(
                f"{name} wants to run Python code that comes with it (auto_map), which saetool never does. "
                "Take a model of a type that transformers knows, or load it yourself and hand it to saetool.vision.wrap"
            ) from None
        if not local:
            raise _unreachable(name, error) from None
        raise WorkError(
            f"{name} cannot be loaded: the folder's files are damaged, or no model's "
            f"({type(error).__name__}: {first_line(error)}). Fetch them again"
        ) from None


def _create(source: str, settings: BackboneSettings) -> Any:
    """Return the model; with the classifier that its weights were published with, where they were."""
    config = _config(source, settings)
    config = getattr(config, "vision_config", config)
    if hasattr(config, "num_frames"):
        raise RequestError(
            f"{settings.name} looks at videos ({type(config).__name__}); saetool gives it single pictures"
        )
    state = read_weights(settings.weights) if settings.weights else None
    kind = _kind(config, settings, state)
    # The pooler is not among a classifier's weights: it would be random.
    plain = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(kind).parameters else {}
    try:
        with _quiet():
            if not settings.pretrained and state is None:
                return _ready(kind(config, **plain))
            # With a file of its own, the library still translates names between its versions.
            place, given = (None, {"state_dict": state}) if state is not None else (_place(source), {})
            model, report = kind.from_pretrained(
                place, config=config, dtype=torch.float32, output_loading_info=True, **given, **plain
            )
    except ImportError as error:
        raise RequestError(f"{settings.name} needs a library that is not installed: {first_line(error)}") from None
    except (OSError, ValueError, RuntimeError) as error:
        if settings.weights is None:
            raise
        raise RequestError(f"{settings.weights} does not fit {settings.name}: {first_line(error)}") from None
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        given = settings.weights or settings.name
        raise RequestError(f"{given} lacks {len(missing)} of the vision model's weights, {missing[0]!r} among them")
    return _ready(model)


def _without_classifier(whole: Any) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    return whole if type(whole) is MODEL_MAPPING[type(whole.config)] else whole.base_model


def _kind(config: Any, settings: BackboneSettings, state: dict[str, Tensor] | None) -> Any:
    """Return the class to build: the classifier that was published, unless weights come without it; or the model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, MODEL_MAPPING

    if type(config) not in MODEL_MAPPING or not (hasattr(config, "patch_size") or hasattr(config, "num_channels")):
        raise RequestError(f"{settings.name} is no vision model that transformers knows ({type(config).__name__})")
    classifier: Any = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(type(config), None)
    kinds = classifier if isinstance(classifier, tuple) else (classifier,)
    published = getattr(config, "architectures", None) or []
    found = next((kind for kind in kinds if kind is not None and kind.__name__ in published), None)
    holds = state is None or any(name.startswith(("classifier.", "head.")) for name in state)
    return found if found is not None and holds else MODEL_MAPPING[type(config)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's report of the weights that were left out: a text half, a classifier."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _config(source: str, settings: BackboneSettings) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if _is_model_type(source, settings):
        return CONFIG_MAPPING[source]()
    return AutoConfig.from_pretrained(_place(source), trust_remote_code=False)


def _is_model_type(source: str, settings: BackboneSettings) -> bool:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return not settings.pretrained and source in CONFIG_MAPPING


def _place(source: str) -> str:
    folder = Path(source).expanduser()
    return str(folder) if folder.is_dir() else source


def _ready(model: Any) -> nn.Module:
    if hasattr(model.config, "mask_ratio"):
        # A masked autoencoder hides and shuffles patches; here it sees all of them.
        model.config.mask_ratio = 0.0
    return model


def _transform(source: str, config: Any, settings: BackboneSettings) -> Transform:
    if _is_model_type(source, settings):
        size = settings.size or _own_size(config)
        return Transform(Geometry("squash", size, size, size, None, "floor"), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(_place(source), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise
        raise WorkError(f"{settings.name} says nothing of its preprocessing ({first_line(error)})") from None
    return transform_of(processor, config, settings.size, settings.name)


def transform_of(processor: Any, config: Any, size: tuple[int, int] | None, name: str) -> Transform:
    """Return an image processor's evaluation preprocessing; `size` (height, width) replaces the model's input size.

    Raises RequestError for a rule that has no fixed input size.
    """
    resize, crop = _resize_rule(processor, config, name)
    if size is not None:
        scale = size[0] / crop[0], size[1] / crop[1]
        resize = (resize[0], (round(resize[1][0] * scale[0]), round(resize[1][1] * scale[1])))
        crop = size
    normalize = bool(processor.do_normalize)
    return Transform(
        Geometry(resize[0], resize[1], crop, crop, None, "floor"),  # pyright: ignore[reportArgumentType]
        interpolation=_interpolation(processor.resample),
        scale=processor.rescale_factor if processor.do_rescale else 1.0,
        mean=_three(processor.image_mean) if normalize else (0.0, 0.0, 0.0),
        std=_three(processor.image_std) if normalize else (1.0, 1.0, 1.0),
    )


def _three(values: Any) -> tuple[float, ...]:
    found = tuple(float(value) for value in values)
    if len(found) != 3:
        raise ValueError(f"mean and deviation of three channels are needed, not {len(found)}")
    return found


def _resize_rule(processor: Any, config: Any, name: str) -> tuple[tuple[str, tuple[int, int]], tuple[int, int]]:
    if hasattr(config, "num_patches") and not hasattr(config, "image_size"):
        # Patches are cut beforehand (SigLIP 2): one square input of as many patches as the position table has.
        return ("squash", _own_size(config)), _own_size(config)
    size = dict(processor.size or {}) if processor.do_resize else {}
    crop = dict(processor.crop_size or {}) if getattr(processor, "do_center_crop", False) else {}
    target = (crop["height"], crop["width"]) if crop else None
    if size.get("shortest_edge") and not size.get("longest_edge") and target:
        return ("shortest", (size["shortest_edge"],) * 2), target
    if size.get("height") and size.get("width"):
        squashed = size["height"], size["width"]
        return ("squash", squashed), target or squashed
    if not size and target:
        return ("none", target), target
    raise RequestError(f"the image processor of {name} gives no fixed input size (size {size}, crop {crop})")


def _runner(
    model: Any, transform: Transform, patch: tuple[int, int] | None, grid: tuple[int, int] | None
) -> Callable[[Tensor], Any]:
    parameters = inspect.signature(model.forward).parameters
    if "spatial_shapes" in parameters and patch and grid:
        return lambda images: model(**_as_patches(images, patch, grid))
    foreign_size = _own_size(model.config) != transform.geometry.crop
    extra = {"interpolate_pos_encoding": True} if foreign_size and "interpolate_pos_encoding" in parameters else {}
    if "noise" in parameters and grid:
        # A masked autoencoder sorts its patches by noise: ordered noise leaves them in place.
        order = torch.arange(grid[0] * grid[1])
        return lambda images: model(images, noise=order.to(images.device).expand(len(images), -1), **extra)
    return lambda images: model(images, **extra)


def _as_patches(
    images: Float[Tensor, "batch c h w"], patch: tuple[int, int], grid: tuple[int, int]
) -> dict[str, Tensor]:
    pixels = rearrange(images, "b c (rows h) (columns w) -> b (rows columns) (h w c)", h=patch[0], w=patch[1])
    return {
        "pixel_values": pixels,
        "pixel_attention_mask": torch.ones(pixels.shape[:2], dtype=torch.long, device=images.device),
        "spatial_shapes": torch.tensor([grid], device=images.device).expand(len(images), -1),
    }


def _prefix_tokens(model: nn.Module) -> int:
    sizes = {path.rpartition(".")[2]: parameter.numel() for path, parameter in model.named_parameters()}
    width: int = model.config.hidden_size  # pyright: ignore[reportAssignmentType, reportAttributeAccessIssue]
    names = ("cls_token", "class_embedding", "distillation_token", "register_tokens")
    return sum(sizes.get(name, 0) for name in names) // width


def _block_paths(model: nn.Module, count: int | None) -> list[str]:
    lists = [path for path, child in model.named_modules() if isinstance(child, nn.ModuleList) and len(child) == count]
    return [f"{lists[0]}.{i}" for i in range(len(model.get_submodule(lists[0])))] if lists else block_paths(model)  # pyright: ignore[reportArgumentType]


def _patch_of(config: Any) -> tuple[int, int] | None:
    """Return the patch size in pixels; None where a stem of several sizes has no one."""
    size = getattr(config, "patch_size", None)
    return _pair(size) if isinstance(size, int) or (isinstance(size, list | tuple) and len(size) == 2) else None


def _own_size(config: Any) -> tuple[int, int]:
    if getattr(config, "image_size", None):
        return _pair(config.image_size)
    patch = _patch_of(config)
    if hasattr(config, "num_patches") and patch:
        side = math.isqrt(config.num_patches) * patch[0]
        return side, side
    return USUAL_SIZE, USUAL_SIZE


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _interpolation(resample: Any) -> Any:
    from PIL import Image

    return "bilinear" if resample is None else Image.Resampling(int(resample)).name.lower()


def _unreachable(name: str, error: Exception) -> WorkError:
    reason = hub.why_unreachable() or first_line(error)
    return WorkError(
        f"{name} could not be loaded ({reason}). Without a hub, name a local folder (hf/PATH), or random weights of a "
        "model type (hf/dinov2 with backbone.pretrained=false)"
    )
