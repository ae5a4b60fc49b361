"""A bfloat16 copy of an encoder whose product with bfloat16 rows bounds the float32 product from above.

With x and w rounded to x' and w', and K terms added in float32 (Cauchy–Schwarz, Higham 2002 §3.1):

    |x·w − x'·w'| ≤ ‖x − x'‖ ‖w‖ + ‖x'‖ ‖w − w'‖ + K 2⁻²³ ‖x'‖ (‖w‖ + ‖w − w'‖)

All norms are measured, so the bound follows the data, row by row and latent by latent. It is a product of two numbers
of the row with two of the latent: as further columns of x' and w', like the bias, it costs nothing to add.
What lies within the bound of a threshold is decided in float32.
"""

from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from saetool.sparse.backends.cpu.parallel import scratch
from saetool.sparse.weight import Copy

ROUNDING = 2.0**-23
"""Twice float32's unit roundoff, for the order in which a matrix product adds its terms."""

AMX_COLUMNS, COLUMNS = 32, 8
"""The number of columns is a multiple of this: what a matrix unit takes at once, and elsewhere what keeps rows aligned
(without AMX, more columns only cost: 416 instead of 392 take 6 % longer, measured)."""


class HalfWeight(Copy):
    """weight [n_latents, d_in + 4 and zeros] in bfloat16: w', ‖w‖, ‖w − w'‖, and the bias in two parts."""

    def __init__(self, n_latents: int, d_in: int):
        multiple = AMX_COLUMNS if has_matrix_unit() else COLUMNS
        width = -(-(d_in + 4) // multiple) * multiple
        self.d_in, self.weight = d_in, torch.zeros(n_latents, width, dtype=torch.bfloat16)

    @classmethod
    def empty(cls, weight: Float[Tensor, "n_latents d_in"]) -> Self:
        return cls(*weight.shape)

    def fits(self, weight: Float[Tensor, "n_latents d_in"]) -> bool:
        return (len(self.weight), self.d_in) == weight.shape

    def refresh(self, weight: Float[Tensor, "n_latents d_in"], start: int, stop: int) -> None:
        rows, copy, d_in = weight[start:stop], self.weight[start:stop], self.d_in
        rounded = rows.bfloat16()
        copy[:, :d_in] = rounded
        copy[:, d_in] = ceil_half(torch.linalg.vector_norm(rows, dim=1))
        copy[:, d_in + 1] = ceil_half(torch.linalg.vector_norm(rounded.to(rows.dtype).sub_(rows), dim=1))

    @property
    def _rounding(self) -> float:
        return self.weight.shape[1] * ROUNDING

    def set_bias(self, bias: Float[Tensor, "n_latents"]) -> None:
        """Let `bias` be added to every product, rounded up by a little more than what adding it loses."""
        high = bias.bfloat16()
        self.weight[:, self.d_in + 2] = high
        self.weight[:, self.d_in + 3] = ceil_half(bias - high + self._rounding * bias.abs())

    def extend(self, x: Float[Tensor, "rows d_in"], bounding: bool) -> Float[Tensor, "rows columns"]:
        """Return the rows in bfloat16 with the columns that add the bias and, where wanted, the bound."""
        d_in = self.d_in
        extended = x.new_zeros(len(x), self.weight.shape[1], dtype=torch.bfloat16)
        extended[:, :d_in] = x
        extended[:, d_in + 2 : d_in + 4] = 1
        if bounding:
            rounded = extended[:, :d_in].float()
            size = torch.linalg.vector_norm(rounded, dim=1)
            terms, more = self._rounding * size, 1 + self._rounding
            extended[:, d_in] = ceil_half((torch.linalg.vector_norm(x - rounded, dim=1) + terms) * more)
            extended[:, d_in + 1] = ceil_half((size + terms) * more)
        return extended

    def product(self, extended: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows n_latents"]:
        """Return the bfloat16 product; it lasts until this thread's next one."""
        return torch.mm(extended, self.weight.T, out=scratch(len(extended), len(self.weight), torch.bfloat16))

    def slack(self, extended: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows"]:
        """Return for each row how far above the true output the product of an extended row can be, at most."""
        d_in = self.d_in
        norm, error = self.weight[:, d_in : d_in + 2].nan_to_num(0.0).amax(0).float()  # a NaN is found nowhere
        bias = self.weight[:, d_in + 2].abs().max().float()
        bound = extended[:, d_in].float() * norm + extended[:, d_in + 1].float() * error
        return 2 * (1 + self._rounding) * (bound + (self._rounding + 2.0**-15) * bias)


def ceil_half(value: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Return the smallest bfloat16 numbers that are not below `value`."""
    half = value.bfloat16()
    return torch.where(half.float() < value, torch.nextafter(half, torch.full_like(half, torch.inf)), half)


def has_fast_half() -> bool:
    """Say whether products in bfloat16 are faster than in float32 on this CPU (a capability, so that runs agree)."""
    units = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return torch.backends.mkldnn.is_available() and any(map(_cpu_has, units))


def has_matrix_unit() -> bool:
    """Say whether the CPU has a unit for whole products of bfloat16 matrices."""
    return _cpu_has("_is_amx_tile_supported")


def _cpu_has(unit: str) -> bool:
    """Ask torch whether this CPU has a unit; a torch that cannot be asked does not use it either."""
    return getattr(torch.cpu, unit, lambda: False)()
