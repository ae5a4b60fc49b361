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


C = TypeVar("C", bound=Copy)


class Weight:
    """A weight [n_latents, d_in] with its copies, each renewed when it is asked for after the weight changed.

    An optimizer that renews a copy itself, while it has the rows at hand, says so with `mark_current`.
    """

    def __init__(self, tensor: Float[Tensor, "n_latents *d_in"]):
        self.tensor = tensor
        self.copy: Copy | None = None
        """The copy that was asked for last."""
        self._copies: dict[type, Copy] = {}
        self._copied: dict[type, tuple[int, int]] = {}

    def follow(self, tensor: Tensor) -> None:
        """Take another tensor in the weight's place, where it is another one."""
        if tensor is not self.tensor:
            self.tensor = tensor
            self._copied.clear()

    def copied(self, kind: type[C]) -> C:
        """Return the copy of this kind, as the weight is now."""
        copy, values = self._copies.get(kind), self.tensor.detach()
        if not isinstance(copy, kind) or not copy.fits(values):
            copy = self._copies[kind] = kind.empty(values)
            self._copied.pop(kind, None)
        if self._copied.get(kind) != self._state():
            copy.refresh(values, 0, len(values))
            self._copied[kind] = self._state()
        self.copy = copy
        return copy

    def detached(self) -> "Weight":
        """Return the same weight and copies, without gradient."""
        other = Weight(self.tensor.detach())
        other.copy, other._copies, other._copied = self.copy, self._copies, self._copied
        return other

    def refresh(self, start: int, stop: int) -> None:
        """Renew the rows `start` to `stop` of the copy that was asked for last, where there is one."""
        if self.copy is not None:
            self.copy.refresh(self.tensor.detach(), start, stop)

    def mark_current(self, copy: Copy | None = None) -> None:
        """Say that every row of a copy (the one asked for last) was renewed since the weight last changed."""
        copy = self.copy if copy is None else copy
        if copy is not None:
            self._copied[type(copy)] = self._state()

    def _state(self) -> tuple[int, int]:
        # What inference mode makes counts no versions: nobody changes it.
        return self.tensor.data_ptr(), 0 if self.tensor.is_inference() else self.tensor._version
