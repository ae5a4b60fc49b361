"""A weight and the coarser copy of it that a backend's products read instead."""

from typing import Protocol, Self, TypeVar

from jaxtyping import Float
from torch import Tensor


class Copy(Protocol):
    """A coarser copy of a weight [n_latents, d_in]."""

    @classmethod
    def empty(cls, weight: Float[Tensor, "n_latents d_in"]) -> Self:
        """Return one with room for a weight."""
        ...

    def fits(self, weight: Float[Tensor, "n_latents d_in"]) -> bool:
        """Say whether it has room for a weight, on its device."""
        ...

    def refresh(self, weight: Float[Tensor, "n_latents d_in"], start: int, stop: int) -> None:
        """Copy the rows `start` to `stop`."""
        ...

    def changed(self) -> None:
        """Take note that an update wrote new rows into the copy: what was measured of the old ones is void."""
        ...


C = TypeVar("C", bound=Copy)


class Weight:
    """A weight [n_latents, d_in] with its copy, which is renewed when it is asked for after the weight changed.

    An optimizer that renews the copy itself, while it has the rows at hand, says so with `mark_current`.
    """

    def __init__(self, tensor: Float[Tensor, "n_latents d_in"]):
        self.tensor = tensor
        self.copy: Copy | None = None
        self._copied: tuple[int, int] | None = None

    def copied(self, kind: type[C]) -> C:
        """Return the copy of this kind, as the weight is now."""
        copy, values = self.copy, self.tensor.detach()
        if not isinstance(copy, kind) or not copy.fits(values):
            copy = self.copy = kind.empty(values)
            self._copied = None
        if self._copied != self._state():
            copy.refresh(values, 0, len(values))
            self.mark_current()
        return copy

    def detached(self) -> "Weight":
        """Return the same weight and copy, without gradient."""
        other = Weight(self.tensor.detach())
        other.copy, other._copied = self.copy, self._copied
        return other

    def refresh(self, start: int, stop: int) -> None:
        """Renew the rows `start` to `stop` of the copy, where there is one."""
        if self.copy is not None:
            self.copy.refresh(self.tensor.detach(), start, stop)

    def mark_current(self) -> None:
        """Say that every row was copied since the weight last changed."""
        self._copied = self._state()

    def _state(self) -> tuple[int, int]:
        return self.tensor.data_ptr(), self.tensor._version
