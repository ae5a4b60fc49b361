"""The `backbone` section of a config."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator

from saetool.errors import RequestError, type_name
from saetool.settings import Settings
from saetool.validation import request

Tokens = Literal["patches", "cls", "all", "mean"]
Precision = Literal["auto", "fp32", "bf16"]
PIXELS = ("pixels", "pixels/gray")
"""Backbones without a model."""


class BackboneSettings(Settings):
    """Which model looks at the images, and which of its tokens are kept."""

    name: str = "demo/vits14"
    """`timm/NAME`, `hf/NAME` (or `hf/PATH`, a local folder), `demo/vits14`, `pixels` or `pixels/gray`."""
    layers: list[int | str] = Field(default=[10], min_length=1)
    """Layers counted from 1, or module paths, wildcards allowed (`blocks.*.mlp`); kept in this order."""
    tokens: Tokens = "patches"
    """Which tokens are kept: patches, the CLS token, all of them, or the mean over patches."""
    weights: str | None = None
    """A local weights file (.safetensors, or a torch file of tensors) in place of the published ones."""
    pretrained: bool = True
    """False: randomly initialized from the seed."""
    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    """Model input in pixels, one number or (height, width); null: what the model was published with."""
    precision: Precision = "auto"
    """Of the forward pass; auto is bf16 where it is fast (CUDA, CPUs with avx512_bf16 or amx), else fp32."""

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the model's input, where they are given."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @field_validator("layers")
    @classmethod
    def _layers_count_from_one(cls, layers: list[int | str]) -> list[int | str]:
        wrong = [layer for layer in layers if isinstance(layer, int) and layer < 1]
        if wrong:
            raise ValueError(f"layers count from 1: {wrong[0]} is none (1 is the first block's output)")
        return layers


class _Request(Settings):
    backbone: BackboneSettings


def as_settings(given: Any, call: str) -> BackboneSettings:
    """Return a backbone's settings from its name, from a mapping, or as they are; RequestError for anything else."""
    if not isinstance(given, str | Mapping | BackboneSettings):
        module = "; saetool.wrap takes a module" if hasattr(given, "named_modules") else ""
        raise RequestError(f"{call} takes no {type_name(given)}: give a name such as timm/NAME, or settings{module}.")
    section = {"name": given} if isinstance(given, str) else given
    return request(_Request, call, {"backbone": section}, {}).backbone
