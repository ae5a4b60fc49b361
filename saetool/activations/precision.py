"""What fewer bits cost: the error of a low-precision forward pass and of the stored type."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from saetool.activations.decoding import DecodedSlice
from saetool.vision import Backbone, Site

_IMAGES = 8
"""Images compared: thousands of tokens, and a second of float32 on a small CPU."""


def measure_errors(
    backbone: Backbone,
    reference: Callable[[], Backbone] | None,
    sites: Sequence[Site],
    first: DecodedSlice,
    stored: torch.dtype,
) -> dict[str, dict[str, float]]:
    """Return, by site folder, relative RMS errors: `round_trip` of the stored type, `forward` against float32.

    `reference` loads the float32 model. Without one (the pass is float32 already, or the module is the caller's own)
    `forward` is left out and the round trip is that of the outputs as they are.
    """
    if not first.kept:
        return {}
    batch = backbone.inputs(first.pixels[first.kept[:_IMAGES]])
    outputs = backbone.forward_to(batch, sites)
    exacts = outputs if reference is None else reference().forward_to(batch, sites)
    errors = {}
    for site, output, exact in zip(sites, outputs, exacts, strict=True):
        found = {"round_trip": relative_error(exact.to(stored), exact)}
        if reference is not None:
            found["forward"] = relative_error(output, exact)
        # Values that are not finite have no error; the job stops at them soon enough and names the image.
        errors[site.folder] = {name: value for name, value in found.items() if math.isfinite(value)}
    return errors


def relative_error(approximate: Tensor, exact: Tensor) -> float:
    """Return ‖approximate − exact‖ / ‖exact‖ over all values."""
    difference = torch.linalg.vector_norm(approximate.double() - exact.double())
    return float(difference / torch.linalg.vector_norm(exact.double()).clamp(min=1e-300))
