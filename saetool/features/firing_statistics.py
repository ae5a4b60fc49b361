"""What one pass over the codes accumulates: exact sums that do not depend on order, and image maxima.

On the CPU loops that numba compiles do it where numba is installed, else plain torch: the same numbers, bit for bit.

Sums that must merge exactly are integers: values are rounded to multiples of `unit`, a power of two.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saetool.errors import WorkError
from saetool.features.maxima import RECORD
from saetool.sparse.backends import backend_for
from saetool.sparse.codes import Codes

OCTAVES = 24
"""The histogram covers 2^-24 to 2^24; what lies outside counts in the outermost bins."""
BINS_PER_OCTAVE = 4
N_BINS = 2 * OCTAVES * BINS_PER_OCTAVE
UNIT_BITS = 30
"""Values are summed in units of 2^-30 of the power of two above some images' maximum; 2^32 times that fits."""
_INT64_ROOM = 2.0**62


def histogram_edges() -> Float[Tensor, "bins_plus_one"]:
    """Return the shared, log-spaced edges of the histogram; bin i holds values in (edges[i], edges[i + 1]]."""
    exponents = torch.arange(N_BINS + 1, dtype=torch.float64) / BINS_PER_OCTAVE - OCTAVES
    return torch.exp2(exponents).float()


@cache
def _edges_on(device: torch.device) -> Tensor:
    return histogram_edges().to(device)


def unit_for(codes: Codes) -> float:
    """Return the unit of the fixed-point sums, from the codes of some images."""
    largest = float(codes.values.max()) if codes.values.numel() else 0.0
    exponent = math.ceil(math.log2(largest)) if largest > 0 else 0
    return 2.0 ** (exponent - UNIT_BITS)


def firing(codes: Codes) -> Codes:
    """Return the entries with positive values: the side of a latent that the index describes."""
    kept = codes.values > 0
    if bool(kept.all()):
        return codes
    rows = codes.row_of_entry()[kept]
    return Codes.from_triples(rows, codes.latents[kept], codes.values[kept], codes.rows, codes.n_latents)


@dataclass
class FiringStatistics:
    """Sums over any set of images: histogram int64 [n_latents, bins], profile int64 [tokens, n_latents] in units.

    `peak` is the largest value seen, on the same device, `images` the number of images.
    """

    histogram: Int[Tensor, "n_latents bins"]
    profile: Int[Tensor, "tokens n_latents"]
    unit: float
    images: int
    peak: Float[Tensor, ""]

    @classmethod
    def empty(cls, n_latents: int, tokens: int, unit: float, device: torch.device | str = "cpu") -> "FiringStatistics":
        histogram = torch.zeros(n_latents, N_BINS, dtype=torch.int64, device=device)
        profile = torch.zeros(tokens, n_latents, dtype=torch.int64, device=device)
        return cls(histogram, profile, unit, 0, torch.zeros((), device=device))

    @property
    def largest(self) -> float:
        return float(self.peak)

    def add(self, codes: Codes, first_image: int) -> Int[Tensor, "pairs 6"]:
        """Count the codes of some whole images, rows in image order, and return their maxima, for `records_of`.

        They are sorted by latent, then image; `first_image` is the row of the first image in the store. Where codes
        are on a GPU, so is what is returned.
        """
        tokens, n_latents = self.profile.shape
        images = codes.rows // tokens
        self.images += images
        if codes.values.numel() == 0:
            return codes.latents.new_empty(0, 6, dtype=torch.int32)
        values = codes.values.float()
        if backend_for(values).name == "cpu":
            found = self._add_compiled(codes, values, images)
        else:
            rows = codes.row_of_entry().int()
            image, patch = rows // tokens, rows % tokens
            units = (values.double() / self.unit).round()
            self._count(codes.latents, patch, values, units)
            found = _maxima(codes.latents * images + image, patch, values, units, n_latents * images, tokens)
        return _records(found, images, first_image, tokens, self.unit)

    def _add_compiled(self, codes: Codes, values: Tensor, images: int) -> Tensor:
        from saetool.features.compiled_firing import count_entries

        cells = torch.zeros(self.profile.shape[1] * images, 3, dtype=torch.int64)
        arrays = [t.numpy() for t in (histogram_edges(), self.histogram, self.profile, cells)]
        entries = (codes.latents.numpy(), values.numpy(), codes.offsets.numpy())
        largest = count_entries(*entries, self.profile.shape[0], self.unit, *arrays)
        self.peak.clamp_(min=float(largest))
        return _occupied(*cells.T)

    def _count(self, latents: Tensor, patch: Tensor, values: Tensor, units: Tensor) -> None:
        torch.maximum(self.peak, values.max(), out=self.peak)
        edges = _edges_on(values.device)
        bins = (torch.bucketize(values, edges) - 1).clamp_(0, N_BINS - 1)
        ones = torch.ones((), dtype=torch.int64, device=values.device).expand_as(bins)
        self.histogram.view(-1).scatter_add_(0, latents * N_BINS + bins, ones)
        self.profile.view(-1).scatter_add_(0, patch * self.histogram.shape[0] + latents, units.long())

    def merge(self, other: "FiringStatistics") -> None:
        """Add the sums over other images; the order of merging makes no difference."""
        if other.unit != self.unit:
            raise WorkError("Partial indexes do not belong together: their sums have different units.")
        self.histogram += other.histogram
        self.profile += other.profile
        self.images += other.images
        torch.maximum(self.peak, other.peak, out=self.peak)

    def check(self) -> None:
        """Raise WorkError when a sum may have left the range of the fixed-point numbers."""
        if self.largest / self.unit * max(self.images, 1) > _INT64_ROOM:
            raise WorkError(
                f"An activation of {self.largest:g} is too large beside that of other images for exact sums. "
                "Is an image corrupt, or a file? `saetool verify` checks what is kept."
            )


def _maxima(cell: Tensor, patch: Tensor, values: Tensor, units: Tensor, cells: int, tokens: int) -> Tensor:
    """Return [4, pairs] int64: cell, packed value bits and reversed patch, firing tokens, sum in units; by cell."""
    place, occupied = cell, None
    if cells > _CELLS_PER_ENTRY * cell.numel():
        # Few entries in many cells (one token an image): number the occupied cells instead of holding all.
        occupied, place = torch.unique(cell, return_inverse=True)
        cells = occupied.numel()
    # The larger packed number is the larger value, then the earlier patch: one reduction finds both.
    packed = (values.view(torch.int32).long() << 32) | (tokens - 1 - patch)
    best = torch.zeros(cells, dtype=torch.int64, device=cell.device).scatter_reduce_(0, place, packed, "amax")
    mass, count = torch.zeros_like(best), torch.zeros_like(best)
    mass.scatter_add_(0, place, units.long())
    count.scatter_add_(0, place, torch.ones((), dtype=torch.int64, device=cell.device).expand_as(place))
    if occupied is not None:
        return torch.stack([occupied, best, count, mass])
    return _occupied(best, count, mass)


def _occupied(best: Tensor, count: Tensor, mass: Tensor) -> Tensor:
    """Return [4, pairs]: the cells in which something fires, and what the three say of them."""
    hit = best.nonzero().squeeze(1)
    return torch.stack([hit, best[hit], count[hit], mass[hit]])


_CELLS_PER_ENTRY = 8


def _records(found: Tensor, images: int, first_image: int, tokens: int, unit: float) -> Tensor:
    """Unpack `_maxima` into the words of RECORD."""
    cell, packed, count, mass = found
    words = torch.empty(len(cell), 6, dtype=torch.int32, device=found.device)
    words[:, 0] = cell // images
    words[:, 1] = cell % images + first_image
    words[:, 2] = tokens - 1 - (packed & 0xFFFFFFFF)
    words[:, 3] = count
    words[:, 4] = packed >> 32
    words[:, 5] = (mass.double() * unit).float().view(torch.int32)
    return words


def records_of(words: Int[Tensor, "pairs 6"]) -> np.ndarray:
    """Return what `FiringStatistics.add` found as records, once it is on the CPU; nothing is copied."""
    return words.numpy().reshape(-1).view(RECORD)


def strongest(codes: Codes, k: int) -> tuple[Int[Tensor, "rows k"], Float[Tensor, "rows k"]]:
    """Return each row's k largest entries, latents (int32, −1 pads) and values; ties go to the lowest latent."""
    if backend_for(codes.values).name == "cpu":
        from saetool.features.compiled_firing import strongest_entries

        latents, values = torch.full((codes.rows, k), -1, dtype=torch.int32), torch.zeros(codes.rows, k)
        entries = (codes.latents.numpy(), codes.values.numpy(), codes.offsets.numpy())
        strongest_entries(*entries, latents.numpy(), values.numpy())
        return latents, values
    counts = codes.offsets.diff()
    width = max(int(counts.max()) if counts.numel() else 0, k)
    # value bits above, reversed latent below: one sort key, no ties
    packed = (codes.values.float().view(torch.int32).long() << 32) | (codes.n_latents - 1 - codes.latents)
    out = torch.full((codes.rows, k), -1, dtype=torch.int64, device=packed.device)
    row, step = codes.row_of_entry(), max(1, _RECTANGLE // width)
    column = torch.arange(len(row), device=row.device) - codes.offsets[row]
    bounds = [*codes.offsets[::step].tolist(), len(row)]
    for number, start in enumerate(range(0, codes.rows, step)):
        some = slice(bounds[number], bounds[number + 1])
        rectangle = packed.new_full((min(step, codes.rows - start), width), -1)
        rectangle[row[some] - start, column[some]] = packed[some]
        out[start : start + step] = rectangle.topk(k, dim=1).values
    latents = torch.where(out < 0, -1, codes.n_latents - 1 - (out & 0xFFFFFFFF)).int()
    values = torch.where(out < 0, 0, out >> 32).int().view(torch.float32)
    return latents, values


_RECTANGLE = 1 << 23
"""Cells of the padded rectangle in which rows are ranked: 64 MiB."""
