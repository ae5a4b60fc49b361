"""Copies to a GPU and from it, beside what it computes; on other devices, plain copies."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


class Lanes:
    """Streams of a GPU: one to it, one from it, beside the current one, which computes, and another that does.

    Pinned memory that a copy still reads or writes is not given to anyone else: torch's allocator sees to that.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.queued = device.type == "cuda"
        """Whether copies are queued: from pinned memory, and into it."""
        if self.queued:
            self._up, self._down, self._beside = (torch.cuda.Stream(device) for _ in range(3))

    def up(self, tensor: Tensor) -> Tensor:
        """Return a copy on the device, which whatever is computed from now on waits for there."""
        return self.send(tensor)()

    def send(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Begin to copy to the device; what is returned gives the copy to whoever computes with it, from any thread."""
        if not self.queued:
            copy = tensor.to(self.device)
            return lambda: copy
        with torch.cuda.stream(self._up):
            copy = tensor.to(self.device, non_blocking=True)
            taken = self.hand_over([copy])

        def arrived() -> Tensor:
            taken()
            return copy

        return arrived

    def beside(self) -> AbstractContextManager[object]:
        """Compute, while the block runs, beside the stream that is the current one outside it."""
        return torch.cuda.stream(self._beside) if self.queued else nullcontext()

    def hand_over(self, tensors: Sequence[Tensor]) -> Callable[[], None]:
        """Hand over what this stream makes; whoever calls what is returned may compute with it, in another stream.

        Its memory is this stream's: not free before the other has read it.
        """
        if not self.queued:
            return lambda: None
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self.device))

        def taken() -> None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_event(done)
            for tensor in tensors:
                tensor.record_stream(computing)

        return taken

    def down(self, tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        """Begin to copy what has been computed; what is returned waits for the copies, from any thread."""
        if not self.queued:
            copies = [tensor.cpu() for tensor in tensors]
            return lambda: copies
        self._down.wait_stream(torch.cuda.current_stream(self.device))
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
