"""Numbers about an autoencoder on a set of rows, accumulated exactly: one global mean, float64, every row counted."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saetool import distributed
from saetool.autoencoders.base import Autoencoder
from saetool.sparse.codes import Codes

DENSE_ABOVE = 0.1
"""A latent that is active on more than this share of the rows counts as dense."""


def reconstruct(autoencoder: Autoencoder, x: Float[Tensor, "rows d_in"]) -> tuple[Codes, Float[Tensor, "rows d_in"]]:
    """Return the active latents of raw activations and the reconstruction in raw units.

    Where small values count as inactive (`active_above` > 0) they still take part in the reconstruction.
    """
    if autoencoder.active_above > 0:
        z = autoencoder.encode(x)
        codes, x_hat = Codes.from_dense(z, autoencoder.active_above), autoencoder.decode(z)
    else:
        codes = autoencoder.encode_sparse(x)
        x_hat = autoencoder.decode_sparse(codes)
    return codes, autoencoder.complete(x_hat, x)


@dataclass(frozen=True)
class Measures:
    """What `Accumulator.measures` found on `rows` rows.

    fvu: Σ‖x − x̂‖² / Σ‖x − mean‖², None where the rows do not vary; mse: Σ‖x − x̂‖² per row, raw units; l0, l1: active
    latents and sum of their magnitudes a row; dead: latents never active; dense: active on more than 10 % of rows.
    """

    rows: int
    fvu: float | None
    mse: float
    l0: float
    l1: float
    dead: int
    dense: int
    n_latents: int

    def as_json(self) -> dict:
        """Return the fields of a held-out line of metrics.jsonl."""
        shares = {"dead_share": self.dead / self.n_latents, "dense_share": self.dense / self.n_latents}
        return {name: getattr(self, name) for name in ("rows", "fvu", "mse", "l0", "l1")} | shares


class Accumulator:
    """Sums over rows that come in pieces, on the rows' device; nothing is read back before `measures`.

    `center` [d_in] (the training mean) keeps the sums of squares well conditioned; the result does not depend on it.
    """

    def __init__(self, d_in: int, n_latents: int, center: Float[Tensor, "d_in"], device: torch.device):
        # MPS has no float64: there the sums are kept on the CPU.
        self.home = torch.device("cpu") if device.type == "mps" else device
        self.center = center.to(self.home, torch.float64)
        self.rows = 0
        self.sum = torch.zeros(d_in, dtype=torch.float64, device=self.home)
        self.scalars = torch.zeros(3, dtype=torch.float64, device=self.home)  # Σ‖x − center‖², Σ‖x − x̂‖², Σ|z|
        self.active: Int[Tensor, "n_latents"] = torch.zeros(n_latents, dtype=torch.int64, device=self.home)

    def add(self, x: Float[Tensor, "rows d_in"], codes: Codes, x_hat: Float[Tensor, "rows d_in"]) -> None:
        """Count in some rows, their active latents and their reconstructions."""
        x = x.to(self.home, torch.float64)
        centered = x - self.center
        error = x - x_hat.to(self.home, torch.float64)
        self.rows += x.shape[0]
        self.sum += centered.sum(0)
        magnitude = codes.values.to(self.home, torch.float64).abs().sum()
        self.scalars += torch.stack([centered.square().sum(), error.square().sum(), magnitude])
        self.active += torch.bincount(codes.latents.to(self.home), minlength=self.active.numel())

    def merge_processes(self) -> None:
        """Add up what the processes counted."""
        rows = torch.tensor(self.rows, device=self.home)
        for tensor in (rows, self.sum, self.scalars, self.active):
            distributed.all_reduce_sum(tensor)
        self.rows = int(rows)

    def measures(self) -> Measures:
        """Return the numbers; synchronizes with the device."""
        rows = max(self.rows, 1)
        square, error, magnitude = self.scalars.tolist()
        total = square - float(self.sum.square().sum()) / rows
        n_active = int(self.active.sum())
        return Measures(
            rows=self.rows,
            fvu=error / total if total > 0 else None,
            mse=error / rows,
            l0=n_active / rows,
            l1=magnitude / rows,
            dead=int((self.active == 0).sum()),
            dense=int((self.active > DENSE_ABOVE * rows).sum()),
            n_latents=self.active.numel(),
        )


@torch.no_grad()
def evaluate(
    autoencoder: Autoencoder,
    blocks: Iterable[Float[Tensor, "rows d_in"]],
    center: Float[Tensor, "d_in"],
) -> Measures:
    """Measure an autoencoder on blocks of raw activations.

    Several processes take turns at the blocks and every one gets the numbers of all.
    """
    like = next(autoencoder.parameters())
    sums = Accumulator(autoencoder.d_in, autoencoder.n_latents, center, like.device)
    for i, block in enumerate(blocks):
        if i % distributed.world_size() == distributed.rank():
            x = block.to(like.device).to(like.dtype)
            sums.add(x, *reconstruct(autoencoder, x))
    sums.merge_processes()
    return sums.measures()
