"""Sparse image maxima: for every latent, the images on which it fires and how."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

RECORD = np.dtype(
    [
        ("latent", np.int32),
        ("image", np.int32),
        ("patch", np.int32),
        ("tokens", np.int32),
        ("value", np.float32),
        ("mass", np.float32),
    ]
)
"""One (latent, image) pair with at least one firing token: the position of the strongest token (the first of equals),
the number of firing tokens, the largest value and the sum of all values."""
_FIELDS: list[str] = list(RECORD.fields or ())


@dataclass(frozen=True)
class Maxima:
    """The image maxima of latents `first` to `stop`, sorted by latent, then image, on any device.

    `words` [records, 6] int32 are RECORDs; the records of latent `first + i` are starts[i] to starts[i + 1].
    """

    words: Int[Tensor, "records 6"]
    first: int
    stop: int

    @classmethod
    def of(cls, records: np.ndarray, first: int, stop: int, device: torch.device | str = "cpu") -> "Maxima":
        """Group records that come in image order and, of an image, by latent; they are sorted on `device`."""
        words = torch.from_numpy(records.view(np.int32).reshape(-1, len(_FIELDS)))
        if torch.device(device).type != "cpu":
            words = words.to(device)
            return cls(words[words[:, 0].sort(stable=True).indices], first, stop)
        latent = records["latent"] - first
        small = latent.astype(np.int16) if stop - first < 1 << 15 else latent  # numpy sorts these by radix
        return cls(words[torch.from_numpy(np.argsort(small, kind="stable"))], first, stop)

    @property
    def n_latents(self) -> int:
        return self.stop - self.first

    @property
    def device(self) -> torch.device:
        return self.words.device

    @cached_property
    def latent(self) -> Int[Tensor, "records"]:
        """The latent of every record, counted from `first`, int64."""
        return self.words[:, 0].long() - self.first

    @cached_property
    def image(self) -> Int[Tensor, "records"]:
        return self.words[:, 1].long()

    @cached_property
    def starts(self) -> Int[Tensor, "latents_plus_one"]:
        """Where each latent's records start, and the end of the last one's."""
        return torch.searchsorted(self.latent, torch.arange(self.n_latents + 1, device=self.device))

    @property
    def counts(self) -> Int[Tensor, "latents"]:
        """The number of images on which each latent fires."""
        return self.starts.diff()

    def column(self, name: str) -> Tensor:
        """Return one field of the records as a contiguous tensor, int32 or float32."""
        field = self.words[:, _FIELDS.index(name)].contiguous()
        return field.view(torch.float32) if name in ("value", "mass") else field

    def records(self, which: Int[Tensor, "some"] | None = None) -> np.ndarray:
        """Return some records, or all of them, on the CPU."""
        words = self.words if which is None else self.words[which.to(self.device)]
        return words.cpu().contiguous().numpy().reshape(-1).view(RECORD)


def ordered_bits(values: Tensor) -> Int[Tensor, "values"]:
    """Map positive float32 values to int64 in the same order."""
    return values.view(torch.int32).long()
