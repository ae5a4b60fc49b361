"""A bfloat16 copy of an encoder, and how far a product with it can be from the float32 product.

With x and w rounded to x' and w', and K terms added in float32 (Cauchy–Schwarz, Higham 2002 §3.1):

    |x·w − x'·w'| ≤ ‖x − x'‖ ‖w‖ + ‖x'‖ ‖w − w'‖ + K 2⁻²³ ‖x'‖ ‖w'‖

All norms are measured, so the bound follows the data. What lies within the bound of a threshold is decided in float32.
"""

import torch
from jaxtyping import Float
from torch import Tensor

ROUNDING = 2.0**-23
"""Twice float32's unit roundoff, for the order in which a matrix product adds its terms."""


class HalfWeight:
    """weight [n_latents, d_in] in bfloat16, with the norms of its rows and of their rounding errors."""

    def __init__(self, weight: Tensor):
        self.weight = torch.empty_like(weight, dtype=torch.bfloat16)
        self.norm = weight.new_empty(weight.shape[0])
        self.error = weight.new_empty(weight.shape[0])
        self._version: tuple[int, int] | None = None

    def refresh(self, weight: Float[Tensor, "n_latents d_in"], start: int, stop: int) -> None:
        """Copy the rows `start` to `stop`."""
        rows, copy = weight[start:stop], self.weight[start:stop]
        copy.copy_(rows)
        torch.linalg.vector_norm(rows, dim=1, out=self.norm[start:stop])
        torch.linalg.vector_norm(copy.float().sub_(rows), dim=1, out=self.error[start:stop])

    def mark_current(self, weight: Tensor) -> None:
        """Say that every row was copied since `weight` last changed."""
        self._version = (weight.data_ptr(), weight._version)

    @classmethod
    def of(cls, weight: Tensor, known: "HalfWeight | None") -> "HalfWeight":
        """Return `known` where it still is a copy of `weight`, else a fresh copy."""
        if known is not None and known._version == (weight.data_ptr(), weight._version):
            return known
        fits = known is not None and known.norm.device == weight.device and known.weight.shape == weight.shape
        half = known if known is not None and fits else cls(weight.detach())
        half.refresh(weight.detach(), 0, weight.shape[0])
        half.mark_current(weight)
        return half

    def margin(self, x: Float[Tensor, "rows d_in"], x_half: Float[Tensor, "rows d_in"]) -> Float[Tensor, "n_latents"]:
        """Return for each latent a bound on the error of its pre-activation in any of the rows."""
        error = torch.linalg.vector_norm(x - x_half, dim=1).max()
        size = torch.linalg.vector_norm(x_half, dim=1, dtype=torch.float32).max()
        terms = x.shape[1] * ROUNDING * size
        return (error + terms) * self.norm + (size + terms) * self.error


def ceil_half(value: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Return the smallest bfloat16 numbers that are not below `value`."""
    half = value.bfloat16()
    return torch.where(half.float() < value, torch.nextafter(half, torch.full_like(half, torch.inf)), half)


def floor_half(value: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Return the largest bfloat16 numbers that are not above `value`."""
    return -ceil_half(-value)


def fast_half(device: torch.device) -> bool:
    """Say whether products in bfloat16 are faster than in float32 here (a capability, so that runs agree)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type != "cpu":
        return False
    return torch.backends.mkldnn.is_available() and any(
        getattr(torch.cpu, name, lambda: False)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )
