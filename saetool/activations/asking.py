"""What a Python call was given as model, images and settings becomes what the stages take, or one sentence."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from saetool.activations.settings import CacheSettings
from saetool.errors import RequestError, type_name
from saetool.images import ImageSettings
from saetool.images.settings import is_section
from saetool.settings import Settings
from saetool.validation import request
from saetool.vision.settings import BackboneSettings, as_settings

if TYPE_CHECKING:
    from saetool.images import ImageSource
    from saetool.vision import Backbone


class _Request(Settings):
    cache: CacheSettings = CacheSettings()
    backbone: BackboneSettings = BackboneSettings()
    images: ImageSettings = ImageSettings()
    seed: int = Field(default=0, ge=0)


def asked_of(
    call: str, backbone: Any, images: Any, layers: Any, cache: Any, seed: Any, keywords: Mapping[str, Any]
) -> "tuple[Backbone | BackboneSettings, ImageSource | ImageSettings, CacheSettings, int]":
    """Return what caching is asked for: model, images, how they are stored and a seed; RequestError names what is
    wrong and the way out.

    `backbone` and `images` are names, settings, mappings, or opened already: then `keywords` may not be keys of them.
    """
    model: Any = {"name": backbone} if isinstance(backbone, str) else backbone
    source: Any = {"source": os.fspath(images)} if isinstance(images, str | os.PathLike) else images
    opened = [name for name, given in (("backbone", model), ("images", source)) if not is_section(given)]
    sections = {"cache": cache, "backbone": model, "images": source}
    sections = {name: given for name, given in sections.items() if name not in opened}
    if layers is not None and "backbone" in sections:
        layers = layers.tolist() if isinstance(layers, np.ndarray) else layers
        keys = model if isinstance(model, Mapping) else model.model_dump(exclude_unset=True)
        sections["backbone"] = {**keys, "layers": layers}
    _refuse_keys_of_opened(call, opened, sections, keywords)
    asked = request(_Request, call, sections, keywords, {"seed": seed})
    model = model if "backbone" in opened else asked.backbone
    return model, source if "images" in opened else asked.images, asked.cache, asked.seed


def as_backbone(given: Any, call: str) -> "BackboneSettings | Backbone | None":
    """Return a loaded backbone or None as it is, anything else as settings; RequestError where it is neither."""
    from saetool.vision import Backbone

    return given if given is None or isinstance(given, Backbone) else as_settings(given, call)


def no_backbone(given: Any, call: str) -> RequestError:
    """Return why something is no backbone, and what would be."""
    module = " (wrap says what a module of your own is)" if hasattr(given, "named_modules") else ""
    ways = "a name such as timm/NAME, its settings, or what saetool.load_backbone and saetool.wrap return"
    return RequestError(f"{call} takes no {type_name(given)} as backbone: give {ways}{module}.")


def _refuse_keys_of_opened(call: str, opened: list[str], sections: Mapping, keywords: Mapping[str, Any]) -> None:
    kinds = {"backbone": (BackboneSettings, "load_backbone or wrap"), "images": (ImageSettings, "open_source")}
    for name in opened:
        model, where = kinds[name]
        late = [key for key in keywords if key in model.model_fields]
        if late:
            raise RequestError(f"{call}: {late[0]}: the {name} given are made already: say it to {where}.")
