"""`Support`: which latents of which rows are active, in row order and, on demand, in latent order."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

INT16_LATENTS = 2**15
"""Below this many latents, they sort as int16, about four times faster than as int64 (measured, CPU)."""


@dataclass(frozen=True)
class ByLatent:
    """The entries of a support in latent order, rows ascending in a latent.

    order [entries]: where each entry stands in row order; rows [entries]; offsets [n_latents + 1].
    """

    order: Int[Tensor, "entries"]
    rows: Int[Tensor, "entries"]
    offsets: Int[Tensor, "n_latents_plus_one"]


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
        key = self.latents.to(torch.int16) if self.n_latents <= INT16_LATENTS else self.latents
        order = torch.sort(key, stable=True).indices
        return ByLatent(order, self.rows[order], _offsets(self.latents, self.n_latents))

    def where(self, kept: Tensor) -> "Support":
        """Return the entries that `kept` [entries] (bool) marks."""
        return Support(self.rows[kept], self.latents[kept], self.n_rows, self.n_latents)


def _offsets(index: Int[Tensor, "entries"], n: int) -> Int[Tensor, "n_plus_one"]:
    offsets = index.new_zeros(n + 1)
    torch.cumsum(torch.bincount(index, minlength=n), 0, out=offsets[1:])
    return offsets
