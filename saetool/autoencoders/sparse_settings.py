"""The settings of sparse autoencoders, and which of their combinations make sense.

A model is an activation (which latents it selects), a penalty (what an active one costs), and a revival of dead ones.
Combinations that cannot work are refused here, before any work, with the reason.
"""

from typing import Annotated, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_serializer,
    model_validator,
)

from saetool.autoencoders.base import FamilySettings, Normalize
from saetool.errors import RequestError
from saetool.settings import Settings

# --- activations: pre-activations to latents -------------------------------------------------------------------------


class ReluActivation(Settings):
    """z = max(a, 0)."""

    kind: Literal["relu"] = "relu"


class SigmoidActivation(Settings):
    """z = 1 / (1 + exp(−a)): never zero, for the KL penalty."""

    kind: Literal["sigmoid"] = "sigmoid"


class OneMinusExpActivation(Settings):
    """z = 1 − exp(−max(a, 0)): in [0, 1) with true zeros, for the KL penalty."""

    kind: Literal["one_minus_exp"] = "one_minus_exp"


class TopKActivation(Settings):
    """The k largest of a row, then max(·, 0) (Gao et al. 2024)."""

    kind: Literal["topk"] = "topk"
    k: PositiveInt


class SignedTopKActivation(Settings):
    """The k largest of a row as they are, negative ones too: as some imported models have it; always dense."""

    kind: Literal["signed_topk"] = "signed_topk"
    k: PositiveInt


class BatchTopKActivation(Settings):
    """The k · batch largest of a batch, then max(·, 0); a learned threshold at inference (Bussmann et al. 2024)."""

    kind: Literal["batch_topk"] = "batch_topk"
    k: PositiveInt


class JumpReluActivation(Settings):
    """z = a where a > θ, else 0, with a threshold θ a latent (Rajamanoharan et al. 2024, 2407.14435).

    Threshold and bandwidth (the kernel's width ε) are in units where E‖x‖² = 1, as in the paper; the model
    multiplies them by √d_in.
    """

    kind: Literal["jump_relu"] = "jump_relu"
    threshold: PositiveFloat = 0.001
    bandwidth: PositiveFloat = 0.001


class GatedActivation(Settings):
    """z = 1[gate > 0] · max(magnitude, 0), both from one encoder (Rajamanoharan et al. 2024, 2404.16014)."""

    kind: Literal["gated"] = "gated"


Activation = Annotated[
    ReluActivation
    | SigmoidActivation
    | OneMinusExpActivation
    | TopKActivation
    | SignedTopKActivation
    | BatchTopKActivation
    | JumpReluActivation
    | GatedActivation,
    Field(discriminator="kind"),
]

# --- penalties -------------------------------------------------------------------------------------------------------


class _WeightOrTarget(Settings):
    weight: NonNegativeFloat | None = None
    target_l0: PositiveFloat | None = None
    """Steer the weight until this many latents are active a row."""
    warmup_steps: NonNegativeInt | None = None
    """The weight rises linearly from 0 over these steps; null: min(500, a tenth of the training)."""

    @model_validator(mode="after")
    def _one_of_both(self):
        if (self.weight is None) == (self.target_l0 is None):
            raise ValueError("give exactly one of weight and target_l0")
        return self


class L1Penalty(_WeightOrTarget):
    """weight · √d_in · Σ_j z_j (norm: unit, decoder rows kept at norm 1) or Σ_j z_j ‖W_dec,j‖ (norm: weighted)."""

    kind: Literal["l1"] = "l1"
    norm: Literal["unit", "weighted"] = "unit"


class L0Penalty(_WeightOrTarget):
    """weight · d_in · L0, whose gradient reaches JumpReLU's thresholds through a kernel.

    The factors of L1, L0 and KL make a weight mean the same at any width of the input.
    """

    kind: Literal["l0"] = "l0"


class KlPenalty(Settings):
    """weight · d_in · Σ_j KL(ρ‖q_j) + decoder_decay / 2 · ‖W_dec‖², q_j the mean of latent j (Ng 2011).

    ρ is a rate: at 24,576 latents .003 compares with about 74 active ones.
    """

    kind: Literal["kl"] = "kl"
    rho: float = Field(gt=0, lt=1)
    weight: NonNegativeFloat = 1.0
    decoder_decay: NonNegativeFloat = 0.01
    warmup_steps: NonNegativeInt = 0


class NoPenalty(Settings):
    """Nothing but the activation makes the code sparse: for topk, batch_topk and signed_topk."""

    kind: Literal["none"] = "none"


Penalty = Annotated[L1Penalty | L0Penalty | KlPenalty | NoPenalty, Field(discriminator="kind")]

# --- cures for dead latents ------------------------------------------------------------------------------------------


class _Dead(Settings):
    after_tokens: PositiveInt | None = None
    """A latent is dead when silent for so many tokens; null: min(10 million, 20 % of all training tokens)."""


class AuxK(_Dead):
    """The k largest dead pre-activations reconstruct the residual (Gao et al. 2024)."""

    kind: Literal["auxk"] = "auxk"
    k: PositiveInt | None = None
    """null: min(d_in / 2, 512)."""
    weight: NonNegativeFloat = 1 / 32


class Resample(_Dead):
    """Dead latents start again from badly reconstructed inputs (Bricken et al. 2023)."""

    kind: Literal["resample"] = "resample"
    every_steps: PositiveInt | None = None
    """null: a tenth of the training's steps."""
    stop_share: float = Field(default=0.8, gt=0, le=1)
    """No resampling after this share of the training, so that what it made can settle."""
    encoder_scale: PositiveFloat = 0.2
    """Norm of a new encoder row, relative to the mean of the living ones."""


class PreActivation(_Dead):
    """weight · √d_in · Σ over dead latents of max(θ − a, 0) ‖W_dec,j‖ (Anthropic, January 2025)."""

    kind: Literal["pre_activation"] = "pre_activation"
    weight: NonNegativeFloat = 3e-6


class NoRevival(Settings):
    """Dead latents stay dead."""

    kind: Literal["none"] = "none"


Dead = Annotated[AuxK | Resample | PreActivation | NoRevival, Field(discriminator="kind")]

# --- the whole -------------------------------------------------------------------------------------------------------

SELECTING = ("topk", "signed_topk", "batch_topk")
UNIT_INTERVAL = ("sigmoid", "one_minus_exp")
LEAST_DECAY = 1e-6
"""Less decay than this holds no decoder weight."""

REVIVALS = {
    "relu": ("resample",),
    "gated": ("resample",),
    "topk": ("auxk",),
    "batch_topk": ("auxk",),
    "jump_relu": ("pre_activation",),
}
"""What brings dead latents of an activation back; of the others nothing does."""

WITH_GAINS = ("topk", "batch_topk")
"""Activations whose reconstruction is linear in every latent, and whose penalty reads none: see `Gains`."""


class SparseSettings(FamilySettings):
    """One sparse autoencoder."""

    kind: Literal["sparse"] = "sparse"
    normalize: Normalize | Literal["layer_norm"] = "center_scale"
    """layer_norm takes mean and deviation from each row itself, as some imported models do."""
    activation: Activation = ReluActivation()
    penalty: Penalty = NoPenalty()
    matryoshka: tuple[PositiveInt, ...] | None = None
    """Sizes of nested prefixes of the latents, ascending; the whole dictionary is added as the last."""
    dead: Dead = NoRevival()
    codes: Literal["auto", "exact", "bf16"] = "auto"
    """Who is active in training is decided in float32 (exact), or in bfloat16, ties to the lowest latent. auto: bf16 on
    a GPU, exact everywhere else; a run records which. Encoding, index and evaluation are always exact."""
    sparse_below: float | None = Field(default=None, ge=0, le=1)
    """Share of active latents up to which the sparse step is taken, the dense one above; null: .1 on CPU, .01 on CUDA,
    0 elsewhere. 0 is always dense."""
    initial_norm: PositiveFloat | None = None
    """‖W_enc,j‖ of every latent at the start, W_dec's rows having norm 1. null: 2 for ReLU with L1, 1.5 with KL, 1
    for all others, .1 with an initial_gain; for TopK, less ends with less error and more latents that never fire."""
    initial_gain: PositiveFloat | None = None
    """‖W_dec,j‖ at the start of a decoder whose norms learn (topk and batch_topk): selection is by what a latent adds,
    and rows are kept at norm 1 with the norm taken into the encoder. null: rows have norm 1 throughout. With .3
    the first steps reduce the error more, and on the demo more latents never fire (docs/benchmarks.md)."""
    initial_l0: PositiveFloat = 100.0
    """Biases start so that about this many latents are active a row; larger is slower and kills fewer latents."""

    @model_serializer(mode="wrap")
    def _without_what_is_left_out(self, dump):
        """Leave out a key younger than the first models: what was asked for before it is the same request still."""
        return {key: value for key, value in dump(self).items() if key != "initial_gain" or value is not None}

    @model_validator(mode="after")
    def _legal(self):
        for ask in (_penalty_complaint, _revival_complaint, _k_complaint, _matryoshka_complaint, _gain_complaint):
            if complaint := ask(self):
                raise ValueError(complaint)
        return self


def require_width(settings: SparseSettings, d_in: int, n_latents: int) -> None:
    """Raise RequestError where settings do not go with a width that only the rows tell."""
    k, prefixes = getattr(settings.activation, "k", 0), settings.matryoshka or ()
    if settings.normalize == "layer_norm" and d_in < 2:
        raise RequestError("autoencoder.normalize: layer_norm divides by a row's deviation, and d_in is 1")
    if k > n_latents:
        raise RequestError(f"autoencoder.activation.k {k} exceeds the {n_latents} latents: lower it")
    if prefixes and prefixes[-1] > n_latents:
        raise RequestError(
            f"matryoshka prefix {prefixes[-1]} exceeds the {n_latents} latents that expansion {settings.expansion} "
            f"makes of inputs of width {d_in}: lower it"
        )


def _penalty_complaint(settings: SparseSettings) -> str | None:
    activation, penalty = settings.activation.kind, settings.penalty
    if activation in SELECTING and penalty.kind != "none":
        key = "target_l0" if getattr(penalty, "target_l0", None) is not None else f"penalty {penalty.kind}"
        return f"{activation} fixes the number of active latents by k, so {key} has nothing to steer: use penalty none"
    if penalty.kind == "kl":
        if activation not in UNIT_INTERVAL:
            return (
                f"the KL penalty reads a latent's mean as a probability, and {activation} can exceed 1: "
                "use activation sigmoid or one_minus_exp, or penalty l1"
            )
        if penalty.decoder_decay < LEAST_DECAY:
            return (
                "KL without decoder_decay meets rho with a dense code and a large decoder and finds no features: "
                f"give decoder_decay at least {LEAST_DECAY:g} (0.01 is a start)"
            )
    if activation == "sigmoid" and penalty.kind != "kl":
        return "a sigmoid is never zero, so only the KL penalty makes it sparse: use penalty kl"
    if (activation == "jump_relu") != (penalty.kind == "l0"):
        return "jump_relu learns its thresholds through penalty l0, and only jump_relu does: use them together"
    if activation == "one_minus_exp" and penalty.kind != "kl" and getattr(penalty, "norm", "unit") == "unit":
        return (
            "one_minus_exp stays below 1, so unit decoder rows cannot reach the size of activations: "
            "use penalty kl, or l1 with norm weighted"
        )
    if activation == "gated" and (penalty.kind != "l1" or penalty.norm != "unit"):
        return "gated models are defined with penalty l1 on unit decoder rows: use {kind: l1, norm: unit}"
    return None


def _revival_complaint(settings: SparseSettings) -> str | None:
    activation, revival = settings.activation.kind, settings.dead.kind
    revivals = REVIVALS.get(activation, ())
    if revival == "none" or revival in revivals:
        return None
    helped = [kind for kind, cures in REVIVALS.items() if revival in cures]
    use = " or ".join((*revivals, "none"))
    return f"dead {revival} brings latents of {' and '.join(helped)} back: with {activation} use dead {use}"


def _matryoshka_complaint(settings: SparseSettings) -> str | None:
    prefixes = settings.matryoshka
    if prefixes is None:
        return None
    if not prefixes or list(prefixes) != sorted(set(prefixes)):
        return f"matryoshka prefixes must ascend and differ, got {list(prefixes)}"
    if settings.n_latents is not None and prefixes[-1] > settings.n_latents:
        return f"matryoshka prefix {prefixes[-1]} exceeds n_latents {settings.n_latents}"
    if settings.activation.kind in ("gated", *UNIT_INTERVAL):
        return f"matryoshka prefixes do not go with {settings.activation.kind}: use relu, topk, batch_topk or jump_relu"
    return None


def _k_complaint(settings: SparseSettings) -> str | None:
    k, n_latents = getattr(settings.activation, "k", 0), settings.n_latents
    if n_latents is None or k <= n_latents:
        return None
    return f"activation.k {k} exceeds the {n_latents} latents: lower it"


def _gain_complaint(settings: SparseSettings) -> str | None:
    activation = settings.activation.kind
    if settings.initial_gain is None or activation in WITH_GAINS:
        return None
    return f"initial_gain goes with {' and '.join(WITH_GAINS)}, not with {activation}: leave it out"
