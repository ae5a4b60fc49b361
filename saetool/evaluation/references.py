"""What other codes keep, of the same latents or as many: how far an encoder, and a dictionary, are from them.

Orthogonal matching pursuit (Pati, Rezaiifar & Krishnaprasad 1993) is as good an encoder as is to be had in reasonable
time; ICA (Hyvärinen & Oja 2000) is a dictionary that no sparse penalty made. Both choose for every token, as the
autoencoder does.
"""

import warnings

import numpy as np
import torch
from jaxtyping import Float
from sklearn.decomposition import FastICA
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.nn.functional import normalize

from saetool import seeding
from saetool.autoencoders.sparse import SparseAutoencoder
from saetool.evaluation.baselines import Baseline, Dictionary, Fitted
from saetool.sparse.codes import Codes

RIDGE = 1e-9
"""Added to the diagonal of directions' products, as a share of it: two that are equal have no single best values."""
ICA_ROWS, ICA_ITERATIONS = 16_384, 100
"""Training rows that ICA is fitted on, and its steps: half a minute of two cores for 384 coordinates."""


class Refitted(Baseline):
    """An autoencoder's own latents with the values that fit best: what its encoder's values cost, say by a penalty.

    For each row, least squares over the decoder directions of its active latents, of either sign; nearly none is 0.
    """

    rows_at_once = 256
    """Rows whose directions are gathered: of 100 latents and 768 coordinates some 160 MB in float64."""

    def __init__(self, autoencoder: SparseAutoencoder):
        super().__init__()
        self.autoencoder = autoencoder
        self.n_latents, self.d_in = autoencoder.n_latents, autoencoder.d_in

    def decode_sparse(self, codes: Codes) -> Float[Tensor, "batch d_in"]:
        return self.autoencoder.decode_sparse(codes)

    def decode(self, z: Float[Tensor, "batch n_latents"]) -> Float[Tensor, "batch d_in"]:
        return self.autoencoder.decode(z)

    def decoder_directions(self) -> Float[Tensor, "n_latents d_in"]:
        return self.autoencoder.decoder_directions()

    def _codes(self, x: Float[Tensor, "rows d_in"]) -> Codes:
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


class Pursuit(Baseline):
    """Codes of `k` directions a row by orthogonal matching pursuit: x_hat = offset + Σ of chosen directions.

    k times, the direction that points most along what is left, of either sign, joins those chosen, and the values of
    all of them are set anew by least squares.
    """

    rows_at_once = 512
    """Rows whose scores are held: 50 MB of 24,576 directions."""

    directions: Tensor
    offset: Tensor

    def __init__(self, directions: Float[Tensor, "n_latents d_in"], offset: Float[Tensor, "d_in"], k: int):
        super().__init__()
        self.n_latents, self.d_in = directions.shape
        self.k = max(1, min(k, self.n_latents, self.d_in))
        self.register_buffer("directions", normalize(directions.detach().float(), dim=1))
        self.register_buffer("offset", offset.detach().float())

    def decode(self, z: Float[Tensor, "batch n_latents"]) -> Float[Tensor, "batch d_in"]:
        return self.offset + z @ self.directions

    def decoder_directions(self) -> Float[Tensor, "n_latents d_in"]:
        return self.directions

    def _codes(self, x: Float[Tensor, "rows d_in"]) -> Codes:
        wanted = (x - self.offset).double()
        left, chosen = wanted, torch.empty(len(x), 0, dtype=torch.int64, device=x.device)
        values = wanted.new_empty(len(x), 0)
        for _ in range(self.k):
            scores = (left.float() @ self.directions.T).abs().scatter_(1, chosen, -1.0)
            chosen = torch.cat([chosen, scores.argmax(1, keepdim=True)], 1)
            among = self.directions[chosen].double()
            gram = among @ among.mT
            gram.diagonal(dim1=-2, dim2=-1).add_(RIDGE)
            values = torch.cholesky_solve(among @ wanted[..., None], torch.linalg.cholesky(gram))[..., 0]
            left = wanted - (values[:, None] @ among)[:, 0]
        latents, order = chosen.sort(dim=1)
        offsets = torch.arange(0, latents.numel() + 1, self.k, device=x.device)
        return Codes(offsets, latents.flatten(), values.gather(1, order).float().flatten(), self.n_latents)


def fit_components(rows: Float[Tensor, "rows d_in"], k: int, seed: int) -> Dictionary:
    """Return ICA fitted on raw training rows (scikit-learn's FastICA, as far as it comes in its iterations)."""
    rows = rows[:ICA_ROWS].double()
    ica = FastICA(
        min(rows.shape),
        whiten="unit-variance",
        max_iter=ICA_ITERATIONS,
        random_state=seeding.derive(seed, "ICA") % 2**32,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        ica.fit(rows.numpy())
    mean, unmixing, mixing = (torch.from_numpy(np.asarray(a)) for a in (ica.mean_, ica.components_, ica.mixing_))
    return Dictionary(mean, mixing.T, k, unmixing)


@torch.no_grad()
def reference_models(own: SparseAutoencoder, rows: Float[Tensor, "rows d_in"], k: int, seed: int) -> list[Fitted]:
    """Return what a sparse autoencoder of about `k` active latents stands beside; `rows` are raw training rows."""
    offset = own.decode(own.b_dec.new_zeros(1, own.n_latents))[0]
    draws = torch.randn(own.n_latents, own.d_in, generator=seeding.generator(seed, "random dictionary"))
    made = [
        Fitted("own decoder, pursuit", "its directions, chosen anew", Pursuit(own.decoder_directions(), offset, k)),
        Fitted("random dictionary, pursuit", "as many random directions", Pursuit(draws, rows.mean(0), k)),
        Fitted("ICA", f"each token's {k} independent components of largest share", fit_components(rows, k, seed)),
    ]
    for reference in made:
        reference.model.to(offset.device)
    return made
