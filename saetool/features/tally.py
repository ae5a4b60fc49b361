"""What one pass over the codes accumulates: exact sums that do not depend on order, and image maxima.

On the CPU loops that numba compiles do it where numba is installed, else plain torch: the same numbers, bit for bit.

Sums that must merge exactly are integers: values are rounded to multiples of `unit`, a power of two.
"""

import math
from dataclasses import dataclass

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
"""Values are summed in units of 2^-30 of the power of two above the first image's maximum; 2^32 times that fits."""
_INT64_ROOM = 2.0**62


def histogram_edges() -> Float[Tensor, "bins_plus_one"]:
    """Return the shared, log-spaced edges of the histogram; bin i holds values in (edges[i], edges[i + 1]]."""
    exponents = torch.arange(N_BINS + 1, dtype=torch.float64) / BINS_PER_OCTAVE - OCTAVES
    return torch.exp2(exponents).float()


def unit_for(first_image: Codes) -> float:
    """Return the unit of the fixed-point sums, from the codes of the store's first image: the same for every part."""
    largest = float(first_image.values.max()) if first_image.values.numel() else 0.0
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
class Tally:
    """Sums over any set of images: histogram int64 [n_latents, bins], profile int64 [tokens, n_latents] in units.

    `largest` is the largest value seen, `images` the number of images.
    """

    histogram: Int[Tensor, "n_latents bins"]
    profile: Int[Tensor, "tokens n_latents"]
    unit: float
    images: int = 0
    largest: float = 0.0

    @classmethod
    def empty(cls, n_latents: int, tokens: int, unit: float, device: torch.device | str = "cpu") -> "Tally":
        """Return the tally of no images."""
        histogram = torch.zeros(n_latents, N_BINS, dtype=torch.int64, device=device)
        return cls(histogram, torch.zeros(tokens, n_latents, dtype=torch.int64, device=device), unit)

    def add(self, codes: Codes, first_image: int) -> np.ndarray:
        """Count the codes of some whole images, rows in image order, and return their maxima.

        The records are sorted by latent, then image; `first_image` is the row of the first image in the store.
        """
        tokens, n_latents = self.profile.shape
        images = codes.rows // tokens
        self.images += images
        if codes.values.numel() == 0:
            return np.empty(0, RECORD)
        values = codes.values.float()
        if backend_for(values).name == "cpu":
            found = self._add_compiled(codes, values, images)
            return _records(found, images, first_image, tokens, self.unit)
        rows = codes.row_of_entry().int()
        image, patch = rows // tokens, rows % tokens
        units = (values.double() / self.unit).round()
        self._count(codes.latents, patch, values, units)
        cell = codes.latents * images + image
        found = _maxima(cell, patch, values, units, n_latents * images, tokens)
        return _records(found, images, first_image, tokens, self.unit)

    def _add_compiled(self, codes: Codes, values: Tensor, images: int) -> Tensor:
        from saetool.features.compiled_tally import count_entries

        cells = torch.zeros(self.profile.shape[1] * images, 3, dtype=torch.int64)
        arrays = [t.numpy() for t in (histogram_edges(), self.histogram, self.profile, cells)]
        entries = (codes.latents.numpy(), values.numpy(), codes.offsets.numpy())
        largest = count_entries(*entries, self.profile.shape[0], self.unit, *arrays)
        self.largest = max(self.largest, float(largest))
        return _occupied(*cells.T)

    def _count(self, latents: Tensor, patch: Tensor, values: Tensor, units: Tensor) -> None:
        self.largest = max(self.largest, float(values.max()))
        edges = histogram_edges().to(values.device)
        bins = (torch.bucketize(values, edges) - 1).clamp_(0, N_BINS - 1)
        ones = torch.ones((), dtype=torch.int64, device=values.device).expand_as(bins)
        self.histogram.view(-1).scatter_add_(0, latents * N_BINS + bins, ones)
        self.profile.view(-1).scatter_add_(0, patch * self.histogram.shape[0] + latents, units.long())

    def merge(self, other: "Tally") -> None:
        """Add the sums over other images; the order of merging makes no difference."""
        if other.unit != self.unit:
            raise WorkError("Partial indexes do not belong together: their sums have different units.")
        self.histogram += other.histogram
        self.profile += other.profile
        self.images += other.images
        self.largest = max(self.largest, other.largest)

    def check(self) -> None:
        """Raise WorkError when a sum may have left the range of the fixed-point numbers."""
        if self.largest / self.unit * max(self.images, 1) > _INT64_ROOM:
            raise WorkError(
                f"An activation of {self.largest:g} is too large beside the first image's maximum for exact sums. "
                "Is an image corrupt? Look at the activations' statistics with `saetool info`."
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
    # float64 sums of whole numbers below 2^53: exact in any order.
    mass = torch.bincount(place, weights=units, minlength=cells).long()
    count = torch.bincount(place, minlength=cells)
    if occupied is not None:
        return torch.stack([occupied, best, count, mass])
    return _occupied(best, count, mass)


def _occupied(best: Tensor, count: Tensor, mass: Tensor) -> Tensor:
    """Return [4, pairs]: the cells in which something fires, and what the three say of them."""
    hit = best.nonzero().squeeze(1)
    return torch.stack([hit, best[hit], count[hit], mass[hit]])


_CELLS_PER_ENTRY = 8


def _records(found: Tensor, images: int, first_image: int, tokens: int, unit: float) -> np.ndarray:
    """Unpack `_maxima` into records."""
    cell, packed, count, mass = found.cpu().numpy()
    records = np.empty(len(cell), RECORD)
    records["latent"] = cell // images
    records["image"] = cell % images + first_image
    records["patch"] = tokens - 1 - (packed & 0xFFFFFFFF)
    records["tokens"] = count
    records["value"] = (packed >> 32).astype(np.int32).view(np.float32)
    records["mass"] = mass * unit
    return records


def strongest(codes: Codes, k: int) -> tuple[Int[Tensor, "rows k"], Float[Tensor, "rows k"]]:
    """Return each row's k largest entries, latents (int32, −1 pads) and values; ties go to the lowest latent."""
    if backend_for(codes.values).name == "cpu":
        from saetool.features.compiled_tally import strongest_entries

        latents, values = torch.full((codes.rows, k), -1, dtype=torch.int32), torch.zeros(codes.rows, k)
        entries = (codes.latents.numpy(), codes.values.numpy(), codes.offsets.numpy())
        strongest_entries(*entries, latents.numpy(), values.numpy())
        return latents, values
    counts = codes.offsets.diff()
    width = max(int(counts.max()) if counts.numel() else 0, k)
    # value bits above, reversed latent below: one sort key, no ties
    packed = (codes.values.float().view(torch.int32).long() << 32) | (codes.n_latents - 1 - codes.latents)
    out = torch.full((codes.rows, k), -1, dtype=torch.int64, device=packed.device)
    step = max(1, _RECTANGLE // width)
    for start in range(0, codes.rows, step):
        stop = min(start + step, codes.rows)
        out[start:stop] = _strongest_in(codes.offsets[start : stop + 1], counts[start:stop], packed, k)
    latents = torch.where(out < 0, -1, codes.n_latents - 1 - (out & 0xFFFFFFFF)).int()
    values = torch.where(out < 0, 0, out >> 32).int().view(torch.float32)
    return latents, values


_RECTANGLE = 1 << 22
"""Cells of the padded rectangle in which rows are ranked: 32 MiB."""


def _strongest_in(offsets: Tensor, counts: Tensor, packed: Tensor, k: int) -> Tensor:
    """Rank some rows in a rectangle padded with −1."""
    begin, end = int(offsets[0]), int(offsets[-1])
    width = max(int(counts.max()), k)
    rectangle = packed.new_full((len(counts), width), -1)
    column = torch.arange(end - begin, device=packed.device)
    row = torch.repeat_interleave(torch.arange(len(counts), device=packed.device), counts, output_size=end - begin)
    rectangle[row, column - (offsets[:-1] - begin)[row]] = packed[begin:end]
    return rectangle.topk(k, dim=1).values
