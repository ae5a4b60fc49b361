"""An int8 copy of an encoder whose product with int8 rows bounds the float32 product from above.

Each row x and latent w is rounded to a multiple of its own scale, x' = s q with q in −127 … 127. A product of whole
numbers is exact, so that only rounding to them and the float32 formula's own rounding count (Cauchy–Schwarz, K terms):

    |x·w − x'·w'| ≤ ‖x − x'‖ ‖w‖ + ‖x'‖ ‖w − w'‖ + K 2⁻²³ ‖x'‖ (‖w‖ + ‖w − w'‖)

Where few are left, x itself times w' bounds them again, without what x's rounding costs and with twice the last term,
since that product, too, is rounded:

    |x·w − x·w'| ≤ ‖x‖ ‖w − w'‖ + 2 K 2⁻²³ ‖x‖ (‖w‖ + ‖w − w'‖)

The bound is about ten times wider than bfloat16's, so about twice as many entries have to be decided in float32; where
integer products are twice as fast as bfloat16 ones that is well worth it, and where they are not, it is not: `Race`
measures. The loops around the product are compiled ones only.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saetool.sparse import compiled
from saetool.sparse.weight_copy import ROUNDING, WeightCopy

MORE_TERMS = 16
"""Roundings beside those of the K terms: of the bias, of the bound itself."""

LIKELY = 4.0
"""Where a proven bound is not asked for, errors may add up to so many times 1/√d_in of it: as many standard deviations
or more, if a row's and a latent's rounding errors point anywhere."""

SPREAD = 1.25
"""The first look for a row's largest outputs goes a quarter further below than the bounds exceed outputs on average."""

TRIALS, AGAIN = 2, 256
"""Each way is timed so many times, and both again every so many calls."""
LEAST_ROWS = 256
"""A call with fewer rows tells little about time."""


class ByteWeight(WeightCopy):
    """weight [n_latents, d_in] in int8; numbers [3, n_latents]: scale, ‖w‖, ‖w − w'‖."""

    def __init__(self, weight: Tensor):
        super().__init__(weight)
        self.weight = weight.new_empty(weight.shape, dtype=torch.int8)
        self.numbers = weight.new_empty(3, len(weight))

    def refresh(self, weight: Float[Tensor, "n_latents d_in"], start: int, stop: int) -> None:
        """Copy the rows `start` to `stop`."""
        self.weight[start:stop], self.numbers[:, start:stop] = compiled.to_bytes(weight[start:stop])

    @property
    def _rounding(self) -> float:
        return (self.d_in + MORE_TERMS) * ROUNDING

    def bounding(
        self,
        rows: Float[Tensor, "3 rows"],
        bias: Float[Tensor, "n_latents"],
        cut: Float[Tensor, "n_latents"],
        proven: bool = True,
    ) -> compiled.Bounding:
        """Return what makes bounds of x·w + bias − cut, in units of each row's scale, from products of coded rows.

        Not `proven`, they are likely ones, see LIKELY.
        """
        share = 1.0 if proven else min(1.0, LIKELY / self.d_in**0.5)
        scale, norm, error = rows
        size, more = norm + error, 1 + self._rounding
        columns = torch.ones_like(scale), (share * error + self._rounding * size) * more, share * size * more**2
        offset = bias - cut + MORE_TERMS * ROUNDING * (bias.abs() + cut.abs())
        factors = (torch.stack(columns, 1) / scale[:, None]).contiguous()
        return compiled.Bounding(factors, self.numbers, offset, share)

    def narrowing(self, rows: Float[Tensor, "3 rows"], bounding: compiled.Bounding) -> compiled.Narrowing:
        """Return what makes the narrower bounds, from rows as they are."""
        _, norm, error = self.numbers.mean(1)
        spread = SPREAD * (bounding.factors[:, 1] * norm + bounding.factors[:, 2] * error)
        scales, norms, errors = self.numbers
        size = rows[1] * (1 + self._rounding) ** 2
        slack = torch.stack([bounding.share * size, 2 * self._rounding * size * (norms + errors).max()], 1)
        return compiled.Narrowing(spread, self.weight, torch.stack([scales, bounding.offset, errors], 1), slack)

    def product(self, rows: Int[Tensor, "rows d_in"], out: Int[Tensor, "rows n_latents"]) -> None:
        """Write the product of int8 rows with the copy, whole numbers."""
        torch._int_mm(rows, self.weight.T, out=out)  # pyright: ignore[reportPrivateImportUsage]


class Race:
    """Which of two ways to one and the same answer is faster, here and now: so only time depends on a clock."""

    def __init__(self) -> None:
        self._calls = 0
        self._seconds = {True: float("inf"), False: float("inf")}

    def takes_bytes(self, rows: int = LEAST_ROWS) -> bool:
        """Say whether the next call, with so many rows, takes the int8 way."""
        place = self._calls % AGAIN
        if rows >= LEAST_ROWS and place < 2 * TRIALS:
            return place % 2 == 1
        return self._seconds[True] < self._seconds[False]

    @contextmanager
    def timed(self, rows: int) -> Iterator[None]:
        """Time a call."""
        took, start = self.takes_bytes(rows), time.perf_counter()
        yield
        if rows < LEAST_ROWS:
            return
        if self._calls % AGAIN == 0:
            self._seconds = {True: float("inf"), False: float("inf")}
        self._seconds[took] = min(self._seconds[took], (time.perf_counter() - start) / rows)
        self._calls += 1


@cache
def has_byte_product() -> bool:
    """Say whether this build of torch multiplies int8 matrices on the CPU, rightly."""
    left = torch.arange(-21, 21, dtype=torch.int8).reshape(3, 14) * 5
    right = torch.arange(-35, 35, dtype=torch.int8).reshape(5, 14) * 3
    out = torch.empty(3, 5, dtype=torch.int32)
    try:
        torch._int_mm(left, right.T, out=out)  # pyright: ignore[reportPrivateImportUsage]
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return torch.equal(out.long(), left.long() @ right.long().T)
