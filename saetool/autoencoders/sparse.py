"""Sparse autoencoders: z = f(W_enc (x − b_dec) + b_enc), x_hat = W_dec z + b_dec (Bricken et al. 2023).

f, the penalty, nested prefixes and the revival of dead latents are choices of the settings; the formulas stand in
`sparse_activations`, `sparse_penalties` and `sparse_dead`. Inside, x is normalized, and W_enc and W_dec hold one row
a latent: [n_latents, d_in].
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saetool import distributed
from saetool.autoencoders.base import (
    UNKNOWN,
    Autoencoder,
    Loss,
    Normalizer,
    Step,
    Stream,
    Training,
    finite_rows,
    of_width,
)
from saetool.autoencoders.sparse_activations import ACTIVATIONS, Gated, JumpRelu, Sigmoid
from saetool.autoencoders.sparse_dead import (
    DeadLatentTracker,
    auxk_loss,
    due,
    pre_activation_loss,
    require_possible,
    resample,
    resample_every,
)
from saetool.autoencoders.sparse_initial import initialize_sparse
from saetool.autoencoders.sparse_penalties import PenaltyWeight, kl_penalty
from saetool.autoencoders.sparse_settings import (
    AuxK,
    KlPenalty,
    NoRevival,
    PreActivation,
    Resample,
    SparseSettings,
    require_width,
)
from saetool.autoencoders.sparse_views import Begun, DenseView, Error, Selected, SparseView, View, product
from saetool.errors import RequestError
from saetool.sparse.adam import Gains, RowRule, SparseAdam
from saetool.sparse.backends import Precision, backend_for, compiled_dense, default_precision, finish, sparse_below
from saetool.sparse.backends.plain import normalize_rows, remove_part_along
from saetool.sparse.codes import Codes, Support
from saetool.sparse.gradients import DeferredGradient
from saetool.sparse.ops import decode, pre_activations, row_norms
from saetool.sparse.weight import Weight

MUCH_TOO_DENSE = 2.0
"""A batch with so many times that share goes to the dense step at once: its sparse step could outgrow the memory."""

DENSITY_EVERY = 100
"""Steps between two decisions for the sparse or the dense step: asking costs a synchronization on CUDA."""

SIGMOID_ACTIVE = 0.1
"""A sigmoid latent is never 0; it counts as active above this."""


@dataclass(frozen=True)
class Piece:
    """What `after_update` needs of a batch, or of one of the pieces that make one."""

    rows: int
    counts: Float[Tensor, "n_latents"]
    """Rows on which each latent was active."""
    smallest: Tensor | None
    resampled: tuple[Float[Tensor, "batch"], Float[Tensor, "batch d_in"]] | None
    """Squared errors and centered inputs, from which dead latents start again."""
    dense: bool
    """Whether the step was the dense one."""


class SparseAutoencoder(Autoencoder):
    """A dictionary of `n_latents` directions, few of them active at a time."""

    tokens_seen: Tensor
    use_dense: Tensor
    mean_l0: Tensor

    def __init__(self, settings: SparseSettings, d_in: int):
        super().__init__()
        self.settings, self.d_in, self.n_latents = settings, d_in, settings.width(d_in)
        self.normalizer = Normalizer(d_in, settings.normalize)
        self.activation = ACTIVATIONS[settings.activation.kind](settings.activation, self.n_latents, d_in)
        self.penalty_weight = PenaltyWeight(settings.penalty)
        self.silence = DeadLatentTracker(settings.dead, self.n_latents)
        W_dec = nn.functional.normalize(torch.randn(self.n_latents, d_in), dim=1)
        self.W_dec = nn.Parameter(W_dec)
        self.W_enc = nn.Parameter(W_dec.clone())
        self.b_enc = nn.Parameter(torch.zeros(self.n_latents))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.register_buffer("tokens_seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("use_dense", torch.tensor(self.activation.dense_only))
        self.register_buffer("mean_l0", torch.zeros(()))
        if isinstance(self.activation, Sigmoid):
            self.active_above = SIGMOID_ACTIVE
        require_width(settings, d_in, self.n_latents)
        prefixes = list(settings.matryoshka or ())
        self.prefixes = [p for p in prefixes if p < self.n_latents] + [self.n_latents] if prefixes else None
        self._W_enc, self._W_dec = Weight(self.W_enc), Weight(self.W_dec)
        self._dense: bool | None = None
        self._compiled: Callable[..., tuple[Any, ...]] | None = None
        self.register_load_state_dict_post_hook(SparseAutoencoder._forget)

    def _forget(self, keys: Any = None) -> None:
        """Forget what was read off buffers that have changed since."""
        self._dense = None
        self.silence.forget_count()
        self._follow()

    def _follow(self) -> None:
        """Take the weights as the module has them now: they may have been exchanged."""
        self._W_enc.follow(self.W_enc)
        self._W_dec.follow(self.W_dec)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was compiled for this model alone: a copy compiles its own."""
        return self.__dict__ | {"_compiled": None}

    @property
    def unit_decoder(self) -> bool:
        """Whether decoder rows are kept at norm 1: where nothing else in the loss holds their norm."""
        penalty = self.settings.penalty
        return not isinstance(penalty, KlPenalty) and getattr(penalty, "norm", "unit") == "unit"

    @torch.no_grad()
    def encode_sparse(self, x: Float[Tensor, "*batch d_in"]) -> Codes:
        x = finite_rows(x, self.d_in)
        if len(x) == 0:
            return Codes.from_dense(self.W_enc.new_zeros(0, self.n_latents))
        if self._dense_only():
            return Codes.from_dense(self._encode_dense(x), self.active_above)
        self._follow()
        _, centered = self._in_units(x)
        support, a = finish(self.activation.search(self._W_enc, centered, self.b_enc, "exact"))
        view = SparseView(a, support)
        return support.codes(self.activation.values(a, view.gather, self.b_enc, training=False))

    @torch.no_grad()
    def encode_some(self, x: Float[Tensor, "rows d_in"], latents: Int[Tensor, "some"]) -> Codes:
        if self._dense_only() or self.activation.competes or min(len(x), len(latents)) == 0:
            return super().encode_some(x, latents)
        _, centered = self._in_units(x)
        W_enc, b_enc, cut = Weight(self.W_enc[latents]), self.b_enc[latents], self.activation.cut(self.b_enc)[latents]
        support, a = finish(backend_for(self.W_enc).search(centered, W_enc, b_enc, "exact", cut=cut))
        chosen = latents[support.latents]
        return support.codes(self.activation.values(a, lambda parameter: parameter[chosen], self.b_enc, training=False))

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        z = self._encode_dense(finite_rows(x, self.d_in)) if self._dense_only() else self.encode_sparse(x).dense()
        return z.reshape(*x.shape[:-1], self.n_latents)

    def _encode_dense(self, rows: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows n_latents"]:
        return self._dense_codes(self.normalizer(rows.to(self.W_enc)), training=False)[1]

    def decode(self, z: Float[Tensor, "*batch n_latents"]) -> Float[Tensor, "*batch d_in"]:
        """Return the reconstruction in raw units; under layer norm in each row's own (see `complete`)."""
        z = of_width(z, self.n_latents, "codes").to(self.W_dec)
        return self.normalizer.inverse(z @ self.W_dec + self.b_dec)

    def decode_sparse(self, codes: Codes) -> Float[Tensor, "batch d_in"]:
        """Return the reconstruction of sparse codes, as `decode` does."""
        if self._dense_only():
            return self.decode(codes.dense())
        self._follow()
        support = Support.of(codes)
        x_hat = decode(codes.values.to(self.W_dec), self._W_dec, support) + self.b_dec
        return self.normalizer.inverse(x_hat)

    def complete(
        self, decoded: Float[Tensor, "*batch d_in"], x: Float[Tensor, "*batch d_in"]
    ) -> Float[Tensor, "*batch d_in"]:
        if self.normalizer.kind != "layer_norm":
            return decoded
        mean, deviation = self.normalizer.row_units(x.to(decoded))
        return decoded * deviation + mean

    def decoder_directions(self) -> Float[Tensor, "n_latents d_in"]:
        """Return what one unit of each latent adds to the reconstruction, in raw units (of layer norm: a row's own)."""
        return self.W_dec.detach() / self.normalizer.factor

    def encoder_directions(self) -> Float[Tensor, "n_latents d_in"]:
        """Return each latent's encoder row as it acts on raw activations."""
        return self.W_enc.detach() * self.normalizer.factor

    # --- the loss ----------------------------------------------------------------------------------------------------

    def loss(
        self,
        x: Float[Tensor, "batch d_in"],
        step: Step,
        generator: torch.Generator,
        found: Selected | None = None,
    ) -> Loss:
        """Return ‖x − x_hat‖² (normalized units, summed over d_in, mean over the batch), the penalty, the revival.

        Under autocast the dense step's two products are made in bfloat16, and nothing else. `found`: what `begin` began
        of this batch.
        """
        kind = self.W_enc.device.type
        half = torch.is_autocast_enabled(kind) and self.W_enc.dtype == torch.float32
        with torch.autocast(kind, enabled=False):
            return self._loss(x, step, half, found)

    def repeats(self, step: Step) -> bool:
        """Say whether this sparse step does the same as the next ones, but for the batch and its number of entries."""
        revival = self.settings.dead
        if not self.penalty_weight.risen(step):
            return False
        if isinstance(revival, Resample):
            every = resample_every(revival, step.training)
            return not every or (step.number + 1) % every != 0
        return isinstance(revival, NoRevival)

    @torch.no_grad()
    def begin(self, x: Float[Tensor, "batch d_in"]) -> Begun | None:
        """Begin the selection of a batch, as far as it goes without waiting for the device; None where it does not."""
        x, centered = self._in_units(x)
        search = self.activation.search_training(self._W_enc, centered, self.b_enc.detach(), self._precision)
        return None if search is None else Begun(x, centered, search, self.activation)

    @torch.no_grad()
    def _in_units(self, x: Float[Tensor, "batch d_in"]) -> tuple[Tensor, Tensor]:
        """Return raw activations in the model's units, and what the encoder sees of them: less the decoder's bias."""
        x = x.to(self.W_enc.device)
        if self.normalizer.kind == "layer_norm":
            x = self.normalizer(x.to(self.W_enc.dtype))
        mean = self.normalizer.mean if self.normalizer.kind in ("scale", "center_scale") else None
        return backend_for(self.W_enc).center(x, mean, self.normalizer.factor, self.b_dec)

    def _loss(self, x: Tensor, step: Step, half: bool, found: Selected | None) -> Loss:
        taker = step.optimizer
        deferred = (taker.deferred(self.W_enc), taker.deferred(self.W_dec)) if taker else (None, None)
        x, centered = found[:2] if found else self._in_units(x)
        found = None if self.is_dense() else found or self._select(x, centered)
        if found is not None:
            weights = (self.b_dec, self.W_enc, self.b_enc)
            a = pre_activations(found.values, centered, *weights, found.support, deferred[0])
            view, smallest = SparseView(a, found.support), found.smallest
            z = self.activation.values(a, view.gather, self.b_enc, training=True)
            error, errors, residual = self._error(view, z, x, deferred[1])
        else:
            half, deferred = half or self._precision == "bf16", (None, None)
            a, z, smallest, error, errors, residual = self._dense_step(x, half)
            view = DenseView(a, half)
        weight, training = self.penalty_weight.at(step), step.training
        parts = {"reconstruction": error / len(x)}
        counts = view.latent_sums((z > self.active_above).to(z.dtype))
        metrics = self._numbers(view, z, counts)
        resampled = (errors, centered) if isinstance(self.settings.dead, Resample) else None
        parts |= self._penalty(view, z, x, weight, deferred[1])
        parts |= self._revival(residual, centered, deferred, training)
        metrics |= {"penalty_weight": weight, "dead": self.silence.dead(training).float().mean()}
        return Loss(parts, metrics, Piece(view.rows, counts, smallest, resampled, dense=found is None))

    def _select(self, x: Tensor, centered: Tensor) -> Selected | None:
        """Return the entries of a batch; None where they are so many that this and later steps must be dense."""
        chosen = self.activation.select_training(self._W_enc, centered, self.b_enc.detach(), self._precision)
        return None if self.too_dense(len(chosen[1]), len(centered)) else Selected(x, centered, *chosen)

    def _penalty(
        self, view: View, z: Tensor, x: Tensor, weight: Tensor, deferred: DeferredGradient | None
    ) -> dict[str, Tensor]:
        penalty = self.settings.penalty
        match penalty.kind:
            case "l1":
                cost = z if not isinstance(self.activation, Gated) else view.a.relu()
                if penalty.norm == "weighted":
                    cost = cost * view.gather(row_norms(self.W_dec, deferred))
                parts = {"sparsity": weight * self.d_in**0.5 * cost.sum() / view.rows}
                if isinstance(self.activation, Gated):
                    x_hat = view.decode(view.a.relu(), self._W_dec.detached(), None) + self.b_dec.detach()
                    parts["gate"] = (x - x_hat).square().sum() / view.rows
                return parts
            case "l0":
                assert isinstance(self.activation, JumpRelu)
                active = self.activation.active(view.a, view.gather)
                return {"sparsity": weight * self.d_in * active.sum() / view.rows}
            case "kl":
                q = view.latent_sums(z) / view.rows
                squares = row_norms(self.W_dec, deferred).square().sum()
                return {
                    "sparsity": weight * self.d_in * kl_penalty(penalty.rho, q),
                    "decoder_decay": penalty.decoder_decay / 2 * squares,
                }
        return {}

    def _revival(
        self,
        residual: Tensor,
        centered: Tensor,
        deferred: tuple[DeferredGradient | None, DeferredGradient | None],
        training: Training,
    ) -> dict[str, Tensor]:
        revival = self.settings.dead
        if isinstance(revival, AuxK):
            weights = (self.b_dec, self.W_enc, self.b_enc, self._W_dec)
            dead, precision = self.silence.dead_latents(training), self._precision
            return {"auxiliary": auxk_loss(revival, residual, centered, *weights, dead, precision, deferred)}
        if isinstance(revival, PreActivation) and isinstance(self.activation, JumpRelu):
            theta = self.activation.log_threshold.exp()
            weights = (self.W_enc, self.b_enc, self.W_dec, theta)
            return {"auxiliary": pre_activation_loss(revival, centered, *weights, self.silence.dead_latents(training))}
        return {}

    @torch.no_grad()
    def _numbers(self, view: View, z: Tensor, counts: Tensor) -> dict[str, Tensor]:
        """Return what is worth logging of a batch."""
        metrics = {"l0": counts.sum() / view.rows, "l1": z.sum() / view.rows}
        if isinstance(self.settings.penalty, KlPenalty):
            q = view.latent_sums(z) / view.rows
            spread = view.latent_sums(z.square()) / view.rows - q.square()
            # Bimodal latents are near 1, a dense linear code around rho is near 0.
            metrics["binarity"] = (spread / (q * (1 - q)).clamp_min(1e-12)).mean()
        return metrics

    def too_dense(self, entries: int, rows: int) -> bool:
        """Say whether so many entries are far too many for a sparse step."""
        # A k bounds the number by itself (and BatchTopK's processes select together, so none may leave alone).
        bounded = self.activation.k > 0
        return not bounded and entries > MUCH_TOO_DENSE * self._sparse_share() * self.n_latents * rows

    def _dense_step(self, x: Tensor, half: bool) -> tuple[Any, ...]:
        """Return a, z, the smallest kept and the error of all latents; where a GPU compiles it, as one function."""
        if self._compiled is None:
            alone = self.activation.k > 0  # they sort, or ask other processes
            self._compiled = self._dense_formula if alone else compiled_dense(self._dense_formula, x.device)
        return self._compiled(x, half)

    def _dense_formula(self, x: Tensor, half: bool) -> tuple[Any, ...]:
        view, z, smallest = self._dense_codes(x, training=True, half=half)
        return view.a, z, smallest, *self._error(view, z, x, None)

    def _dense_codes(self, x: Tensor, training: bool, half: bool = False) -> tuple[DenseView, Tensor, Tensor | None]:
        """Return all pre-activations of rows in the model's units, their latents, and the smallest kept in training."""
        a = product(x - self.b_dec, self.W_enc.T, half) + self.b_enc
        kept, smallest = self.activation.selected(a, training)
        view = DenseView(a if kept is None else torch.where(kept, a, 0.0), half)
        return view, self.activation.values(view.a, view.gather, self.b_enc, training), smallest

    def _error(self, view: View, z: Tensor, x: Tensor, deferred: DeferredGradient | None) -> Error:
        """Return the reconstruction's error, the mean over prefixes where there are some."""
        if not self.prefixes:
            return view.squared_error(z, self._W_dec, self.b_dec, x, deferred)
        x_hats = view.decode_prefixes(z, self._W_dec, deferred, self.prefixes) + self.b_dec
        residual = x - x_hats[-1].detach()
        error = nn.functional.mse_loss(x_hats, x.expand_as(x_hats), reduction="sum") / len(self.prefixes)
        return error, residual.square().sum(1), residual

    @property
    def _precision(self) -> Precision:
        """Whose numbers decide in training who is active; encoding is exact."""
        codes = self.settings.codes
        return default_precision(self.W_enc.device) if codes == "auto" else codes

    def _sparse_share(self) -> float:
        given = self.settings.sparse_below
        return sparse_below(self.W_enc.device) if given is None else given

    def _dense_only(self) -> bool:
        return self.activation.dense_only or self._sparse_share() == 0.0

    def is_dense(self) -> bool:
        """Say whether training takes the dense step; what the device decided is read once, until it decides again."""
        if self._dense is None:
            self._dense = bool(self.use_dense) or self._dense_only()
        return self._dense

    # --- training ----------------------------------------------------------------------------------------------------

    def initialize(self, stream: Stream, generator: torch.Generator, training: Training = UNKNOWN) -> None:
        """Set normalization, dictionary and biases from training rows; decide how to start (sparse or dense)."""
        require_possible(self.settings.dead, training)
        expected = initialize_sparse(self, stream, generator)
        self.mean_l0.fill_(expected)
        self._decide_density()

    def make_optimizer(self, lr: float, betas: tuple[float, float], eps: float) -> SparseAdam:
        """Return Adam that keeps unit rows and the weights' copies up, and takes deferred gradients."""
        rules = {self.W_enc: RowRule(self._W_enc), self.W_dec: RowRule(self._W_dec, self.unit_decoder)}
        initial = self.settings.initial_gain
        gains = None if initial is None else Gains(self.W_dec, (self.W_enc, self.b_enc), initial)
        return SparseAdam(list(self.parameters()), rules, lr, betas, eps, gains)

    def step_context(self) -> AbstractContextManager[None]:
        """Return what a whole step runs in: where nearly all of it is the backend's, the backend says."""
        plain = self.prefixes is None and not isinstance(self.activation, Gated)
        return backend_for(self.W_enc).step_context() if plain and not self.is_dense() else nullcontext()

    @torch.no_grad()
    def before_update(self) -> None:
        """Remove the part of the decoder's gradient that would only change row norms."""
        if self.unit_decoder and self.settings.initial_gain is None and self.W_dec.grad is not None:
            remove_part_along(self.W_dec, self.W_dec.grad)

    @torch.no_grad()
    def after_update(
        self, optimizer: torch.optim.Optimizer, step: Step, generator: torch.Generator, losses: Sequence[Loss]
    ) -> None:
        """Restore unit rows, count silence, move thresholds, steer the penalty, resample."""
        if self.unit_decoder and not isinstance(optimizer, SparseAdam):
            if self.settings.initial_gain is not None:
                raise RequestError(f"autoencoder.initial_gain needs SparseAdam, not {type(optimizer).__name__}")
            normalize_rows(self.W_dec)
        pieces: list[Piece] = [loss.kept for loss in losses]
        rows, counts = sum(piece.rows for piece in pieces), reduce(torch.add, [piece.counts for piece in pieces])
        l0 = distributed.all_reduce_mean(counts.sum() / rows)
        if any(piece.dense for piece in pieces) and not self.is_dense():
            self._take_dense(torch.ones_like(self.use_dense))
        self.silence.update(counts > 0, rows, step.training)
        self.tokens_seen += rows * distributed.world_size()
        self.activation.after_update([piece.smallest for piece in pieces])
        self.penalty_weight.after_update(step, l0, self.mean_l0)
        self.mean_l0.lerp_(l0.to(self.mean_l0), 0.1)
        revival = self.settings.dead
        if isinstance(revival, Resample) and due(revival, step, self.tokens_seen):
            errors, x = map(torch.cat, zip(*[piece.resampled for piece in pieces if piece.resampled], strict=True))
            resample(self, revival, self.silence.dead(step.training), errors, x, optimizer, generator)

    @torch.no_grad()
    def after_step(self, step: Step) -> None:
        """Choose the sparse or the dense step for the next ones."""
        if (step.number + 1) % DENSITY_EVERY == 0:
            self._decide_density()

    def _decide_density(self) -> None:
        self._take_dense(self.mean_l0 > self._sparse_share() * self.n_latents)

    def _take_dense(self, dense: Tensor) -> None:
        self.use_dense.copy_(dense)
        self._dense = None

    def loss_convention(self) -> str:
        return (
            "reconstruction error: squared, in normalized units, summed over d_in, mean over the batch"
            + (" and over prefixes" if self.prefixes else "")
            + "; L1 weight times sqrt(d_in), L0 and KL weight times d_in"
        )
