"""The width of a code: a number of latents, or a multiple of the input's width."""

from pydantic import PositiveFloat, PositiveInt, model_validator

from saetool.settings import Settings


class Width(Settings):
    """Exactly one of `n_latents` and `expansion`."""

    n_latents: PositiveInt | None = None
    expansion: PositiveFloat | None = None
    """n_latents / d_in."""

    @model_validator(mode="after")
    def _one_width(self) -> "Width":
        if (self.n_latents is None) == (self.expansion is None):
            raise ValueError("give exactly one of n_latents and expansion")
        return self

    def width(self, d_in: int) -> int:
        """Return the number of latents for inputs of width `d_in`, at least 1."""
        return self.n_latents if self.n_latents is not None else max(1, round(float(self.expansion or 1) * d_in))
