"""What a trained dictionary must beat, behind the same protocol: PCA, k-means, a random dictionary, raw neurons."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from torch import Tensor

from saetool import seeding
from saetool.autoencoders.base import Autoencoder, Loss, Step
from saetool.autoencoders.sparse import SparseAutoencoder
from saetool.autoencoders.sparse_settings import SparseSettings, TopKActivation
from saetool.sparse.codes import Codes

FIT_ROWS = 65_536
"""Training rows the baselines are fitted on: enough for the covariance of 1,024 coordinates, seconds to fit."""
SCALE_ROWS = 4096
"""Rows that the random dictionary's scale is fitted on: one number needs no more."""
INIT_ROWS = 24
"""Rows a cluster that k-means++ chooses its first centers from: twice as many take twice as long and fit no better."""


class Baseline(Autoencoder):
    """A fitted baseline: encodes and decodes like an autoencoder, and does not train.

    What it encodes is told by `encode`, or by `_codes` of a few rows.
    """

    rows_at_once = 2048
    """Rows that `_codes` is given, whose dense code, or more, is held."""

    def loss(self, x: Float[Tensor, "batch d_in"], step: Step, generator: torch.Generator) -> Loss:
        raise NotImplementedError("a baseline is fitted when it is made and has no loss")

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch n_latents"]:
        return self.encode_sparse(x).dense()

    def encode_sparse(self, x: Float[Tensor, "batch d_in"]) -> Codes:
        """Return the nonzero entries of `encode`, computed by slices of rows."""
        return Codes.concatenate([self._codes(rows) for rows in x.split(self.rows_at_once)])

    def _codes(self, x: Float[Tensor, "rows d_in"]) -> Codes:
        return Codes.from_dense(self.encode(x))


class Dictionary(Baseline):
    """Directions around a mean: z = the chosen scores of x − mean, x_hat = mean + z W.

    Scores are the projections on W, of unit rows, or what other `readout` rows say. Chosen are the k that change x_hat
    most, of either sign, or all of them.
    """

    mean: Tensor
    directions: Tensor

    readout: Tensor

    def __init__(
        self,
        mean: Float[Tensor, "d_in"],
        directions: Float[Tensor, "n_latents d_in"],
        k: int | None = None,
        readout: Float[Tensor, "n_latents d_in"] | None = None,
    ):
        super().__init__()
        self.n_latents, self.d_in = directions.shape
        self.k = None if k is None or k >= self.n_latents else k
        self.register_buffer("mean", mean.float())
        self.register_buffer("directions", directions.float())
        self.register_buffer("readout", self.directions if readout is None else readout.float())
        self.unit = readout is None

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch n_latents"]:
        scores = (x.float() - self.mean) @ self.readout.T
        if self.k is None:
            return scores
        changes = scores.abs() if self.unit else scores.abs() * self.directions.norm(dim=-1)
        chosen = changes.topk(self.k, dim=-1).indices
        return torch.zeros_like(scores).scatter_(-1, chosen, scores.gather(-1, chosen))

    def decode(self, z: Float[Tensor, "batch n_latents"]) -> Float[Tensor, "batch d_in"]:
        return self.mean + z @ self.directions

    def decoder_directions(self) -> Float[Tensor, "n_latents d_in"]:
        return self.directions


class KMeans(Baseline):
    """Each row is its nearest center: z is one-hot, x_hat that center."""

    centers: Tensor

    def __init__(self, centers: Float[Tensor, "n_latents d_in"]):
        super().__init__()
        self.n_latents, self.d_in = centers.shape
        self.register_buffer("centers", centers.float())

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch n_latents"]:
        score = x.float() @ self.centers.T - self.centers.square().sum(-1) / 2
        return torch.nn.functional.one_hot(score.argmax(-1), self.n_latents).float()

    def decode(self, z: Float[Tensor, "batch n_latents"]) -> Float[Tensor, "batch d_in"]:
        return z @ self.centers

    def decoder_directions(self) -> Float[Tensor, "n_latents d_in"]:
        """Return the centers, measured from their mean."""
        return self.centers - self.centers.mean(0)


@dataclass(frozen=True)
class Fitted:
    """A baseline with its name in tables and a sentence on what it is."""

    name: str
    about: str
    model: Autoencoder


def fit_baselines(
    rows: Float[Tensor, "rows d_in"], k: int, n_latents: int, clusters: int, seed: int
) -> dict[str, Tensor]:
    """Fit the baselines on raw training rows, at k active latents where that is a choice; for `baselines_of`.

    k-means, the random dictionary and the sign of PCA's components depend on `seed` only.
    """
    rows = rows.float()
    mean = rows.double().mean(0).float()
    pca = PCA(min(rows.shape[1], len(rows)), random_state=0)
    pca.fit(rows.double().numpy())
    clusters = max(1, min(clusters, len(rows)))
    kmeans = MiniBatchKMeans(
        clusters,
        batch_size=4096,
        init_size=min(len(rows), INIT_ROWS * clusters),
        n_init=1,  # pyright: ignore[reportArgumentType]
        max_iter=20,
        random_state=seeding.derive(seed, "k-means") % 2**32,
    ).fit(rows.numpy())
    scale = best_scale(random_dictionary(mean, n_latents, _active(k, rows.shape[1]), seed), rows)
    return {
        "mean": mean,
        "components": torch.from_numpy(pca.components_).float(),
        "centers": torch.from_numpy(kmeans.cluster_centers_),
        "scale": torch.tensor(scale, dtype=torch.float64),
    }


def baselines_of(
    fit: dict[str, Tensor], k: int, n_latents: int, seed: int, device: torch.device | str = "cpu"
) -> list[Fitted]:
    """Return the baselines that `fit_baselines` fitted, on a device.

    PCA has the freedom of a sparse code, which takes other latents for every token: the k components of largest score
    out of all. "PCA, fixed" keeps the same k for all tokens. The random dictionary has as many latents as the
    autoencoder it stands beside (`n_latents`).
    """
    mean, components, centers = fit["mean"], fit["components"], fit["centers"]
    k = _active(k, len(mean))
    made = [
        Fitted("PCA", f"each token's {k} principal components of largest score", Dictionary(mean, components, k)),
        Fitted("PCA, fixed", f"the first {k} principal components, for all tokens", Dictionary(mean, components[:k])),
        Fitted("k-means", f"the nearest of {len(centers)} centers", KMeans(centers)),
        Fitted(
            "random dictionary",
            f"top {k} of {n_latents} random unit directions, one scale by least squares",
            random_dictionary(mean, n_latents, k, seed, float(fit["scale"])),
        ),
        Fitted(
            "raw neurons", f"the {k} coordinates farthest from their mean", Dictionary(mean, torch.eye(len(mean)), k)
        ),
    ]
    for baseline in made:
        baseline.model.to(device)
    return made


def _active(k: int, d_in: int) -> int:
    return max(1, min(k, d_in))


@torch.no_grad()
def random_dictionary(
    mean: Float[Tensor, "d_in"], n_latents: int, k: int, seed: int, scale: float = 1.0
) -> SparseAutoencoder:
    """Return a TopK autoencoder of random unit directions around `mean`, its decoder's as long as `scale`."""
    settings = SparseSettings(
        kind="sparse",
        n_latents=n_latents,
        normalize="none",
        activation=TopKActivation(kind="topk", k=min(k, n_latents)),
    )
    model = SparseAutoencoder(settings, len(mean)).eval()
    draws = torch.randn(n_latents, len(mean), generator=seeding.generator(seed, "random dictionary"))
    directions = torch.nn.functional.normalize(draws, dim=-1)
    for parameter, value in ((model.W_enc, directions), (model.W_dec, directions), (model.b_dec, mean)):
        parameter.copy_(value)
    model.W_dec.mul_(scale)
    return model


@torch.no_grad()
def best_scale(model: SparseAutoencoder, rows: Float[Tensor, "rows d_in"]) -> float:
    """Return the one number by which a decoder is multiplied to minimize the error on (some of) `rows`."""
    rows, mean = rows[:SCALE_ROWS], model.b_dec
    guess = (model(rows) - mean).double()
    square = float(guess.square().sum())
    return float((guess * (rows - mean).double()).sum()) / square if square > 0 else 1.0
