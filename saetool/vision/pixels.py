"""Backbones `pixels` and `pixels/gray`: no model; an image is one token, its values from 0 to 1."""

import torch
from torch import nn

from saetool.errors import RequestError
from saetool.vision.backbone import Parts
from saetool.vision.geometry import Geometry
from saetool.vision.settings import BackboneSettings
from saetool.vision.transform import Transform


def load(settings: BackboneSettings, precision: str, device: torch.device) -> Parts:
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
