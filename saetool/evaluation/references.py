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
REFITTED_ROWS = 64
"""Rows whose values are fitted together, of about as many latents each, as all take the time of the widest; of 300
latents and 768 coordinates some 120 MB in float64, thrice."""
NO_VARIANCE = 1e-10
"""Share of the largest variance up to which a direction has none but rounding: whitened, it would be noise."""
ICA_ROWS, ICA_ITERATIONS = 16_384, 100
"""Training rows that ICA is fitted on, and its steps: half a minute of two cores for 384 coordinates."""


class Refitted(Baseline):
    """An autoencoder's own latents with the values that fit best: what its encoder's values cost, say by a penalty.

    For each row, least squares over the decoder directions of its active latents, of either sign; nearly none is 0.
    """

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
        offset = self.autoencoder.decode(x.new_zeros(1, self.n_latents)).double()
        directions, values = self.autoencoder.decoder_directions(), torch.empty_like(codes.values)
        counts = codes.offsets.diff()
        for rows in counts.argsort(stable=True).split(REFITTED_ROWS):
            inside = torch.arange(int(counts[rows].max()), device=x.device) < counts[rows, None]
            entries = codes.offsets[rows].repeat_interleave(counts[rows]) + inside.nonzero()[:, 1]
            latents = entries.new_zeros(inside.shape).masked_scatter_(inside, codes.latents[entries])
            fitted = least_squares(directions[latents].double() * inside[..., None], x[rows].double() - offset)
            values[entries] = fitted[inside].to(values.dtype)
        return Codes(codes.offsets, codes.latents, values, self.n_latents)


def least_squares(
    directions: Float[Tensor, "rows width d_in"], x: Float[Tensor, "rows d_in"]
) -> Float[Tensor, "rows width"]:
    """Return the values of each row's directions that fit it best, 0 of a direction that is 0."""
    gram = directions @ directions.mT
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    diagonal += torch.where(diagonal > 0, RIDGE * diagonal.mean(-1, keepdim=True), 1.0)
    return torch.cholesky_solve(directions @ x[..., None], torch.linalg.cholesky(gram))[..., 0]


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
        wanted, k = (x - self.offset).double(), self.k
        left, chosen = wanted, torch.empty(len(x), 0, dtype=torch.int64, device=x.device)
        among, scored = wanted.new_zeros(len(x), k, self.d_in), wanted.new_zeros(len(x), k, 1)
        low, values = wanted.new_zeros(len(x), k, k), wanted.new_empty(len(x), 0)
        for j in range(k):
            scores = (left.float() @ self.directions.T).abs().scatter_(1, chosen, -1.0)
            chosen = torch.cat([chosen, scores.argmax(1, keepdim=True)], 1)
            among[:, j] = self.directions[chosen[:, j]]
            # One more row of the Cholesky factor of the chosen directions' products.
            products = among[:, : j + 1] @ among[:, j, :, None]
            row = torch.linalg.solve_triangular(low[:, :j, :j], products[:, :j], upper=False)[..., 0]
            low[:, j, :j] = row
            left_of_it = products[:, j, 0] * (1 + RIDGE) - row.square().sum(1)
            low[:, j, j] = torch.where(left_of_it > 0, left_of_it, 1.0).sqrt()  # of a direction that is 0
            scored[:, j, 0] = torch.linalg.vecdot(among[:, j], wanted)
            values = torch.cholesky_solve(scored[:, : j + 1], low[:, : j + 1, : j + 1])[..., 0]
            left = wanted - (values[:, None] @ among[:, : j + 1])[:, 0]
        latents, order = chosen.sort(dim=1)
        offsets = torch.arange(0, latents.numel() + 1, k, device=x.device)
        return Codes(offsets, latents.flatten(), values.gather(1, order).float().flatten(), self.n_latents)


def fit_components(rows: Float[Tensor, "rows d_in"], k: int, seed: int) -> Dictionary | None:
    """Return ICA fitted on raw training rows (scikit-learn's FastICA, as far as it comes in its iterations).

    It has as many components as the rows have dimensions; None where all rows are the same.
    """
    rows = rows[:ICA_ROWS].double()
    variances = torch.linalg.eigvalsh(torch.atleast_2d(rows.T.cov(correction=0)))
    rank = min(int((variances > NO_VARIANCE * variances[-1]).sum()), len(rows) - 1)
    if rank < 1 or variances[-1] <= 0:
        return None
    ica = FastICA(
        rank,
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
    ]
    if (components := fit_components(rows, k, seed)) is not None:
        made.append(Fitted("ICA", f"each token's {k} independent components of largest share", components))
    for reference in made:
        reference.model.to(offset.device)
    return made
