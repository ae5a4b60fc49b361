"""The largest entries of every row of a matrix, ties to the lowest column: the same for any way of computing."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def largest_in_rows(
    values: Float[Tensor, "rows columns"], k: int
) -> tuple[Int[Tensor, "rows k"], Float[Tensor, "rows k"]]:
    """Return columns (int32, −1 pads) and values (0 pads) of each row's k largest finite entries, falling."""
    columns = values.shape[1]
    bits = values.float().contiguous().view(torch.int32)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats fall as their bits rise
    packed = (ordered.long() << 32) | (columns - 1 - torch.arange(columns, device=values.device))
    best = packed.topk(min(k, columns), dim=1).values
    column = columns - 1 - (best & 0xFFFFFFFF)
    value = values.gather(1, column).float()
    pad = (len(values), k - column.shape[1])
    column = torch.where(value.isfinite(), column, -1).int()
    value = torch.where(column < 0, 0.0, value)
    return torch.cat([column, column.new_full(pad, -1)], 1), torch.cat([value, value.new_zeros(pad)], 1)
