"""Sparse autoencoders: z = f(W_e (x − b_d) + b_e), x_hat = W_d z + b_d (Bricken et al. 2023).

Inside, x is normalized; `encoder` and `decoder` hold one row a latent: [n_latents, d_in].
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saetool.autoencoders.base import Autoencoder, Loss, Normalizer, Stream
from saetool.autoencoders.sparse_settings import SparseSettings
from saetool.errors import RequestError
from saetool.sparse.codes import Codes
from saetool.sparse.products import decode, pre_activations
from saetool.sparse.support import Support

SAMPLE_ROWS = 4096
"""Rows from which biases are initialized: the quantile at L0 100 of 12,288 is then known to about 1 %."""

SLICE_ROWS = 256
"""Rows whose pre-activations are held at once: they stay in cache (measured: twice the rate of the whole batch)."""


class SparseAutoencoder(Autoencoder):
    """A dictionary of `n_latents` directions, few of them active at a time."""

    penalty_weight: Tensor

    def __init__(self, settings: SparseSettings, d_in: int):
        super().__init__()
        if settings.activation.kind != "relu" or settings.penalty.kind not in ("l1", "none"):
            raise RequestError(f"activation {settings.activation.kind} is not there yet")
        self.settings, self.d_in, self.n_latents = settings, d_in, settings.width(d_in)
        self.normalizer = Normalizer(d_in, settings.normalize)
        decoder = torch.nn.functional.normalize(torch.randn(self.n_latents, d_in), dim=1)
        self.decoder = nn.Parameter(decoder)
        self.encoder = nn.Parameter(decoder.clone())
        self.encoder_bias = nn.Parameter(torch.zeros(self.n_latents))
        self.decoder_bias = nn.Parameter(torch.zeros(d_in))
        self.register_buffer("penalty_weight", torch.tensor(0.1))

    @torch.no_grad()
    def initialize(self, stream: Stream, generator: torch.Generator) -> None:
        """Fit the normalization, draw unit decoder rows, tie the encoder to them, set biases for the wanted L0."""
        self.normalizer.fit(stream.statistics())
        self.decoder.copy_(torch.randn(self.decoder.shape, generator=generator))
        self._normalize_decoder()
        self.encoder.copy_(self.decoder)
        x = self.normalizer(stream.sample(SAMPLE_ROWS).to(self.decoder)) - self.decoder_bias
        pre = torch.cat([part @ self.encoder.T for part in x.split(SLICE_ROWS)]).flatten()
        rank = max(1, round(pre.numel() * (1 - min(self.settings.initial_l0, self.n_latents / 4) / self.n_latents)))
        self.encoder_bias.fill_(-float(pre.kthvalue(rank).values))

    def _select(self, x: Tensor) -> tuple[Support, Tensor]:
        rows, latents, values = [], [], []
        with torch.no_grad():
            for start in range(0, len(x), SLICE_ROWS):
                pre = torch.addmm(self.encoder_bias, x[start : start + SLICE_ROWS], self.encoder.T)
                i, j = (pre > 0).nonzero(as_tuple=True)
                rows.append(i + start)
                latents.append(j)
                values.append(pre[i, j])
        support = Support(torch.cat(rows), torch.cat(latents), len(x), self.n_latents)
        return support, torch.cat(values)

    def encode_sparse(self, x: Float[Tensor, "batch d_in"]) -> Codes:
        """Return the active latents of raw activations."""
        support, values = self._select(self.normalizer(x.to(self.decoder)) - self.decoder_bias)
        return Codes(support.offsets, support.latents, values, self.n_latents)

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch n_latents"]:
        """Return the latents of raw activations."""
        return self.encode_sparse(x).dense()

    def decode(self, z: Float[Tensor, "batch n_latents"]) -> Float[Tensor, "batch d_in"]:
        """Return the reconstruction in raw units."""
        return self.normalizer.inverse(z @ self.decoder + self.decoder_bias)

    def loss(self, x: Float[Tensor, "batch d_in"], step: int, generator: torch.Generator) -> Loss:
        """Return ‖x − x_hat‖² (normalized units, summed over d_in, mean over the batch) and the penalty."""
        x = self.normalizer(x.to(self.decoder))
        centered = x - self.decoder_bias.detach()
        support, values = self._select(centered)
        z = pre_activations(values, centered, self.decoder_bias, self.encoder, self.encoder_bias, support)
        x_hat = decode(z, self.decoder, support) + self.decoder_bias
        parts = {"reconstruction": (x - x_hat).square().sum() / len(x)}
        penalty = self.settings.penalty
        if penalty.kind == "l1":
            warm = min(1.0, (step + 1) / max(1, penalty.warmup_steps))
            weight = penalty.weight if penalty.weight is not None else 0.15
            parts["sparsity"] = warm * weight * self.d_in**0.5 * z.sum() / len(x)
        metrics = {"l0": (values > 0).sum() / len(x), "l1": values.sum() / len(x)}
        return Loss(parts, metrics)

    @torch.no_grad()
    def before_update(self) -> None:
        """Remove the part of the decoder's gradient that would only change row norms."""
        if self.decoder.grad is not None:
            along = (self.decoder.grad * self.decoder).sum(1, keepdim=True)
            self.decoder.grad -= along * self.decoder

    @torch.no_grad()
    def after_update(self, optimizer: torch.optim.Optimizer, step: int, generator: torch.Generator) -> None:
        """Bring the decoder rows back to norm 1."""
        self._normalize_decoder()

    def _normalize_decoder(self) -> None:
        self.decoder.div_(self.decoder.norm(dim=1, keepdim=True).clamp_min(1e-12))

    def decoder_directions(self) -> Float[Tensor, "n_latents d_in"]:
        """Return what one unit of each latent adds to the reconstruction, in raw units."""
        return self.decoder.detach() / self.normalizer.factor

    def encoder_directions(self) -> Float[Tensor, "n_latents d_in"]:
        """Return each latent's encoder row."""
        return self.encoder.detach()
