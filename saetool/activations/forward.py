"""From decoded slices to rows as they are stored, and their moments; for a GPU all is queued and nothing waits.

And what fewer bits cost: the error of a low-precision forward pass and of the stored type.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from saetool.activations.decoding import DecodedSlice
from saetool.activations.moments import SiteMoments
from saetool.lanes import Lanes
from saetool.vision import Backbone, Site

Landed = list[tuple[Tensor, SiteMoments]]
"""Of each site: the kept images' rows [images, tokens, d] in the stored dtype on the CPU, and their moments."""
_IMAGES = 8
"""Images compared: thousands of tokens, and a second of float32 on a small CPU."""


class Forward:
    def __init__(self, backbone: Backbone, sites: Sequence[Site], dtype: torch.dtype):
        self._backbone, self._sites, self._dtype = backbone, sites, dtype
        self._lanes = Lanes(backbone.device) if backbone.device.type == "cuda" else None

    def launch(self, decoded: DecodedSlice) -> Callable[[], Landed]:
        """Run a slice; what is returned finishes it, from any thread, and waits for a GPU where there is one."""
        if self._lanes is None:
            outputs = self._backbone.forward_to(self._backbone.inputs(decoded.pixels), self._sites)
            return partial(self._measured, outputs, decoded.kept)
        pixels = self._lanes.up(decoded.pixels)
        outputs = self._backbone.forward_to(self._backbone.inputs(pixels), self._sites)
        made = [self._kept(output, decoded.kept) for output in outputs]
        moments = [SiteMoments.launch(rows.flatten(0, 1)) for rows in made if len(rows)]
        down = self._lanes.down([*made, *moments])
        return partial(_landed, down, len(made))

    def _kept(self, output: Tensor, kept: list[int]) -> Tensor:
        return (output if len(kept) == len(output) else output[kept]).to(self._dtype).contiguous()

    def _measured(self, outputs: list[Tensor], kept: list[int]) -> Landed:
        # MPS has no float64, in which moments are taken.
        made = [self._kept(output.cpu(), kept) for output in outputs]
        return [(rows, SiteMoments.of(rows.flatten(0, 1))) for rows in made]


def _landed(down: Callable[[], list[Tensor]], sites: int) -> Landed:
    tensors = down()
    rows, numbers = tensors[:sites], tensors[sites:]
    if not numbers:  # no image of the slice was kept
        return [(part, SiteMoments.none(part.shape[-1])) for part in rows]
    return [
        (part, SiteMoments.landed(found, part.shape[0] * part.shape[1]))
        for part, found in zip(rows, numbers, strict=True)
    ]


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
