"""An int8 copy of an encoder whose product with int8 rows bounds the float32 product from above.

Each row x and latent w is rounded to a multiple of its own scale, x' = s q with q in −127 … 127. A product of whole
numbers is exact, so that only rounding to them and the float32 formula's own rounding count (Cauchy–Schwarz, K terms):

    |x·w − x'·w'| ≤ ‖x − x'‖ ‖w‖ + ‖x'‖ ‖w − w'‖ + K 2⁻²³ ‖x'‖ (‖w‖ + ‖w − w'‖)

Where few are left they are bounded again, from both sides, with x'' of int16 numbers for x, whose rounding hardly
counts, and with w' and then w'' for w, where w'' − w' is what the first int8 number left, in a second one:

    |x·w − x''·w'| ≤ ‖x‖ ‖w − w'‖ + (‖x − x''‖ + 2 K 2⁻²³ ‖x‖) (‖w‖ + ‖w − w'‖)

The first bound is about ten times wider than bfloat16's, so about twice as many entries pass it, the last one a hundred
times narrower than the first. Where whole numbers multiply twice as fast as bfloat16 ones that is well worth it, and
where they do not, it is not: `Race` measures. The product and the loops around it are compiled ones only.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from saetool.sparse import compiled
from saetool.sparse.weight_copy import ROUNDING, WeightCopy

MORE_TERMS = 16
"""Roundings beside those of the K terms: of the bias, of the bound itself."""

LIKELY, LIKELY_BOTH = 4.0, 3.0
"""Where a proven bound is not asked for, errors may add up to so many times 1/√d_in of it: as many standard deviations,
if rounding errors point anywhere. The second is for the first bound, which adds up a row's and a latent's: where both
are alike, three of each are more than four of both together."""

CUT = 1 + 2.0**-7 + 2.0**-16
"""What bounds are multiplied by, so that they hold when cut to bfloat16."""

BLOCKS, BLOCKS_PER_K = 1024, 8
"""Strided blocks of a row whose maxima are taken: at least so many, where there are as many latents."""

SPREAD, SPREAD_LIKELY = 1.25, 1.75
"""The first look for a row's largest outputs goes so much further below than the bounds exceed outputs on average: a
second look, where that was too little, costs more than the entries between (of likely bounds there are few)."""

TRIALS, AGAIN = 2, 256
"""Each way is timed so many times, and both again every so many calls."""
MOST_INPUTS = 2**15
"""Sums of products of so many bytes are int32 numbers."""
LEAST_ROWS = 256
"""A call with fewer rows tells little about time."""


class ByteWeight(WeightCopy):
    """weight [n_latents, d_in] in int8 numbers, one for the product and another for what that leaves."""

    def __init__(self, weight: Tensor):
        super().__init__(weight)
        self.coded = compiled.CodedWeight.empty(*weight.shape)

    def refresh(self, weight: Float[Tensor, "n_latents d_in"], start: int, stop: int) -> None:
        """Copy the rows `start` to `stop`."""
        self.coded.refresh(weight, start, stop)

    def bounding(
        self,
        x: Float[Tensor, "rows d_in"],
        bias: Float[Tensor, "n_latents"],
        cut: Float[Tensor, "n_latents"],
        k: int = 0,
        proven: bool = True,
    ) -> compiled.Bounding:
        """Return what bounds x·w + bias − cut, and finds the k largest.

        Not `proven`, the bounds are likely ones, see `LIKELY`.
        """
        coded, (scale, norm, error) = compiled.to_bytes(x)
        scales, norms, errors, finer = self.coded.numbers[:, : self.n_latents]
        share, share_of_both = (1.0 if proven else min(1.0, n / self.d_in**0.5) for n in (LIKELY, LIKELY_BOTH))
        rounding, size = (self.d_in + MORE_TERMS) * ROUNDING, norm + error
        more = 1 + rounding
        by_norm, by_error = (share_of_both * error + rounding * size) * more, share_of_both * size * more**2
        offset, lost = bias - cut, MORE_TERMS * ROUNDING * (bias.abs() + cut.abs())
        # Of rows in int16: each number is wrong by half of it at most.
        finest = torch.minimum(127 * scale, norm) / compiled.shorts(self.d_in)
        rest = 2 * rounding * norm * more + 0.5 * self.d_in**0.5 * finest
        narrowing = compiled.Narrowing(
            self.coded.rows,
            torch.stack([scales, offset, errors, finer, lost], 1),
            torch.stack([share * norm, rest * (norms + errors).max()], 1).mul_(more**2),
            (SPREAD if proven else SPREAD_LIKELY) * (by_norm * norms.mean() + by_error * errors.mean()),
        )
        padded = self.coded.numbers.shape[1]
        blocks = min(compiled.up_to_multiple(max(BLOCKS, BLOCKS_PER_K * k), compiled.panel()), padded)
        filled = functional.pad((offset + lost) * CUT, (0, padded - self.n_latents), value=-1.0)
        factors = torch.stack([scale, by_norm, by_error], 1).mul_(CUT)
        return compiled.Bounding(self.coded, coded, factors, filled, blocks, narrowing, proven)


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
    """Say whether this CPU has the int8 product, and what is made of it is right."""
    if not compiled.has_byte_unit():
        return False
    x, weight = torch.arange(-21.0, 21).reshape(3, 14), torch.arange(-35.0, 35).reshape(5, 14)
    zeros = torch.zeros(5)
    try:
        found = ByteWeight.of(weight, None).bounding(x, zeros, zeros, k=2).largest(range(3), x, 2)
    except RuntimeError:  # another LLVM, with other instructions
        return False
    counts, latents, values = compiled.decide(found, x, weight, zeros, zeros, 2)
    outputs = torch.zeros(3, 5)
    outputs[torch.repeat_interleave(torch.arange(3), counts), latents] = values
    true = (x @ weight.T).clamp_min(0)
    return torch.allclose(outputs, torch.where(true >= true.topk(2).values[:, 1:], true, 0.0))
