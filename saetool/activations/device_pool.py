"""Pools of rows on an accelerator: the next one is uploaded beside the computation, from pinned memory.

Two pools lie on the device, one that batches are gathered from and one that is on its way. Nothing waits for the
device but the reuse of the host's buffer, one round behind.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

WHOLE_SHARE = 0.25
"""Rows that take up to this share of a GPU's free memory lie there whole, where training sees them more than once."""

Pool = tuple[Float[Tensor, "pool d_in"], Int64[Tensor, "rows"]]
"""Rows of a round, and the order to see them in."""


@dataclass
class _Slot:
    """Room for a pool on the device, and, on a GPU, when what is in it has come and is no longer needed."""

    rows: Tensor
    came: Any = None
    left: Any = None
    order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


def on_device(pools: Iterator[Pool], device: torch.device) -> Iterator[Pool]:
    """Yield the pools on a device, in order; a pool is good until the next one is asked for."""
    transfers = torch.cuda.Stream(device) if device.type == "cuda" else None
    slots: list[_Slot] = []
    current = _upload(pools, slots, 0, device, transfers)
    number = 0
    while current is not None:
        if transfers is not None:
            current.came.synchronize()  # the host's buffer is free again, before the next one is asked for
        number += 1
        following = _upload(pools, slots, number, device, transfers)
        if transfers is not None:
            torch.cuda.current_stream(device).wait_event(current.came)
        yield current.rows, current.order
        if transfers is not None:
            current.left.record(torch.cuda.current_stream(device))
        current = following


def _upload(
    pools: Iterator[Pool], slots: list[_Slot], number: int, device: torch.device, transfers: Any
) -> _Slot | None:
    """Begin to bring the next pool to the device; None where there is none."""
    pool = next(pools, None)
    if pool is None:
        return None
    rows, order = pool
    if number < 2:
        slots.append(_Slot(torch.empty_like(rows, device=device)))
        if transfers is not None:
            slots[-1].came, slots[-1].left = torch.cuda.Event(), torch.cuda.Event()
            transfers.wait_stream(torch.cuda.current_stream(device))  # whoever had this memory before is done
            slots[-1].rows.record_stream(transfers)
    slot = slots[number % 2]
    with torch.cuda.stream(transfers) if transfers is not None else nullcontext():
        if transfers is not None and number >= 2:
            transfers.wait_event(slot.left)
        slot.rows.copy_(rows, non_blocking=True)
        slot.order = upload(order, device)
        if transfers is not None:
            slot.came.record(transfers)
    if transfers is not None:
        slot.order.record_stream(torch.cuda.current_stream(device))
    return slot


def fits_whole(size: int, device: torch.device) -> bool:
    """Say whether so many bytes of rows may lie on a device for a whole training."""
    return device.type == "cuda" and size <= WHOLE_SHARE * torch.cuda.mem_get_info(device)[0]


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a copy on the device; a GPU's is made on its current stream, and nothing waits for it."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
