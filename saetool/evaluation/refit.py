"""An autoencoder's own latents with the values that fit best: what its encoder's values cost (shrinkage by a penalty).

For each row, least squares over the decoder directions of its active latents, of either sign.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from saetool.autoencoders.sparse import SparseAutoencoder
from saetool.evaluation.baselines import Baseline
from saetool.sparse.codes import Codes

ROWS_AT_ONCE = 256
"""Rows whose directions are gathered at once: of 100 latents and 768 coordinates some 160 MB in float64."""

RIDGE = 1e-9
"""Added to the diagonal, as a share of its mean: directions that repeat one another have no single best values."""


class Refitted(Baseline):
    """The support of a sparse autoencoder, refitted by least squares row by row."""

    def __init__(self, autoencoder: SparseAutoencoder):
        super().__init__()
        self.autoencoder = autoencoder
        self.n_latents, self.d_in = autoencoder.n_latents, autoencoder.d_in

    def encode_sparse(self, x: Float[Tensor, "batch d_in"]) -> Codes:
        """Return the active latents with their best values; nearly none of them is 0."""
        return Codes.concatenate([self._refitted(rows) for rows in x.split(ROWS_AT_ONCE)])

    def decode_sparse(self, codes: Codes) -> Float[Tensor, "batch d_in"]:
        return self.autoencoder.decode_sparse(codes)

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch n_latents"]:
        return self.encode_sparse(x).dense()

    def decode(self, z: Float[Tensor, "batch n_latents"]) -> Float[Tensor, "batch d_in"]:
        return self.autoencoder.decode(z)

    def decoder_directions(self) -> Float[Tensor, "n_latents d_in"]:
        return self.autoencoder.decoder_directions()

    def _refitted(self, x: Float[Tensor, "rows d_in"]) -> Codes:
        codes = self.autoencoder.encode_sparse(x)
        counts = codes.offsets.diff()
        width = int(counts.max()) if len(codes.latents) else 0
        if width == 0:
            return codes
        inside = torch.arange(width, device=x.device) < counts[:, None]
        latents = codes.latents.new_zeros(len(x), width).masked_scatter_(inside, codes.latents)
        directions = self.autoencoder.decoder_directions().double()[latents] * inside[..., None]
        offset = self.autoencoder.decode(x.new_zeros(1, self.n_latents)).double()
        gram = directions @ directions.mT
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        # A place that no latent fills stands for itself and gets the value 0.
        diagonal += torch.where(inside, RIDGE * diagonal.mean(-1, keepdim=True), 1.0)
        wanted = directions @ (x.double() - offset)[..., None]
        values = torch.cholesky_solve(wanted, torch.linalg.cholesky(gram))[..., 0]
        return Codes(codes.offsets, codes.latents, values[inside].to(codes.values.dtype), self.n_latents)
