"""What a store says about a site's values: moments, norms, largest value, in float64."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from saetool.statistics import Statistics, pieces, squarable

LARGEST = 1e17
"""Of a stored value: the squares of a row of them still add up in float32, as every loss does."""


@dataclass(frozen=True)
class SiteMoments:
    """Moments of the stored rows of a site: statistics, sum of row norms, largest absolute value.

    They are taken a slice at a time and merged in slice order, then in shard order: the same bits from any number
    of processes, resumed or not.
    """

    statistics: Statistics
    norm_sum: float = 0.0
    max_abs: float = 0.0

    @classmethod
    def none(cls, d: int) -> "SiteMoments":
        return cls(Statistics.none(d))

    @classmethod
    def of(cls, rows: Float[Tensor, "rows d"]) -> "SiteMoments":
        """Return the moments of `rows`; where a value is not finite or too large, `finite` is false."""
        max_abs, norm_sum = 0.0, 0.0
        for piece in pieces(rows):
            low, high = piece.aminmax()  # not a number, and infinity, come through
            max_abs = max(abs(float(low)), abs(float(high)), max_abs)
            if not max_abs <= LARGEST:
                return cls(Statistics.none(rows.shape[1]), 0.0, max_abs)
            norm_sum += float(torch.linalg.vector_norm(squarable(piece), dim=1).double().sum())
        return cls(Statistics.of(rows), norm_sum, max_abs)

    @classmethod
    def launch(cls, rows: Float[Tensor, "rows d"]) -> Float[Tensor, "numbers"]:
        """Return the moments of rows on a GPU as float64 numbers there, which `landed` reads: nothing waits.

        They agree with `of` to rounding, and are the same every time.
        """
        wide = rows.to(torch.float64, copy=True)  # float64 rows must not be changed in place
        mean, norms = wide.mean(0), torch.linalg.vector_norm(wide, dim=1)
        largest = rows.abs().amax().double()  # not a number, and infinity, come through
        variance = wide.sub_(mean).square_().mean(0)
        return torch.cat([mean, variance, norms.sum()[None], largest[None]])

    @classmethod
    def landed(cls, numbers: Float[Tensor, "numbers"], count: int) -> "SiteMoments":
        """Return what `launch` computed of `count` rows, once it has come to the CPU."""
        d = (len(numbers) - 2) // 2
        norm_sum, max_abs = numbers[2 * d :].tolist()
        return cls(Statistics(count, numbers[:d].clone(), numbers[d : 2 * d].clone()), norm_sum, max_abs)

    @property
    def finite(self) -> bool:
        """Say whether every value was finite, and small enough to be squared."""
        return self.max_abs <= LARGEST

    def merge(self, other: "SiteMoments") -> "SiteMoments":
        """Return the moments of both sets of rows together."""
        merged = self.statistics.merge(other.statistics)
        return SiteMoments(merged, self.norm_sum + other.norm_sum, max(self.max_abs, other.max_abs))

    def tensors(self) -> dict[str, Tensor]:
        """Return what `stats.safetensors` holds."""
        count = self.statistics.count
        return {
            "count": torch.tensor(count),
            "mean": self.statistics.mean,
            "variance": self.statistics.variance,
            "mean_norm": torch.tensor(self.norm_sum / max(count, 1), dtype=torch.float64),
            "max_abs": torch.tensor(self.max_abs, dtype=torch.float64),
            # A job with values that are not finite stops, so a sealed store has none.
            "non_finite": torch.tensor(0),
        }

    def to_json(self) -> dict:
        """Return the moments as JSON types; Python writes floats so that they read back the same."""
        return {
            "count": self.statistics.count,
            "mean": self.statistics.mean.tolist(),
            "variance": self.statistics.variance.tolist(),
            "norm_sum": self.norm_sum,
            "max_abs": self.max_abs,
        }

    @classmethod
    def from_json(cls, value: dict) -> "SiteMoments":
        mean, variance = (torch.tensor(value[key], dtype=torch.float64) for key in ("mean", "variance"))
        return cls(Statistics(value["count"], mean, variance), value["norm_sum"], value["max_abs"])
