"""The largest entries of every row of a matrix, ties to the lowest column: the same for any way of computing."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def largest_in_rows(
    values: Float[Tensor, "rows columns"], k: int
) -> tuple[Int[Tensor, "rows k"], Float[Tensor, "rows k"]]:
    """Return columns (int32, −1 pads) and values (0 pads) of each row's k largest finite entries, falling."""
    columns = values.shape[1]
    kept, wide = min(k, columns), min(2 * k, columns)
    # Of equal entries `topk` takes any: what lies above the last one taken is known whole, and is put in order.
    value, column = values.float().topk(wide, dim=1)
    order = column.argsort(dim=1)
    value, column = value.gather(1, order), column.gather(1, order)
    order = value.argsort(dim=1, descending=True, stable=True)
    value, column = value.gather(1, order), column.gather(1, order)
    cut = value[:, kept - 1]
    unknown = (cut == value[:, -1]) & cut.isfinite() if wide < columns else torch.zeros_like(cut, dtype=torch.bool)
    value, column = value[:, :kept], column[:, :kept]
    if bool(unknown.any()):
        column[unknown] = _by_packed_keys(values[unknown], kept)
        value[unknown] = values[unknown].float().gather(1, column[unknown])
    pad = (len(values), k - kept)
    column = torch.where(value.isfinite(), column, -1).int()
    value = torch.where(column < 0, 0.0, value)
    return torch.cat([column, column.new_full(pad, -1)], 1), torch.cat([value, value.new_zeros(pad)], 1)


def _by_packed_keys(values: Float[Tensor, "rows columns"], k: int) -> Int[Tensor, "rows k"]:
    """Return the columns of each row's k largest entries, by one key of value and column that has no ties."""
    columns = values.shape[1]
    bits = (values.float() + 0.0).view(torch.int32)  # −0 becomes 0: they are equal
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats fall as their bits rise
    packed = (ordered.long() << 32) | (columns - 1 - torch.arange(columns, device=values.device))
    return columns - 1 - (packed.topk(k, dim=1).values & 0xFFFFFFFF)
