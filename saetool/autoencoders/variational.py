"""Variational autoencoders (Kingma & Welling 2013; β: Higgins et al. 2017).

ELBO = E_q ln p(x|z) − β KL(q(z|x)‖N(0, I)), q = N(μ(x), diag σ²(x)), z = μ + σ ε,
KL = −½ Σ(1 + ln σ² − μ² − σ²). Likelihoods keep their constants. With linear maps the optimum is probabilistic
principal component analysis (Tipping & Bishop 1999; Lucas et al. 2019), reached in closed form.
"""

import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from saetool import distributed
from saetool.autoencoders.base import (
    UNKNOWN,
    Autoencoder,
    FamilySettings,
    Loss,
    Normalize,
    Normalizer,
    Step,
    Stream,
    Training,
    of_width,
)
from saetool.autoencoders.layers import CHECKED_ROWS, Activation, Chain, require_unit_interval
from saetool.autoencoders.linear import Spectrum, principal_components
from saetool.errors import RequestError
from saetool.seeding import generator as seeded, normal_like

# ln σ² stays between ± this, smoothly: e^±15 spans seven orders of magnitude in σ and overflows nowhere.
LOG_VARIANCE_BOUND = 15.0

# A latent is active when its mean varies over the data by more than this (Burda et al. 2016).
ACTIVE_VARIANCE = 0.01


class VariationalSettings(FamilySettings):
    """A variational autoencoder; without hidden layers both maps are linear."""

    kind: Literal["variational"] = "variational"
    hidden: tuple[PositiveInt, ...] = ()
    activation: Activation = "tanh"
    likelihood: Literal["gaussian", "bernoulli"] = "gaussian"
    noise: PositiveFloat | None = None
    """Standard deviation of the gaussian likelihood, in the model's units, between e^−7.5 and e^7.5; null: learned."""
    beta: NonNegativeFloat = 1.0
    warmup_steps: NonNegativeInt = 0
    """β rises linearly from 0 over these steps."""
    solver: Literal["gradient", "closed_form"] = "gradient"
    """closed_form: probabilistic PCA, for linear gaussian models with β = 1."""
    normalize: Normalize = "none"

    @model_validator(mode="after")
    def _legal(self) -> "VariationalSettings":
        if self.likelihood == "bernoulli" and self.normalize != "none":
            raise ValueError(f"likelihood: bernoulli needs inputs in [0, 1], which normalize: {self.normalize} leaves")
        if self.likelihood == "bernoulli" and self.noise is not None:
            raise ValueError("noise belongs to likelihood: gaussian: drop it")
        if self.noise is not None and not abs(2 * math.log(self.noise)) < LOG_VARIANCE_BOUND:
            raise ValueError(
                f"noise: {self.noise:g} lies outside e^±{LOG_VARIANCE_BOUND / 2:g} (5.5e-4 to 1,800): scale the data, "
                "with normalize: center_scale for example"
            )
        if self.solver == "closed_form" and (self.hidden or self.likelihood != "gaussian" or self.beta != 1):
            raise ValueError("solver: closed_form needs no hidden layers, likelihood: gaussian and beta: 1")
        return self


class Variational(Autoencoder):
    """Encoder x ↦ (μ, ln σ²), decoder z ↦ the mean of p(x|z); `encode` returns μ."""

    log_noise: Tensor

    def __init__(self, settings: VariationalSettings, d_in: int):
        super().__init__()
        self.settings = settings
        self.d_in = d_in
        self.n_latents = settings.width(d_in)
        self.normalizer = Normalizer(d_in, settings.normalize)
        inner: list[Activation] = [settings.activation] * len(settings.hidden)
        self.encoder = Chain([d_in, *settings.hidden, 2 * self.n_latents], [*inner, "identity"])
        output: Activation = "sigmoid" if settings.likelihood == "bernoulli" else "identity"
        self.decoder = Chain([self.n_latents, *settings.hidden[::-1], d_in], [*inner, output])
        fixed = settings.noise is not None or settings.likelihood == "bernoulli"
        log_noise = torch.tensor(_unbounded(2 * math.log(settings.noise or 1.0)))
        if fixed:
            self.register_buffer("log_noise", log_noise)
        else:
            self.log_noise = nn.Parameter(log_noise)
        self._draw(seeded(0, "variational"))

    @torch.no_grad()
    def _draw(self, generator: torch.Generator) -> None:
        self.encoder.reset(generator)
        self.decoder.reset(generator)
        self.encoder.weights[-1][self.n_latents :].zero_()

    def _to_units(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        return self.normalizer(of_width(x, self.d_in, "activations").to(self.normalizer.mean))

    def _posterior(
        self, x: Float[Tensor, "*batch d_in"]
    ) -> tuple[Float[Tensor, "*batch n_latents"], Float[Tensor, "*batch n_latents"]]:
        """Return μ and ln σ² of q(z|x), x in the model's units."""
        mean, log_variance = self.encoder(x).chunk(2, dim=-1)
        return mean, _bounded(log_variance)

    def posterior(
        self, x: Float[Tensor, "*batch d_in"]
    ) -> tuple[Float[Tensor, "*batch n_latents"], Float[Tensor, "*batch n_latents"]]:
        """Return mean and variance of q(z|x) for raw activations."""
        mean, log_variance = self._posterior(self._to_units(x))
        return mean, log_variance.exp()

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch n_latents"]:
        """Return the posterior means of raw activations."""
        return self._posterior(self._to_units(x))[0]

    def decode(self, z: Float[Tensor, "*batch n_latents"]) -> Float[Tensor, "*batch d_in"]:
        """Return the mean of p(x|z) in raw units."""
        return self.normalizer.inverse(self.decoder(of_width(z, self.n_latents, "codes").to(self.normalizer.mean)))

    def noise_variance(self) -> Float[Tensor, ""]:
        """Return the gaussian likelihood's variance, in the model's units."""
        return _bounded(self.log_noise).exp()

    def _log_likelihood(
        self, x: Float[Tensor, "batch d_in"], z: Float[Tensor, "*samples batch n_latents"]
    ) -> Float[Tensor, "*samples batch"]:
        """Return ln p(x|z) in nats, x in the model's units."""
        if self.settings.likelihood == "gaussian":
            return self._gaussian((x - self.decoder(z)).square().sum(-1))
        logits = self.decoder(z, logits=True)
        target = x.expand_as(logits)
        return -nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)

    def _gaussian(self, square: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Return the gaussian log-likelihood of a squared distance from the mean."""
        log_variance = _bounded(self.log_noise)
        return -0.5 * (square / log_variance.exp() + self.d_in * (log_variance + math.log(2 * math.pi)))

    def _expected_log_likelihood(
        self,
        x: Float[Tensor, "batch d_in"],
        mean: Float[Tensor, "batch n_latents"],
        log_variance: Float[Tensor, "batch n_latents"],
        draw: Callable[[Tensor], Tensor],
    ) -> Float[Tensor, "batch"]:
        """Return E_q ln p(x|z): exact for a linear gaussian decoder, else from one reparametrized sample.

        `draw` gives N(0, 1) noise like its argument.
        """
        if not self.settings.hidden and self.settings.likelihood == "gaussian":
            spread = log_variance.exp() @ self.decoder.weights[0].square().sum(0)
            return self._gaussian((x - self.decoder(mean)).square().sum(-1) + spread)
        return self._log_likelihood(x, mean + (0.5 * log_variance).exp() * draw(mean))

    def loss(self, x: Float[Tensor, "batch d_in"], step: Step, generator: torch.Generator) -> Loss:
        """Return the negative ELBO with its β at `step`, in nats in the model's units.

        The metric `elbo` is reported as `elbo` returns it: at β = 1, as a density of raw activations.
        Raises RequestError where a Bernoulli likelihood is given inputs outside [0, 1].
        """
        self._check(x)
        x = self._to_units(x)
        mean, log_variance = self._posterior(x)
        expected = self._expected_log_likelihood(x, mean, log_variance, lambda like: normal_like(like, generator))
        negative = -expected.mean()
        divergence = kl_from_standard_normal(mean, log_variance).mean()
        beta = self.settings.beta * min(1.0, (step.number + 1) / max(self.settings.warmup_steps, 1))
        active = (mean.detach().var(0, correction=0) > ACTIVE_VARIANCE).sum()
        elbo = (self._log_volume() - negative - divergence).detach()
        metrics = {"elbo": elbo, "kl": divergence.detach(), "active_units": active}
        return Loss({"reconstruction": negative, "kl": beta * divergence}, metrics)

    def _check(self, x: Float[Tensor, "batch d_in"]) -> None:
        if self.settings.likelihood == "bernoulli":
            require_unit_interval(x, "likelihood: bernoulli", "use likelihood: gaussian, or pixels")

    def elbo(self, x: Float[Tensor, "batch d_in"], generator: torch.Generator) -> Float[Tensor, "batch"]:
        """Return each row's ELBO at β = 1 in nats, as a density of raw activations."""
        return self._elbo(x, generator)[0]

    def _elbo(
        self, x: Float[Tensor, "batch d_in"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch n_latents"]]:
        """Return each row's ELBO and its posterior mean."""
        self._check(x)
        x = self._to_units(x)
        mean, log_variance = self._posterior(x)
        expected = self._expected_log_likelihood(x, mean, log_variance, lambda like: _normal(like, generator))
        return expected - kl_from_standard_normal(mean, log_variance) + self._log_volume(), mean

    def importance_bound(
        self, x: Float[Tensor, "batch d_in"], samples: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch"]]:
        """Return the sampled ELBO and the importance-weighted bound of each row (Burda et al. 2016), same samples.

        In nats, as densities of raw activations: mean and log-mean-exp of ln w = ln p(x, z) − ln q(z|x).
        """
        if samples < 1:
            raise RequestError(f"importance_bound: samples {samples}: at least one")
        self._check(x)
        x = self._to_units(x)
        mean, log_variance = self._posterior(x)
        weights = []
        for _ in range(samples):
            z = mean + (0.5 * log_variance).exp() * _normal(mean, generator)
            prior = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
            distance = (z - mean).square() / log_variance.exp()
            posterior = -0.5 * (distance + log_variance + math.log(2 * math.pi)).sum(-1)
            weights.append(self._log_likelihood(x, z) + prior - posterior)
        log_weights = torch.stack(weights)
        bound = log_weights.logsumexp(0) - math.log(samples)
        return log_weights.mean(0) + self._log_volume(), bound + self._log_volume()

    def _log_volume(self) -> Float[Tensor, ""]:
        """Return d · ln factor: what a log-density gains from the model's units to raw ones."""
        return self.d_in * self.normalizer.factor.log()

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n d_in"]:
        """Decode `n` draws from the prior, in raw units."""
        mean = self.normalizer.mean
        return self.decode(torch.randn(n, self.n_latents, generator=generator, device=mean.device, dtype=mean.dtype))

    @torch.no_grad()
    def active_units(self, blocks: Iterable[Float[Tensor, "batch d_in"]]) -> Bool[Tensor, "n_latents"]:
        """Say which latents' posterior means vary over the rows by more than `ACTIVE_VARIANCE`."""
        means = torch.cat([self.encode(block) for block in blocks]).double()
        return means.var(0, correction=0) > ACTIVE_VARIANCE

    @torch.no_grad()
    def summarize(self, blocks: Iterable[Float[Tensor, "rows d_in"]], seed: int) -> dict[str, float]:
        """Return the mean ELBO over the rows (nats, a density of raw activations) and the number of active units.

        A block's noise is seeded by its place, so that it does not matter which process takes it.
        """
        device = self.normalizer.mean.device
        sums = torch.zeros(2 + 2 * self.n_latents, dtype=torch.float64)
        for i, block in enumerate(blocks):
            if i % distributed.world_size() == distributed.rank():
                elbo, mean = self._elbo(block.to(device), seeded(seed, "elbo", i, device=device))
                elbo, mean = elbo.cpu().double(), mean.cpu().double()
                counts = torch.stack([elbo.new_tensor(len(elbo)), elbo.sum()])
                sums += torch.cat([counts, mean.sum(0), mean.square().sum(0)])
        distributed.all_reduce_sum(sums)
        rows, elbo = sums[:2].tolist()
        if rows == 0:
            return {}
        first, square = (sums[2:] / rows).chunk(2)
        return {"elbo": elbo / rows, "active_units": int((square - first**2 > ACTIVE_VARIANCE).sum())}

    @torch.no_grad()
    def initialize(self, stream: Stream, generator: torch.Generator, training: Training = UNKNOWN) -> None:
        """Draw the weights; the decoder starts at the data's mean, learned noise at its mean variance."""
        self._draw(generator)
        statistics = stream.statistics()
        self.normalizer.fit(statistics)
        self._check(stream.sample(CHECKED_ROWS))
        self.decoder.center(self._to_units(statistics.mean))
        if isinstance(self.log_noise, nn.Parameter):
            variance = float(statistics.variance.mean()) * float(self.normalizer.factor) ** 2
            self.log_noise.fill_(_unbounded(math.log(max(variance, 1e-6))))

    @torch.no_grad()
    def fit(self, stream: Stream) -> bool:
        """Set probabilistic PCA, where the settings ask for the closed form.

        Raises RequestError where no variance is left to be noise: n_latents must be below d_in and the data's rank.
        """
        if self.settings.solver != "closed_form":
            return False
        self.normalizer.fit(stream.statistics())
        self._set_probabilistic_pca(principal_components(stream).under(self.normalizer))
        return True

    def _set_probabilistic_pca(self, spectrum: Spectrum) -> None:
        """W = U (Λ − σ²)^½, q(z|x) = N(M⁻¹Wᵀ(x − mean), σ² M⁻¹), M = WᵀW + σ², which is diagonal for this W."""
        k = self.n_latents
        if k > self.d_in:
            raise RequestError(f"n_latents: {k} exceeds d_in {self.d_in}, which has no more components: choose fewer")
        noise = self.settings.noise**2 if self.settings.noise else float(spectrum.values[k:].mean())
        if not noise > math.exp(-LOG_VARIANCE_BOUND):
            raise RequestError(
                f"n_latents: {k} leaves no variance to be noise (d_in is {self.d_in}): choose fewer, or fix noise"
            )
        gain = (spectrum.values[:k] - noise).clamp_min(0)
        decoder = spectrum.vectors[:, :k] * gain.sqrt()
        inverse = 1 / (gain + noise)
        if not noise * float(inverse.min()) > math.exp(-LOG_VARIANCE_BOUND):
            raise RequestError(
                f"a noise variance of {noise:.3g} is below e^−{LOG_VARIANCE_BOUND:g} of the first component's "
                f"{float(spectrum.values[0]):.3g}, so its posterior would be narrower than this model can say: "
                "fix a larger noise, or choose fewer n_latents"
            )
        weight, bias = self.encoder.weights[0], self.encoder.biases[0]
        weight.zero_()
        weight[:k] = (inverse[:, None] * decoder.T).to(weight)
        bias[:k] = (-inverse * (decoder.T @ spectrum.mean)).to(bias)
        bias[k:] = (noise * inverse).log().div(LOG_VARIANCE_BOUND).atanh().mul(LOG_VARIANCE_BOUND).to(bias)
        self.decoder.weights[0].copy_(decoder)
        self.decoder.biases[0].copy_(spectrum.mean)
        self.log_noise.fill_(_unbounded(math.log(noise)))

    def decoder_directions(self) -> Float[Tensor, "n_latents d_in"] | None:
        """Return the columns of a linear gaussian decoder in raw units; None for any other decoder."""
        if self.settings.hidden or self.settings.likelihood == "bernoulli":
            return None
        return self.decoder.weights[0].detach().T / self.normalizer.factor

    def encoder_directions(self) -> Float[Tensor, "n_latents d_in"] | None:
        """Return the rows of a linear mean encoder as they act on raw activations; None for a deep one."""
        if self.settings.hidden:
            return None
        return self.encoder.weights[0].detach()[: self.n_latents] * self.normalizer.factor

    def loss_convention(self) -> str:
        return "negative ELBO in nats, constants kept, summed over d_in, mean over the batch, in the model's units"


def kl_from_standard_normal(
    mean: Float[Tensor, "batch n_latents"], log_variance: Float[Tensor, "batch n_latents"]
) -> Float[Tensor, "batch"]:
    """Return KL(N(μ, diag σ²)‖N(0, I)) in nats."""
    return -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(-1)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return N(0, 1) noise for rows that are this process's alone; a batch of training takes `normal_like`."""
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def _bounded(log_variance: Tensor) -> Tensor:
    return LOG_VARIANCE_BOUND * torch.tanh(log_variance / LOG_VARIANCE_BOUND)


def _unbounded(log_variance: float) -> float:
    """Return the argument at which `_bounded` gives `log_variance`; raises RequestError where there is none."""
    if not abs(log_variance) < LOG_VARIANCE_BOUND:
        raise RequestError(
            f"a noise variance of e^{log_variance:.1f} lies outside e^±{LOG_VARIANCE_BOUND:g}: "
            "set normalize: center_scale, or scale the data"
        )
    return LOG_VARIANCE_BOUND * math.atanh(log_variance / LOG_VARIANCE_BOUND)
