"""Passes over images that the processes of a job share: each does some parts, and what a part comes to is a file."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from safetensors.torch import load_file, save_file
from torch import Tensor

from saetool import distributed
from saetool.artifacts import Partial

Part = TypeVar("Part")


class Shared:
    """Work on parts, which are the same for any number of processes; without a `partial` there is one process."""

    def __init__(self, partial: Partial | None = None):
        self._partial = partial

    def mine(self, parts: Sequence[Part]) -> Sequence[Part]:
        return parts if self._alone else parts[distributed.rank() :: distributed.world_size()]

    def map(
        self, name: str, parts: Sequence[Part], work: Callable[[Part], dict[str, Tensor]]
    ) -> list[dict[str, Tensor]] | None:
        """Return what `work` makes of every part, in order; None in all processes but the main one.

        `name` tells this pass from all others of the stage.
        """
        if self._alone:
            return [_as_in_a_file(work(part)) for part in parts]
        files = [self._file(f"{name}/{i:05d}") for i in range(len(parts))]
        for part, file in zip(self.mine(parts), self.mine(files), strict=True):
            save_file(_as_in_a_file(work(part)), file)
        distributed.barrier()
        return [load_file(file) for file in files] if distributed.is_main() else None

    def once(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return in every process what `make` returns in the main one."""
        if self._alone:
            return _as_in_a_file(make())
        file = self._file(name)
        if distributed.is_main():
            save_file(_as_in_a_file(make()), file)
        distributed.barrier()
        return {key: tensor.clone() for key, tensor in load_file(file).items()}

    def _file(self, name: str) -> Path:
        assert self._partial is not None
        return self._partial.scratch(f"shared/{name}.safetensors")

    @property
    def _alone(self) -> bool:
        return self._partial is None or distributed.world_size() == 1


def _as_in_a_file(made: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as those who read the file have them: a product's last bits may depend on the order in memory."""
    return {key: tensor.cpu().contiguous() for key, tensor in made.items()}
