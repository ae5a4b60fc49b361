"""Sparse autoencoders: z = f(W_e (x − b_d) + b_e), x_hat = W_d z + b_d (Bricken et al. 2023).

f, the penalty, nested prefixes and the cure for dead latents are choices of the settings; the formulas stand in
`sparse_activations`, `sparse_penalties` and `sparse_dead`. Inside, x is normalized, and `encoder` and `decoder` hold
one row a latent: [n_latents, d_in].
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saetool import distributed
from saetool.autoencoders.base import Autoencoder, Loss, Normalizer, Stream
from saetool.autoencoders.sparse_activations import BatchTopK, Gated, JumpRelu, TopK, make_activation
from saetool.autoencoders.sparse_dead import (
    SilenceCounter,
    auxk_loss,
    due,
    pre_activation_loss,
    require_possible,
    resample_directions,
)
from saetool.autoencoders.sparse_initial import initialize_sparse
from saetool.autoencoders.sparse_penalties import PenaltyWeight, kl_penalty
from saetool.autoencoders.sparse_settings import AuxK, KlPenalty, PreActivation, Resample, SparseSettings
from saetool.autoencoders.sparse_views import DenseView, SparseView, View, product
from saetool.errors import RequestError
from saetool.sparse import compiled
from saetool.sparse.adam import BlockAdam, BlockRule, normalize_rows, remove_part_along
from saetool.sparse.codes import Codes
from saetool.sparse.gradients import Term
from saetool.sparse.memory import keep_freed_memory
from saetool.sparse.products import Sink, decode, pre_activations, row_norms
from saetool.sparse.select import Encoder
from saetool.sparse.support import Support
from saetool.sparse.threads import operators_on_one_core, share_out

SPARSE_BELOW = {"cpu": 0.1, "cuda": 0.02, "mps": 0.0}
"""Share of active latents above which the dense step is faster, where `sparse_below` is null (measured on CPU; an
estimate on CUDA; 0: always dense)."""

MUCH_TOO_DENSE = 2.0
"""A batch with so many times that share goes to the dense step at once: its sparse step could outgrow the memory."""

ROWS_IN_CACHE = 256
"""Rows on which a thread makes one operation after the other."""

DENSITY_EVERY = 100
"""Steps between two decisions for the sparse or the dense step: asking costs a synchronization on CUDA."""

SIGMOID_ACTIVE = 0.1
"""A sigmoid latent is never 0; it counts as active above this."""


class SparseAutoencoder(Autoencoder):
    """A dictionary of `n_latents` directions, few of them active at a time."""

    tokens_seen: Tensor
    use_dense: Tensor
    mean_l0: Tensor

    def __init__(self, settings: SparseSettings, d_in: int):
        super().__init__()
        self.settings, self.d_in, self.n_latents = settings, d_in, settings.width(d_in)
        self.normalizer = Normalizer(d_in, settings.normalize)
        self.activation = make_activation(settings.activation, self.n_latents, d_in)
        self.penalty_weight = PenaltyWeight(settings.penalty)
        self.silence = SilenceCounter(settings.dead, self.n_latents)
        decoder = nn.functional.normalize(torch.randn(self.n_latents, d_in), dim=1)
        self.decoder = nn.Parameter(decoder)
        self.encoder = nn.Parameter(decoder.clone())
        self.encoder_bias = nn.Parameter(torch.zeros(self.n_latents))
        self.decoder_bias = nn.Parameter(torch.zeros(d_in))
        self.register_buffer("tokens_seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("use_dense", torch.tensor(self.activation.dense_only))
        self.register_buffer("mean_l0", torch.zeros(()))
        if self.activation.dense_only:
            self.active_above = SIGMOID_ACTIVE
        k = getattr(settings.activation, "k", 0)
        if k > self.n_latents:
            raise RequestError(f"autoencoder.activation.k {k} exceeds the {self.n_latents} latents: lower it")
        prefixes = list(settings.matryoshka or ())
        if prefixes and prefixes[-1] > self.n_latents:
            raise RequestError(
                f"matryoshka prefix {prefixes[-1]} exceeds the {self.n_latents} latents that expansion "
                f"{settings.expansion} makes of inputs of width {d_in}: lower it"
            )
        self.prefixes = [p for p in prefixes if p < self.n_latents] + [self.n_latents] if prefixes else None
        self._finder = Encoder(self.encoder, settings.codes)
        self._sinks: tuple[list[Term], list[Term]] = ([], [])
        self._last: dict[str, Tensor] = {}
        self._rows = 0
        self._dense: bool | None = None
        self.register_load_state_dict_post_hook(lambda module, keys: setattr(module, "_dense", None))

    @property
    def unit_decoder(self) -> bool:
        """Whether decoder rows are kept at norm 1: where nothing else in the loss holds their norm."""
        penalty = self.settings.penalty
        return not isinstance(penalty, KlPenalty) and getattr(penalty, "norm", "unit") == "unit"

    # --- inference ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_sparse(self, x: Float[Tensor, "batch d_in"]) -> Codes:
        """Return the active latents of raw activations."""
        self._require_rows(x)
        if len(x) == 0:
            return Codes.from_dense(self.encoder.new_zeros(0, self.n_latents))
        if self._dense_only():
            return Codes.from_dense(self.encode(x), self.active_above)
        training = self.training
        self.eval()
        centered = self.normalizer(x.to(self.encoder)) - self.decoder_bias
        support, a = self.activation.select(self._finder, centered, self.encoder_bias)
        view = SparseView(a, support)
        values = self.activation.values(a, view.pick, self.encoder_bias)
        self.train(training)
        return support.codes(values)

    def encode(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch n_latents"]:
        """Return the latents of raw activations."""
        self._require_rows(x)
        if not self._dense_only():
            return self.encode_sparse(x).dense()
        training = self.training
        self.eval()
        view = self._dense_view(self.normalizer(x.to(self.encoder)))
        z = self.activation.values(view.a, view.pick, self.encoder_bias)
        self.train(training)
        return z

    def decode(self, z: Float[Tensor, "batch n_latents"]) -> Float[Tensor, "batch d_in"]:
        """Return the reconstruction in raw units."""
        return self.normalizer.inverse(z.to(self.decoder) @ self.decoder + self.decoder_bias)

    def decode_sparse(self, codes: Codes) -> Float[Tensor, "batch d_in"]:
        """Return the reconstruction of sparse codes, in raw units."""
        if self._dense_only():
            return self.decode(codes.dense())
        support = Support.of(codes)
        x_hat = decode(codes.values.to(self.decoder), self.decoder, support) + self.decoder_bias
        return self.normalizer.inverse(x_hat)

    def decoder_directions(self) -> Float[Tensor, "n_latents d_in"]:
        """Return what one unit of each latent adds to the reconstruction, in raw units."""
        return self.decoder.detach() / self.normalizer.factor

    def encoder_directions(self) -> Float[Tensor, "n_latents d_in"]:
        """Return each latent's encoder row as it acts on raw activations."""
        return self.encoder.detach() * self.normalizer.factor

    def _require_rows(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[1] != self.d_in:
            given = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise RequestError(f"activations must be a tensor [batch, {self.d_in}], got {given}")

    # --- the loss ----------------------------------------------------------------------------------------------------

    def loss(self, x: Float[Tensor, "batch d_in"], step: int, generator: torch.Generator) -> Loss:
        """Return ‖x − x_hat‖² (normalized units, summed over d_in, mean over the batch), the penalty, the cure.

        Under autocast the dense step's two products are made in bfloat16, and nothing else.
        """
        kind = self.encoder.device.type
        half = torch.is_autocast_enabled(kind) and self.encoder.dtype == torch.float32
        with torch.autocast(kind, enabled=False):
            return self._loss(*self._in_units(x.to(self.encoder)), step, half)

    @torch.no_grad()
    def _in_units(self, x: Float[Tensor, "batch d_in"]) -> tuple[Tensor, Tensor]:
        """Return rows in the model's units, and what the encoder sees of them: without the decoder's bias."""
        units, centered = torch.empty_like(x), torch.empty_like(x)

        def part(number: int, rows: range) -> None:
            some = slice(rows.start, rows.stop)
            units[some] = self.normalizer(x[some])
            torch.sub(units[some], self.decoder_bias, out=centered[some])

        share_out(part, len(x), ROWS_IN_CACHE if x.device.type == "cpu" else max(1, len(x)), x.device)
        return units, centered

    def _loss(
        self, x: Float[Tensor, "batch d_in"], centered: Float[Tensor, "batch d_in"], step: int, half: bool
    ) -> Loss:
        view = None if self._is_dense() else self._sparse_view(centered)
        if view is None:
            view = self._dense_view(x, half)
        z = self.activation.values(view.a, view.pick, self.encoder_bias)
        decoder_sink = self._sink(1)
        if self.prefixes:
            x_hats = view.decode_prefixes(z, self.decoder, decoder_sink, self.prefixes) + self.decoder_bias
            error = nn.functional.mse_loss(x_hats, x.expand_as(x_hats), reduction="sum") / len(self.prefixes)
            residual = x - x_hats[-1].detach()
        else:
            error, residual = view.squared_error(z, self.decoder, self.decoder_bias, x, decoder_sink)
        parts = {"reconstruction": error / len(x)}
        metrics = self._note_batch(view, z, residual, centered)
        weight = self.penalty_weight.at(step)
        parts |= self._penalty(view, z, x, weight)
        parts |= self._cure(residual, centered)
        metrics |= {"penalty_weight": weight, "dead": self.silence.dead().float().mean()}
        return Loss(parts, metrics)

    def _penalty(self, view: View, z: Tensor, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
        penalty = self.settings.penalty
        match penalty.kind:
            case "l1":
                cost = z if not isinstance(self.activation, Gated) else view.a.relu()
                if penalty.norm == "weighted":
                    cost = cost * view.pick(row_norms(self.decoder, self._sink(1)))
                parts = {"sparsity": weight * self.d_in**0.5 * cost.sum() / view.rows}
                if isinstance(self.activation, Gated):
                    x_hat = view.decode(view.a.relu(), self.decoder.detach(), None) + self.decoder_bias.detach()
                    parts["gate"] = (x - x_hat).square().sum() / view.rows
                return parts
            case "l0":
                assert isinstance(self.activation, JumpRelu)
                active = self.activation.active(view.a, view.pick)
                return {"sparsity": weight * self.d_in * active.sum() / view.rows}
            case "kl":
                q = view.latent_sums(z) / view.rows
                squares = row_norms(self.decoder, self._sink(1)).square().sum()
                return {
                    "sparsity": weight * self.d_in * kl_penalty(penalty.rho, q),
                    "decoder_decay": penalty.decoder_decay / 2 * squares,
                }
        return {}

    def _cure(self, residual: Tensor, centered: Tensor) -> dict[str, Tensor]:
        cure = self.settings.dead
        if isinstance(cure, AuxK):
            sinks = (self._sink(0), self._sink(1))
            weights = (self.decoder_bias, self.encoder, self.encoder_bias, self.decoder)
            return {"auxiliary": auxk_loss(cure, residual, centered, *weights, self.silence.dead(), sinks)}
        if isinstance(cure, PreActivation) and isinstance(self.activation, JumpRelu):
            theta = self.activation.log_threshold.exp()
            weights = (self.encoder, self.encoder_bias, self.decoder, theta)
            return {"auxiliary": pre_activation_loss(cure, centered, *weights, self.silence.dead())}
        return {}

    @torch.no_grad()
    def _note_batch(self, view: View, z: Tensor, residual: Tensor, centered: Tensor) -> dict[str, Tensor]:
        """Return what is worth logging of a batch, and keep for `after_update` what it needs."""
        active = (z > self.active_above).to(z.dtype)
        counts = view.latent_sums(active)
        metrics = {"l0": counts.sum() / view.rows, "l1": z.sum() / view.rows}
        if isinstance(self.settings.penalty, KlPenalty):
            q = view.latent_sums(z) / view.rows
            spread = view.latent_sums(z.square()) / view.rows - q.square()
            # Bimodal latents are near 1, a dense linear code around rho is near 0.
            metrics["binarity"] = (spread / (q * (1 - q)).clamp_min(1e-12)).mean()
        if self.training:
            resampling = isinstance(self.settings.dead, Resample)
            rows = {"errors": residual.square().sum(1), "x": centered} if resampling else {}
            # With gradient accumulation several losses come before one update.
            self._last["counts"] = self._last["counts"] + counts if self._last else counts
            for name, value in rows.items():
                self._last[name] = torch.cat([self._last[name], value]) if name in self._last else value
            self._rows += view.rows
        return metrics

    def _sparse_view(self, centered: Tensor) -> SparseView | None:
        """Return the view of a batch; None where it is so dense that this and later steps must be dense."""
        select = self.activation.select_training if self.training else self.activation.select
        support, values = select(self._finder, centered, self.encoder_bias.detach())
        most = MUCH_TOO_DENSE * self._sparse_share() * self.n_latents * len(centered)
        # A k bounds the number by itself (and BatchTopK's processes select together, so none may leave alone).
        if len(values) > most and not isinstance(self.activation, TopK | BatchTopK):
            self.use_dense.fill_(True)
            self._dense = True
            return None
        a = pre_activations(
            values, centered, self.decoder_bias, self.encoder, self.encoder_bias, support, self._sink(0)
        )
        return SparseView(a, support)

    def _dense_view(self, x: Tensor, half: bool = False) -> DenseView:
        a = product(x - self.decoder_bias, self.encoder.T, half) + self.encoder_bias
        kept = self.activation.survivors(a, self.training)
        return DenseView(a if kept is None else torch.where(kept, a, 0.0), half)

    def _sparse_share(self) -> float:
        given = self.settings.sparse_below
        return SPARSE_BELOW.get(self.encoder.device.type, 0.0) if given is None else given

    def _dense_only(self) -> bool:
        return self.activation.dense_only or self._sparse_share() == 0.0

    def _is_dense(self) -> bool:
        if self._dense is None:
            self._dense = bool(self.use_dense) or self._dense_only()
        return self._dense

    def _sink(self, which: Literal[0, 1]) -> Sink:
        return self._sinks[which] if self.fuse_gradients and torch.is_grad_enabled() else None

    # --- training ----------------------------------------------------------------------------------------------------

    def initialize(self, stream: Stream, generator: torch.Generator) -> None:
        """Set normalization, dictionary and biases from training rows; decide how to start (sparse or dense)."""
        require_possible(self.settings.dead, self.total_steps, self.total_tokens)
        self._learn_length(stream)
        expected = initialize_sparse(self, stream, generator)  # type: ignore[arg-type]
        self.mean_l0.fill_(expected)
        self._decide_density()

    def enter(self, phase: str, stream: Stream) -> None:
        """Set what follows from the training's length and is not saved: a resumed one comes here only."""
        self._learn_length(stream)

    def _learn_length(self, stream: Stream) -> None:
        self.silence.set_training_tokens(self.total_tokens or stream.n_rows)
        self.penalty_weight.set_training_steps(self.total_steps)

    def make_optimizer(self, lr: float, betas: tuple[float, float], eps: float) -> BlockAdam:
        """Return Adam in blocks of latents, with unit rows and the bfloat16 copy kept up on the way."""
        keep_freed_memory()
        rules = {
            self.encoder: BlockRule(self._sinks[0], encoder=self._finder),
            self.decoder: BlockRule(self._sinks[1], unit_rows=self.unit_decoder),
        }
        return BlockAdam(list(self.parameters()), rules, lr, betas, eps)

    def stepping(self) -> AbstractContextManager[None]:
        """Return what a step runs in: where next to all of it is done in shares, torch's operators take one core."""
        plain = self.prefixes is None and not isinstance(self.activation, Gated)
        in_shares = plain and self.fuse_gradients and compiled.serves(self.encoder) and not self._is_dense()
        return operators_on_one_core() if in_shares else nullcontext()

    @torch.no_grad()
    def before_update(self) -> None:
        """Remove the part of the decoder's gradient that would only change row norms."""
        if self.unit_decoder and self.decoder.grad is not None:
            remove_part_along(self.decoder, self.decoder.grad)

    @torch.no_grad()
    def after_update(self, optimizer: torch.optim.Optimizer, step: int, generator: torch.Generator) -> None:
        """Restore unit rows, count silence, move thresholds, steer the penalty, resample, choose sparse or dense."""
        if self.unit_decoder and not isinstance(optimizer, BlockAdam):
            normalize_rows(self.decoder)
        if not self._last:
            return
        l0 = distributed.all_reduce_mean(self._last["counts"].sum() / self._rows)
        self.silence.update(self._last["counts"] > 0, self._rows)
        self.tokens_seen += self._rows * distributed.world_size()
        self.activation.after_update()
        self.penalty_weight.after_update(step, l0, self.mean_l0)
        self.mean_l0.lerp_(l0.to(self.mean_l0), 0.1)
        if (step + 1) % DENSITY_EVERY == 0:
            self._decide_density()
        cure = self.settings.dead
        if isinstance(cure, Resample) and due(cure, step, self.tokens_seen, self.total_steps, self.total_tokens):
            self._resample(cure, optimizer, generator)
        self._last, self._rows = {}, 0

    def _decide_density(self) -> None:
        self.use_dense.copy_(self.mean_l0 > self._sparse_share() * self.n_latents)
        self._dense = None

    def _resample(self, cure: Resample, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
        """Give dead latents the directions of badly reconstructed inputs, a small encoder row, and a fresh start."""
        dead = self.silence.dead()
        index = dead.nonzero().squeeze(1)
        if index.numel() == 0:
            return
        drawn = resample_directions(self._last["errors"], self._last["x"], index.numel(), generator)
        index = index[: len(drawn)]
        if index.numel() == 0:
            return
        alive = torch.linalg.vector_norm(self.encoder[~dead], dim=1)
        scale = alive.mean() if alive.numel() else self.encoder.new_ones(())
        self.decoder[index] = drawn
        self.encoder[index] = drawn * (cure.encoder_scale * scale)
        reset = [self.encoder, self.decoder, self.encoder_bias]
        self.encoder_bias[index] = 0.0
        if isinstance(self.activation, Gated):
            reset += [self.activation.magnitude_bias, self.activation.log_scale]
            self.activation.magnitude_bias[index] = 0.0
            self.activation.log_scale[index] = 0.0
        for parameter in reset:
            for name in ("exp_avg", "exp_avg_sq"):
                if name in optimizer.state.get(parameter, {}):
                    optimizer.state[parameter][name][index] = 0.0
        self.silence.silent_tokens[index] = 0

    def loss_convention(self) -> str:
        """Say in words what `loss` sums and averages."""
        return (
            "reconstruction error: squared, in normalized units, summed over d_in, mean over the batch"
            + (" and over prefixes" if self.prefixes else "")
            + "; L1 weight times sqrt(d_in), L0 and KL weight times d_in"
        )
