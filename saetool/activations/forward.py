"""From decoded slices to rows as they are stored, and their moments; for a GPU all is queued and nothing waits."""

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


class Forward:
    """Runs slices through a backbone."""

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
