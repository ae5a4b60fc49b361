"""From decoded slices to rows as they are stored, and their moments; on a GPU everything is queued and nothing waits.

There, pixels go up and rows come down on streams of their own, beside the forward pass of another slice.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from saetool.activations.decoding import DecodedSlice
from saetool.activations.moments import SiteMoments
from saetool.vision import Backbone, Site

Landed = list[tuple[Tensor, SiteMoments]]
"""Of each site: the kept images' rows [images, tokens, d] in the stored dtype on the CPU, and their moments."""


class Forward:
    """Runs slices through a backbone."""

    def __init__(self, backbone: Backbone, sites: Sequence[Site], dtype: torch.dtype):
        self._backbone, self._sites, self._dtype = backbone, sites, dtype
        self._lanes = _Lanes(backbone.device) if backbone.device.type == "cuda" else None

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


class _Lanes:
    """Two streams of a GPU: one to it, one from it, beside the current one, which computes.

    Pinned memory that a copy still reads or writes is not given to anyone else: torch's allocator sees to that.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._up, self._down = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def up(self, pinned: Tensor) -> Tensor:
        """Return a copy on the GPU, which computing waits for there."""
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._up):
            tensor = pinned.to(self._device, non_blocking=True)
        computing.wait_stream(self._up)
        tensor.record_stream(computing)  # its memory is the upward stream's: not free before computing has read it
        return tensor

    def down(self, tensors: list[Tensor]) -> Callable[[], list[Tensor]]:
        """Begin to copy what computing makes; what is returned waits for the copies, in pinned memory."""
        self._down.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._down):
            copies = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
            for copy, tensor in zip(copies, tensors, strict=True):
                copy.copy_(tensor, non_blocking=True)
            done = torch.cuda.Event(blocking=True)
            done.record(self._down)
        held = list(tensors)  # their memory is the computing stream's: not free before it has been copied

        def landed() -> list[Tensor]:
            done.synchronize()
            held.clear()
            return copies

        return landed
