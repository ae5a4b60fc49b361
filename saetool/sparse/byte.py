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
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from saetool.sparse import compiled
from saetool.sparse.weight_copy import ROUNDING, WeightCopy

MORE_TERMS = 16
"""Roundings beside those of the K terms: of the bias, of the bound itself."""

LIKELY = 4.0
"""Where a proven bound is not asked for, errors may add up to so many times 1/√d_in of it: as many standard deviations
or more, if a row's and a latent's rounding errors point anywhere."""

CUT = 1 + 2.0**-7 + 2.0**-16
"""What bounds are multiplied by, so that they hold when cut to bfloat16."""

BLOCKS, BLOCKS_PER_K = 1024, 8
"""Strided blocks of a row whose maxima are taken: at least so many, where there are as many latents."""

SPREAD = 1.25
"""The first look for a row's largest outputs goes a quarter further below than the bounds exceed outputs on average."""

TRIALS, AGAIN = 2, 256
"""Each way is timed so many times, and both again every so many calls."""
LEAST_ROWS = 256
"""A call with fewer rows tells little about time."""


class ByteWeight(WeightCopy):
    """weight [n_latents, d_in] in int8, with each latent's scale, ‖w‖ and ‖w − w'‖."""

    def __init__(self, weight: Tensor):
        super().__init__(weight)
        self.coded = compiled.CodedWeight.empty(*weight.shape)

    def refresh(self, weight: Float[Tensor, "n_latents d_in"], start: int, stop: int) -> None:
        """Copy the rows `start` to `stop`."""
        self.coded.refresh(weight, start, stop)

    @property
    def padded(self) -> int:
        """The latents' number, up to a whole number of panels."""
        return self.coded.numbers.shape[1]

    def bounding(
        self, bias: Float[Tensor, "n_latents"], cut: Float[Tensor, "n_latents"], proven: bool = True
    ) -> "Bounding":
        """Return what bounds x·w + bias − cut. Not `proven`, the bounds are likely ones, see LIKELY."""
        share = 1.0 if proven else min(1.0, LIKELY / self.d_in**0.5)
        scales, norms, errors, finer = self.coded.numbers[:, : self.n_latents]
        offset, lost = bias - cut, MORE_TERMS * ROUNDING * (bias.abs() + cut.abs())
        latents = torch.stack([scales, offset, errors, finer, lost], 1)
        filled = functional.pad((offset + lost) * CUT, (0, self.padded - self.n_latents), value=-1.0)
        mean = float(norms.mean()), float(errors.mean()), float((norms + errors).max())
        return Bounding(self.coded, share, (self.d_in + MORE_TERMS) * ROUNDING, latents, filled, *mean)

    def blocks(self, k: int) -> int:
        """Return how many blocks serve to find the k largest: whole panels."""
        return min(compiled.up_to_multiple(max(BLOCKS, BLOCKS_PER_K * k), compiled.panel()), self.padded)


@dataclass(frozen=True)
class Bounding:
    """What makes bounds of products of a coded weight."""

    weight: compiled.CodedWeight
    share: float
    """Of the proven bounds."""
    rounding: float
    """What float32 may lose, in units of the norms' product."""
    latents: Float[Tensor, "n_latents 5"]
    """See `Narrowing`."""
    offset: Float[Tensor, "padded"]
    mean_norm: float
    mean_error: float
    largest_sum: float
    """Of a latent's norm and error."""

    def __call__(
        self, x: Float[Tensor, "rows d_in"], pre: Float[Tensor, "more padded"], maxima: Int[Tensor, "more blocks"]
    ) -> compiled.Bounds:
        """Return bounds for some rows, in these buffers."""
        coded, numbers = compiled.to_bytes(x)
        scale, norm, error = numbers
        size, more = norm + error, 1 + self.rounding
        by_norm = (self.share * error + self.rounding * size) * more
        by_error = self.share * size * more**2
        factors = torch.stack([scale, by_norm, by_error], 1).mul_(CUT)
        pre, maxima = pre[: len(coded)], maxima[: len(coded)]
        self.weight.bounds(coded, factors, self.offset, pre, maxima)
        spread = SPREAD * (by_norm * self.mean_norm + by_error * self.mean_error)
        size = norm * more**2
        # Of rows in int16: each number is wrong by half of it at most.
        finest = torch.minimum(127 * scale, norm) / compiled.shorts(x.shape[1])
        rest = self.largest_sum * (2 * self.rounding * size + 0.5 * x.shape[1] ** 0.5 * more * finest)
        slack = torch.stack([self.share * size, rest], 1)
        narrowing = compiled.Narrowing(self.weight.rows, self.latents, slack, spread)
        return compiled.Bounds(pre[: len(x)], True, maxima, narrowing)


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
    """Say whether this CPU has the int8 product, and it is right."""
    if compiled.byte_kernels() is None:
        return False
    x, weight = torch.arange(-21.0, 21).reshape(3, 14), torch.arange(-35.0, 35).reshape(5, 14)
    pre, maxima = torch.zeros(6, 64, dtype=torch.bfloat16), torch.zeros(6, 64, dtype=torch.int16)
    bounds = ByteWeight.of(weight, None).bounding(torch.zeros(5), torch.zeros(5))(x, pre, maxima)
    true = x @ weight.T
    near = bounds.pre[:3, :5].float()
    return bool(((near >= true) & (near < true + 0.1 * (x.norm(dim=1)[:, None] * weight.norm(dim=1) + 1))).all())
