"""Held-out numbers of an autoencoder: what it keeps, how sparsely, and which latents take part (mathematics: FVU with
one global mean, accumulated in float64 over the whole held-out set; never an average of ratios)."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saetool.autoencoders.base import Autoencoder
from saetool.errors import WorkError
from saetool.evaluation import bootstrap
from saetool.evaluation.interventions import rows_for
from saetool.sparse.codes import Codes
from saetool.training.heldout import DENSE_ABOVE, reconstruct

LOG10_EDGES = [-8 + 0.25 * i for i in range(33)]
"""Borders of the frequency histogram, quarter decades up to 1; a bin is (low, high]."""
COLUMNS = ["tokens", "sse", "variance", "active", "l1", "cosine", "hat_square", "dot", "hat_centered", "dot_centered"]
"""The per-image sums that every ratio is made of."""
RATIOS = {
    "fvu": ("sse", "variance"),
    "mse": ("sse", "tokens"),
    "l0": ("active", "tokens"),
    "l1": ("l1", "tokens"),
    "cosine": ("cosine", "tokens"),
    "relative_bias": ("hat_square", "dot"),
    "relative_bias_centered": ("hat_centered", "dot_centered"),
}


@dataclass
class HeldOutSums:
    """Everything that the held-out numbers need, and nothing that grows with tokens.

    Shapes: mean [d_in] is the held-out set's global mean; images: one row of COLUMNS an image, float64;
    firing [n_latents] int64 tokens on which a latent is active; first and second moments [n_latents] float64 of the
    latents' values over all tokens.
    """

    mean: Float[Tensor, "d_in"]
    n_latents: int
    images: list[Tensor] = field(default_factory=list)
    firing: Tensor = field(init=False)
    first: Tensor = field(init=False)
    second: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.firing = torch.zeros(self.n_latents, dtype=torch.int64)
        self.first = torch.zeros(self.n_latents, dtype=torch.float64)
        self.second = torch.zeros(self.n_latents, dtype=torch.float64)

    def add(
        self,
        x: Float[Tensor, "images tokens d_in"],
        codes: Codes,
        x_hat: Float[Tensor, "rows d_in"],
        z: Float[Tensor, "rows n_latents"] | None = None,
    ) -> None:
        """Take in whole images with their tokens' active latents and reconstructions; `z` where small values count.

        What is summed over a row is summed where it lies; what is summed in the order of entries, on the CPU.
        """
        n_images, tokens, _ = x.shape
        codes = codes.to(torch.device("cpu"))
        rows = _row_numbers(x.flatten(0, 1), codes, x_hat, self.mean)
        if not bool(rows.isfinite().all()):
            raise WorkError(
                "the reconstruction of the held-out images is not finite: the autoencoder diverged or the store "
                "holds values that are not numbers; see `saetool verify` and the training log"
            )
        self.images.append(rows.view(n_images, tokens, -1).sum(1))
        latents, values = codes.latents, codes.values.double()
        self.firing += torch.bincount(latents, minlength=self.n_latents)
        if z is None:
            self.first += torch.bincount(latents, values, minlength=self.n_latents)
            self.second += torch.bincount(latents, values.square(), minlength=self.n_latents)
        else:
            self.first += z.cpu().double().sum(0)
            self.second += z.cpu().double().square().sum(0)

    def table(self) -> Float[Tensor, "images columns"]:
        """Return the sums, one row an image, in the order they came."""
        return torch.cat(self.images)

    def tensors(self) -> dict[str, Tensor]:
        """Return all of it but the mean, for `merge`."""
        return {"images": self.table(), "firing": self.firing, "first": self.first, "second": self.second}

    def merge(self, later: dict[str, Tensor]) -> None:
        """Take in the sums over images that follow."""
        self.images.append(later["images"])
        self.firing += later["firing"]
        self.first += later["first"]
        self.second += later["second"]


def _row_numbers(
    x: Float[Tensor, "rows d_in"], codes: Codes, x_hat: Float[Tensor, "rows d_in"], mean: Float[Tensor, "d_in"]
) -> Float[Tensor, "rows columns"]:
    """Return COLUMNS for every row, in float64 on the CPU; codes are there."""
    device = torch.device("cpu") if x_hat.device.type == "mps" else x_hat.device  # MPS has no float64
    x, x_hat, mean = x.to(device).double(), x_hat.to(device).double(), mean.to(device)
    error, centered, hat_centered = x - x_hat, x - mean, x_hat - mean
    magnitudes = torch.zeros(codes.rows, dtype=torch.float64)
    magnitudes.index_add_(0, codes.row_of_entry(), codes.values.abs().double())
    columns = {
        "tokens": torch.ones(x.shape[0], dtype=torch.float64, device=device),
        "sse": error.square().sum(-1),
        "variance": centered.square().sum(-1),
        "active": codes.offsets.diff().double().to(device),
        "l1": magnitudes.to(device),
        "cosine": torch.nn.functional.cosine_similarity(x, x_hat, dim=-1),
        "hat_square": x_hat.square().sum(-1),
        "dot": (x_hat * x).sum(-1),
        "hat_centered": hat_centered.square().sum(-1),
        "dot_centered": (hat_centered * centered).sum(-1),
    }
    return torch.stack([columns[name] for name in COLUMNS], dim=-1).cpu()


@torch.no_grad()
def held_out_sums(
    autoencoder: Autoencoder, batches: Iterable[Float[Tensor, "images tokens d_in"]], mean: Float[Tensor, "d_in"]
) -> HeldOutSums:
    """Run the autoencoder over batches of whole images and return their sums; `mean` is those images' global mean."""
    sums = HeldOutSums(mean.double(), autoencoder.n_latents)
    for x in batches:
        rows = rows_for(autoencoder, x)
        codes, x_hat = reconstruct(autoencoder, rows)
        sums.add(x, codes, x_hat, autoencoder.encode(rows) if autoencoder.active_above > 0 else None)
    return sums


def numbers(
    sums: HeldOutSums, seed: int, resamples: int = bootstrap.RESAMPLES, groups: Int[np.ndarray, "images"] | None = None
) -> dict:
    """Return the held-out numbers: ratios with intervals, latent counts, the frequency histogram.

    `groups`, of the images in the order of `sums`, says which of them are drawn as one.

    `relative_bias` is γ = Σ‖x̂‖² / Σ x̂·x (Rajamanoharan et al. 2024, 2404.16014: below 1 the norm shrinks); with
    `_centered` the global mean is taken off both first, so that a large mean cannot hide shrinkage.
    """
    table = sums.table()
    found: dict = {"images": table.shape[0], "tokens": int(table[:, 0].sum())}
    if groups is not None:
        found["groups"] = len(np.unique(groups))
    found |= bootstrap.ratios(table, COLUMNS, RATIOS, seed, resamples, groups)
    found["explained_variance"] = _one_minus(found["fvu"])
    return found | latent_counts(sums.firing, found["tokens"])


def fvu_difference(
    sums: HeldOutSums,
    own: HeldOutSums,
    seed: int,
    resamples: int = bootstrap.RESAMPLES,
    groups: Int[np.ndarray, "images"] | None = None,
) -> dict[str, float | None]:
    """Return FVU(`sums`) − FVU(`own`), both of the same images, with its interval: an image is drawn with both."""
    mine, other = own.table(), sums.table()
    sse, variance = COLUMNS.index("sse"), COLUMNS.index("variance")
    pairs = torch.stack([other[:, sse] - mine[:, sse], mine[:, variance]], dim=1)
    wanted = {"difference": ("more", "variance")}
    return bootstrap.ratios(pairs, ["more", "variance"], wanted, seed, resamples, groups)["difference"]


def _one_minus(number: dict[str, float | None]) -> dict[str, float | None]:
    flipped = {"value": number["value"], "low": number["high"], "high": number["low"]}
    return {key: None if value is None else 1 - value for key, value in flipped.items()}


def latent_counts(firing: Tensor, tokens: int) -> dict:
    """Return how many latents are dead (never fire here) or dense, and the log10 frequency histogram.

    The histogram has dead latents as a bar of their own; `counts[i]` is the number of latents with
    log10(frequency) in (edges[i], edges[i + 1]].
    """
    frequency = firing.double() / max(tokens, 1)
    alive = frequency[firing > 0]
    edges = torch.tensor(LOG10_EDGES, dtype=torch.float64)
    position = torch.bucketize(alive.log10(), edges) - 1
    counts = torch.bincount(position.clamp(0, len(LOG10_EDGES) - 2), minlength=len(LOG10_EDGES) - 1)
    return {
        "n_latents": firing.numel(),
        "dead": int((firing == 0).sum()),
        "dense": int((frequency > DENSE_ABOVE).sum()),
        "frequency_histogram": {
            "log10_edges": LOG10_EDGES,
            "counts": counts.tolist(),
            "dead": int((firing == 0).sum()),
        },
    }


def binarity(sums: HeldOutSums) -> dict:
    """Return Var(z_j) / (q_j (1 − q_j)) over latents, for codes in (0, 1): near 1 on-off, near 0 dense around q.

    q_j is latent j's mean over the whole held-out set; latents with q of 0 or 1 are left out. Around .02 is the
    loophole of KL without decoder weight decay, around .5 is healthy.
    """
    tokens = float(sums.table()[:, 0].sum())
    q = sums.first / tokens
    variance = sums.second / tokens - q.square()
    inside = (q > 0) & (q < 1)
    if not bool(inside.any()):
        return {"latents": 0, "q_mean": float(q.mean()), "mean": None, "median": None, "q_quantiles": None}
    share = variance[inside] / (q[inside] * (1 - q[inside]))
    at = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
    return {
        "latents": int(inside.sum()),
        "q_mean": float(q.mean()),
        "q_quantiles": dict(zip(map(str, at.tolist()), q.quantile(at).tolist(), strict=True)),
        "mean": float(share.mean()),
        "median": float(share.median()),
    }
