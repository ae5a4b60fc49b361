"""`Support`: which latents of which rows may be active, in row order and, on demand, in latent order.

A support contains every active entry; it may hold others, whose value is then 0.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saetool.sparse import compiled
from saetool.sparse.codes import Codes

INT16_LATENTS = 2**15
"""Up to this many latents sort as int16, several times faster than as int64 (measured on CPU)."""


@dataclass(frozen=True)
class ByLatent:
    """The entries of a support in latent order, rows ascending in a latent.

    order [entries]: where each entry stands in row order; rows [entries]; offsets [n_latents + 1].
    """

    order: Int[Tensor, "entries"]
    rows: Int[Tensor, "entries"]
    offsets: Int[Tensor, "n_latents_plus_one"]

    def there(self, values: Float[Tensor, "entries"]) -> Float[Tensor, "entries"]:
        """Bring values from row order into latent order."""
        return values.index_select(0, self.order)

    def back(self, values: Float[Tensor, "entries"]) -> Float[Tensor, "entries"]:
        """Bring values from latent order into row order."""
        return torch.empty_like(values).scatter_(0, self.order, values)


@dataclass(frozen=True)
class Support:
    """Entries in row order, latents ascending in a row: rows [entries], latents [entries], both int64."""

    rows: Int[Tensor, "entries"]
    latents: Int[Tensor, "entries"]
    n_rows: int
    n_latents: int

    @cached_property
    def offsets(self) -> Int[Tensor, "n_rows_plus_one"]:
        """Where each row's entries begin; one more at the end."""
        return _offsets(self.rows, self.n_rows)

    @cached_property
    def by_latent(self) -> ByLatent:
        """The same entries, latent by latent."""
        if compiled.serves(self.rows, self.latents):
            return ByLatent(*compiled.by_latent(self.rows, self.latents, self.n_latents))
        key = self.latents.to(torch.int16) if self.n_latents <= INT16_LATENTS else self.latents
        order = torch.sort(key, stable=True).indices
        return ByLatent(order, self.rows.index_select(0, order), _offsets(self.latents, self.n_latents))

    def where(self, kept: Bool[Tensor, "entries"]) -> "Support":
        """Return the entries that `kept` marks."""
        place = kept.nonzero().squeeze(1)
        rows, latents = self.rows.index_select(0, place), self.latents.index_select(0, place)
        return Support(rows, latents, self.n_rows, self.n_latents)

    @classmethod
    def concatenate(cls, parts: list["Support"]) -> "Support":
        """Stack the rows of several supports over the same latents."""
        starts = accumulate((p.n_rows for p in parts), initial=0)
        rows = torch.cat([p.rows + start for p, start in zip(parts, starts, strict=False)])
        latents = torch.cat([p.latents for p in parts])
        return cls(rows, latents, sum(p.n_rows for p in parts), parts[0].n_latents)

    @classmethod
    def of(cls, codes: Codes) -> "Support":
        """Return the entries of codes."""
        return cls(codes.row_of_entry(), codes.latents, codes.rows, codes.n_latents)

    def codes(self, values: Float[Tensor, "entries"]) -> Codes:
        """Return the entries with a positive value as codes."""
        active = values > 0
        return Codes.from_triples(self.rows[active], self.latents[active], values[active], self.n_rows, self.n_latents)


def _offsets(index: Int[Tensor, "entries"], n: int) -> Int[Tensor, "n_plus_one"]:
    offsets = index.new_zeros(n + 1)
    torch.cumsum(torch.bincount(index, minlength=n), 0, out=offsets[1:])
    return offsets
