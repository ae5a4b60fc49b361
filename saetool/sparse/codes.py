"""`Codes`: the one currency of sparse codes, rows of (latent, value) pairs in compressed form."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


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
        counts = self.offsets.diff()
        rows = torch.arange(self.rows, device=self.offsets.device)
        return torch.repeat_interleave(rows, counts, output_size=self.latents.numel())

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
        offsets = torch.zeros(n_rows + 1, dtype=torch.int64, device=rows.device)
        offsets[1:] = torch.bincount(rows, minlength=n_rows).cumsum(0)
        return cls(offsets, latents, values, n_latents)

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
