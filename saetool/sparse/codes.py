"""`Codes`: the one currency of sparse codes, rows of (latent, value) pairs; `Support`: where their entries are.

A support's entries stand in row order, and on demand (`Support.by_latent`, made once) in latent order.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

if TYPE_CHECKING:
    from saetool.sparse.backends import Backend


@dataclass(frozen=True)
class Codes:
    """Sparse codes of `rows` inputs: row i holds entries offsets[i] to offsets[i + 1], latents ascending in a row.

    Shapes: offsets [rows + 1] int64 starting at 0, latents [entries] int64, values [entries] float.
    Entries are distinct; an entry whose value is 0 is not stored.
    """

    offsets: Int[Tensor, "rows_plus_one"]
    latents: Int[Tensor, "entries"]
    values: Float[Tensor, "entries"]
    n_latents: int

    @property
    def rows(self) -> int:
        """The number of inputs coded."""
        return self.offsets.numel() - 1

    def row_of_entry(self) -> Int[Tensor, "entries"]:
        """Return the row number of every entry, ascending."""
        return Support.of(self).rows

    def dense(self) -> Float[Tensor, "rows n_latents"]:
        """Return the codes with every zero written out."""
        z = self.values.new_zeros(self.rows, self.n_latents)
        z[self.row_of_entry(), self.latents] = self.values
        return z

    def to(self, device: torch.device) -> "Codes":
        """Return the codes on a device."""
        return Codes(self.offsets.to(device), self.latents.to(device), self.values.to(device), self.n_latents)

    def row(self, index: int) -> tuple[Int[Tensor, "entries"], Float[Tensor, "entries"]]:
        """Return the latents and values of one row."""
        start, stop = int(self.offsets[index]), int(self.offsets[index + 1])
        return self.latents[start:stop], self.values[start:stop]

    def only(self, latents: Int[Tensor, "some"]) -> "Codes":
        """Return the codes of some latents, ascending, numbered as they stand there."""
        place = torch.full((self.n_latents,), -1, dtype=torch.int64, device=self.latents.device)
        place[latents] = torch.arange(len(latents), device=place.device)
        found = place[self.latents]
        kept = found >= 0
        return Codes.from_triples(self.row_of_entry()[kept], found[kept], self.values[kept], self.rows, len(latents))

    @classmethod
    def from_dense(cls, z: Float[Tensor, "rows n_latents"], threshold: float = 0.0) -> "Codes":
        """Keep the entries of `z` with |value| > threshold."""
        kept = z.abs() > threshold
        rows, latents = kept.nonzero(as_tuple=True)
        return cls.from_triples(rows, latents, z[rows, latents], z.shape[0], z.shape[1])

    @classmethod
    def from_triples(
        cls,
        rows: Int[Tensor, "entries"],
        latents: Int[Tensor, "entries"],
        values: Float[Tensor, "entries"],
        n_rows: int,
        n_latents: int,
    ) -> "Codes":
        """Build codes from (row, latent, value) triples that are already sorted by row, then latent."""
        return cls(offsets_of(rows, n_rows), latents, values, n_latents)

    @classmethod
    def concatenate(cls, parts: list["Codes"]) -> "Codes":
        """Stack the rows of several codes over the same latents."""
        shifts = torch.tensor([0, *(p.latents.numel() for p in parts[:-1])]).cumsum(0).tolist()
        offsets = [parts[0].offsets[:1], *(p.offsets[1:] + s for p, s in zip(parts, shifts, strict=True))]
        return cls(
            torch.cat(offsets),
            torch.cat([p.latents for p in parts]),
            torch.cat([p.values for p in parts]),
            parts[0].n_latents,
        )


@dataclass(frozen=True)
class ByLatent:
    """The entries of a support in latent order, rows ascending in a latent.

    order [entries]: where each entry stands in row order; rows [entries]; offsets [n_latents + 1].
    """

    order: Int[Tensor, "entries"]
    rows: Int[Tensor, "entries"]
    offsets: Int[Tensor, "n_latents_plus_one"]

    def to_latent_order(self, values: Float[Tensor, "entries"]) -> Float[Tensor, "entries"]:
        """Bring values from row order into latent order."""
        return values.index_select(0, self.order)

    def to_row_order(self, values: Float[Tensor, "entries"]) -> Float[Tensor, "entries"]:
        """Bring values from latent order into row order."""
        return torch.empty_like(values).scatter_(0, self.order, values)


class Support:
    """Which latents of which rows may be active: row i holds entries offsets[i] to offsets[i + 1].

    It contains every active entry and may hold others, whose value is then 0. offsets [rows + 1] and latents [entries]
    are int64. Latents ascend in a row; only entries of value 0 that fill a row up may repeat one. Behind the last row's
    entries there may be room for more: latent 0 of a row behind all others, an output below every cut. `keys`: the
    latents as a backend sorts them, what is only room last.
    """

    def __init__(
        self,
        offsets: Int[Tensor, "rows_plus_one"],
        latents: Int[Tensor, "entries"],
        n_latents: int,
        rows: Int[Tensor, "entries"] | None = None,
        keys: Int[Tensor, "entries"] | None = None,
    ):
        self.offsets, self.latents, self.n_latents, self.keys = offsets, latents, n_latents, keys
        self._by_latent: dict[str, ByLatent] = {}
        if rows is not None:
            self.rows = rows  # known already: the cached property is not asked

    @property
    def n_rows(self) -> int:
        return self.offsets.numel() - 1

    @cached_property
    def rows(self) -> Int[Tensor, "entries"]:
        """The row of every entry, ascending."""
        rows = torch.arange(self.n_rows, device=self.offsets.device)
        return torch.repeat_interleave(rows, self.offsets.diff(), output_size=self.latents.numel())

    def by_latent(self, backend: "Backend") -> ByLatent:
        """Return the same entries, latent by latent, as a backend sorts them: once."""
        if backend.name not in self._by_latent:
            self._by_latent[backend.name] = backend.by_latent(self)
        return self._by_latent[backend.name]

    def where(self, kept: Bool[Tensor, "entries"]) -> "Support":
        """Return the entries that `kept` marks; on an accelerator this waits for the device."""
        place = kept.nonzero().squeeze(1)
        rows, latents = self.rows.index_select(0, place), self.latents.index_select(0, place)
        return Support(offsets_after(kept)[self.offsets], latents, self.n_latents, rows)

    @classmethod
    def from_rows(
        cls,
        rows: Int[Tensor, "entries"],
        latents: Int[Tensor, "entries"],
        n_rows: int,
        n_latents: int,
        keys: Int[Tensor, "entries"] | None = None,
    ) -> "Support":
        """Return the support of entries that are sorted by row."""
        return cls(offsets_of(rows, n_rows), latents, n_latents, rows, keys)

    @classmethod
    def of(cls, codes: Codes) -> "Support":
        """Return the entries of codes."""
        return cls(codes.offsets, codes.latents, codes.n_latents)

    def codes(self, values: Float[Tensor, "entries"]) -> Codes:
        """Return the entries with a positive value as codes."""
        kept = values > 0
        some = self.where(kept)
        return Codes(some.offsets, some.latents, values[kept], self.n_latents)


def offsets_of(index: Int[Tensor, "entries"], n: int) -> Int[Tensor, "n_plus_one"]:
    """Return where each of n groups begins among entries sorted by group, and at the end their number."""
    return torch.searchsorted(index, torch.arange(n + 1, device=index.device))


def offsets_after(counts: Shaped[Tensor, "n"]) -> Int[Tensor, "n_plus_one"]:
    """Return where each of n groups of so many entries begins, and at the end their number."""
    offsets = torch.zeros(len(counts) + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=offsets[1:])
    return offsets
