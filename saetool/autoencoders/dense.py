"""Dense autoencoders: one layer or deep, any width, tied or not, with greedy layer-wise pretraining.

Goodfellow et al. 2016, chapter 14: h_l = s(W_l h_{l−1} + b_l), z = h_L, mirrored on the way back.
Pretraining (Bengio et al. 2007; Vincent et al. 2010): layer l learns to reconstruct the clean codes of layer l − 1
while all others are frozen; then the unrolled stack is fine-tuned.
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from saetool.autoencoders.base import (
    UNKNOWN,
    Autoencoder,
    FamilySettings,
    Loss,
    Normalize,
    Normalizer,
    Phase,
    Step,
    Stream,
    Training,
    of_width,
)
from saetool.autoencoders.layers import (
    CHECKED_ROWS,
    CONVENTIONS,
    Activation,
    Chain,
    Error,
    bernoulli_entropy,
    bernoulli_error,
    require_unit_interval,
    squared_error,
)
from saetool.seeding import generator as seeded

FINE_TUNE = "fine-tune"


class LayeredSettings(FamilySettings):
    """The shape of a mirrored stack of layers and the error it minimizes."""

    hidden: tuple[PositiveInt, ...] = ()
    """Widths between the input and the code; the decoder mirrors them."""
    activation: Activation = "sigmoid"
    """Of the hidden layers."""
    code_activation: Activation | None = None
    """Of the code; null: the same as `activation`."""
    output: Activation | None = None
    """Of the reconstruction; null: sigmoid for cross-entropy, else identity."""
    tied: bool = False
    """The decoder's weights are the encoder's, transposed."""
    error: Error = "mse"
    pretrain: bool = False
    """Greedy layer-wise pretraining before the whole stack is fine-tuned."""
    pretrain_share: float = Field(0.5, gt=0, lt=1)
    """The share of all steps that pretraining takes, divided evenly among the layers."""
    normalize: Normalize = "none"

    @model_validator(mode="after")
    def _cross_entropy_fits(self) -> "LayeredSettings":
        if self.error == "cross_entropy" and self.output not in (None, "sigmoid"):
            raise ValueError(f"error: cross_entropy needs output: sigmoid, not {self.output}")
        if self.error == "cross_entropy" and self.normalize != "none":
            raise ValueError(
                f"error: cross_entropy needs inputs in [0, 1], which normalize: {self.normalize} leaves: "
                "use normalize: none or error: mse"
            )
        if self.pretrain and not self.hidden:
            raise ValueError("pretrain: there is one layer, so nothing to pretrain: add hidden widths or drop it")
        return self

    def code(self) -> Activation:
        """Return the code's activation."""
        return self.code_activation or self.activation

    def reconstruction(self) -> Activation:
        """Return the output's activation."""
        return self.output or ("sigmoid" if self.error == "cross_entropy" else "identity")


class DenseSettings(LayeredSettings):
    """A dense autoencoder: nothing but its shape and its error."""

    kind: Literal["dense"] = "dense"


class Dense(Autoencoder):
    """A mirrored stack of layers. Families that only change the objective override `objective`.

    Level l (from 1) is the l-th layer of the encoder with its mirror image in the decoder.
    """

    def __init__(self, settings: LayeredSettings, d_in: int):
        super().__init__()
        self.settings = settings
        self.d_in = d_in
        self.n_latents = settings.width(d_in)
        self.normalizer = Normalizer(d_in, settings.normalize)
        widths = [d_in, *settings.hidden, self.n_latents]
        inner: list[Activation] = [settings.activation] * len(settings.hidden)
        self.encoder = Chain(widths, [*inner, settings.code()])
        self.decoder = Chain(widths[::-1], [*inner, settings.reconstruction()], own_weights=not settings.tied)
        self.levels = range(1, len(widths))
        self._draw(seeded(0, "layers"))

    def _draw(self, generator: torch.Generator) -> None:
        self.encoder.reset(generator)
        self.decoder.reset(generator)

    def _to_units(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        return self.normalizer(of_width(x, self.d_in, "activations").to(self.normalizer.mean))

    def _decoder_weights(self) -> list[Tensor]:
        """Return the decoder's own weights, or the encoder's transposed, last first."""
        if not self.settings.tied:
            return list(self.decoder.weights)
        return [weight.T for weight in reversed(list(self.encoder.weights))]

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        return self.encoder(self._to_units(x))

    def decode(self, z: Float[Tensor, "*batch n_latents"]) -> Float[Tensor, "*batch d_in"]:
        z = of_width(z, self.n_latents, "codes").to(self.normalizer.mean)
        return self.normalizer.inverse(self.decoder(z, self._decoder_weights()))

    def encode_levels(self, h: Float[Tensor, "*batch width"], levels: range) -> Float[Tensor, "*batch code"]:
        """Map the codes below the first of `levels` (the model's input for level 1) to those of the last."""
        return self.encoder(h, start=levels[0] - 1, stop=levels[-1])

    def decode_levels(
        self, z: Float[Tensor, "*batch code"], levels: range, logits: bool = False
    ) -> Float[Tensor, "*batch width"]:
        """Map codes of the last of `levels` back below the first; for `logits` without the last activation."""
        depth = len(self.levels)
        return self.decoder(z, self._decoder_weights(), depth - levels[-1], depth - levels[0] + 1, logits)

    def _uses_cross_entropy(self, levels: range) -> bool:
        """Inner codes have a cross-entropy too where the model does and their units lie in (0, 1)."""
        return self.settings.error == "cross_entropy" and (levels[0] == 1 or self.settings.activation == "sigmoid")

    def error(self, z: Float[Tensor, "batch code"], target: Float[Tensor, "batch width"], levels: range) -> Loss:
        """Return the reconstruction error of `target` from codes `z`, and its excess over the least."""
        if not self._uses_cross_entropy(levels):
            return Loss({"reconstruction": squared_error(self.decode_levels(z, levels), target)})
        reconstruction = bernoulli_error(self.decode_levels(z, levels, logits=True), target)
        entropy = bernoulli_entropy(target)
        excess = (reconstruction - entropy).detach()
        return Loss({"reconstruction": reconstruction}, {"entropy": entropy, "excess": excess})

    def objective(self, h: Float[Tensor, "batch width"], levels: range, generator: torch.Generator) -> Loss:
        """Return the loss of autoencoding `h` through `levels`; `h` holds the clean codes below the first of them."""
        return self.error(self.encode_levels(h, levels), h, levels)

    def loss(self, x: Float[Tensor, "batch d_in"], step: Step, generator: torch.Generator) -> Loss:
        """Return the loss of the current phase: of one level on the codes below it, or of the whole stack.

        Raises RequestError where cross-entropy is asked of inputs outside [0, 1].
        """
        self.check(x)
        h = self._to_units(x)
        levels = self._learning_in(step.phase)
        if levels[0] > 1:
            with torch.no_grad():
                h = self.encode_levels(h, range(1, levels[0]))
        return self.objective(h, levels, generator)

    def _learning_in(self, phase: str) -> range:
        return self.levels if not phase.startswith("level-") else range(int(phase[6:]), int(phase[6:]) + 1)

    def check(self, x: Float[Tensor, "batch d_in"]) -> None:
        """Raise RequestError where the settings cannot take these rows."""
        if self.settings.error == "cross_entropy":
            require_unit_interval(x, "error: cross_entropy", "use error: mse, or pixels")

    def initialize(self, stream: Stream, generator: torch.Generator, training: Training = UNKNOWN) -> None:
        """Draw the weights, fit the normalization, start at the data's mean; refuse rows the settings cannot take."""
        self._draw(generator)
        statistics = stream.statistics()
        self.normalizer.fit(statistics)
        if not self.adds_input:
            self.decoder.center(self._to_units(statistics.mean))
        self.check(stream.sample(CHECKED_ROWS))

    def phases(self) -> list[Phase]:
        """Return one phase a level and the fine-tuning of all, or the latter alone."""
        if not self.settings.pretrain:
            return [Phase("train")]
        share = self.settings.pretrain_share
        levels = [Phase(f"level-{level}", share / len(self.levels)) for level in self.levels]
        return [*levels, Phase(FINE_TUNE, 1 - share)]

    def enter(self, phase: str) -> None:
        """Choose the levels that learn; changes no weight, so that a phase can be entered again on resuming."""
        learning = self._learning_in(phase)
        depth = len(self.levels)
        for level in self.levels:
            for chain, index in ((self.encoder, level - 1), (self.decoder, depth - level)):
                chain.biases[index].requires_grad_(level in learning)
                if len(chain.weights):
                    chain.weights[index].requires_grad_(level in learning)

    def decoder_directions(self) -> Float[Tensor, "n_latents d_in"] | None:
        """Return the columns of a linear decoder in raw units; None for any other decoder."""
        if len(self.levels) > 1 or self.settings.reconstruction() != "identity":
            return None
        return self._decoder_weights()[0].detach().T / self.normalizer.factor

    def encoder_directions(self) -> Float[Tensor, "n_latents d_in"] | None:
        """Return the rows of a one-layer encoder as they act on raw activations; None for a deep one."""
        if len(self.levels) > 1:
            return None
        return self.encoder.weights[0].detach() * self.normalizer.factor

    def loss_convention(self) -> str:
        return CONVENTIONS[self.settings.error]
