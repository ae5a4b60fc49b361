"""Where a training run's rows come from, before any is read: a sealed store, memory, a stream, a live model."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from saetool.artifacts import Artifact, digest_bytes, digest_json
from saetool.autoencoders.base import Stream
from saetool.errors import RequestError, first_line, type_name
from saetool.images.settings import Grouping
from saetool.training.advice import AutoTraining
from saetool.training.settings import TrainingSettings

Part = TrainingSettings | AutoTraining
"""What says which site of a store is read, and how much of it is held out."""

LISTED_ROWS = 4096
"""Held-out rows that a stream is told apart by."""


class Source(Protocol):
    """What a training stage needs to know of its rows: cheap facts now, the stream itself when work begins."""

    @property
    def inputs(self) -> tuple[Artifact, ...]:
        """The artifacts that the rows come from; none where they come from elsewhere."""
        return ()

    @property
    def listing(self) -> str | None:
        """Digest that names the rows where no input artifact does."""
        return None

    def times(self) -> str | None:
        """Return a digest over when what is read was last written, where no input artifact says what it was."""
        return None

    def check(self, settings: TrainingSettings) -> None:
        """Raise RequestError where these rows cannot be had; cheap."""
        ...

    def size(self, settings: Part) -> tuple[int, int]:
        """Return about how many rows there are to train on, and their width; cheap, or RequestError."""
        ...

    def site(self, settings: TrainingSettings) -> dict | None:
        """Return the site that the rows were read from, where it is known; asked after `open`."""
        return None

    def config(self) -> dict:
        """Return what else determines the rows, as JSON types."""
        return {}

    def open(self, settings: TrainingSettings, seed: int, device: torch.device) -> Stream:
        """Return the stream of shuffled batches, for a model on a device."""
        ...


@dataclass(frozen=True)
class StoreSource(Source):
    """A sealed store of activations; `group` says which of its images are held out as one."""

    artifact: Artifact
    group: Grouping | None = None

    @property
    def inputs(self) -> tuple[Artifact, ...]:
        return (self.artifact,)

    def site(self, settings: Part) -> dict:
        """Return the entry of the chosen site; raises RequestError where it is missing or the choice is open."""
        sites = [site for site in self.artifact.content["sites"] if not site.get("embedding")]
        layer = settings.layer
        fitting = [s for s in sites if layer is None or layer in (s.get("layer"), s.get("module"), s["folder"])]
        if not fitting or (layer is None and len(fitting) > 1):
            names = ", ".join(str(site.get("layer") or site["folder"]) for site in sites)
            raise RequestError(f"training.layer is {layer!r}; {self.artifact.path} holds {names}: name one.")
        return fitting[0]

    def check(self, settings: TrainingSettings) -> None:
        self.site(settings)

    def size(self, settings: Part) -> tuple[int, int]:
        site = self.site(settings)
        return round(self.artifact.content["images"] * site["n_tokens"] * (1 - settings.held_out)), site["d"]

    def config(self) -> dict:
        return {"group": self.group.rule()} if self.group else {}

    def open(self, settings: TrainingSettings, seed: int, device: torch.device) -> Stream:
        from saetool.activations import ActivationStore, StoreStream, held_out_images
        from saetool.activations.device_pool import fits_whole
        from saetool.activations.split import require_groups

        store = ActivationStore(self.artifact)
        split = {"seed": seed, "share": settings.held_out, **self.config()}
        require_groups(store, split)
        mask = held_out_images(store, split)
        site = store.site(self.site(settings)["folder"])
        rows = site.n_images * site.tokens
        whole = settings.tokens > rows and fits_whole(rows * site.d * site.dtype.itemsize, device)
        return StoreStream(site, settings.batch_size, settings.pool_rows, seed, mask, device, whole)


@dataclass(frozen=True)
class GivenRows(Source):
    """Rows in memory: [images, tokens, d], whose images are held out whole, by their content as those of a store."""

    rows: Tensor

    @classmethod
    def of(cls, given: "Tensor | np.ndarray") -> "GivenRows":
        """Return rows [n, d] or [images, …, d] of any device as float32, or as their own 16 bits; checked.

        Raises RequestError for other shapes, no numbers, and values that are not finite.
        """
        name = type_name(given)
        try:
            rows = given if isinstance(given, Tensor) else torch.from_numpy(np.array(given))
            shape = f"{list(rows.shape)} of {rows.dtype}"
            if rows.ndim < 2 or 0 in rows.shape or rows.is_complex() or rows.dtype == torch.bool:
                raise RequestError(f"train takes rows [n, d] or [images, tokens, d], not a {name} {shape}.")
            kept = rows.dtype if rows.dtype in (torch.float16, torch.bfloat16) else torch.float32
            rows = rows.detach().to("cpu", kept).reshape(len(rows), -1, rows.shape[-1]).contiguous()
        except (TypeError, NotImplementedError, RuntimeError) as error:  # objects, sparse, without data
            raise RequestError(f"train takes no such {name}: {first_line(error)}") from None
        if not rows.isfinite().all():
            raise RequestError(f"train: some values of the {name} are not finite (NaN or infinite): leave them out.")
        return cls(rows)

    @cached_property
    def digests(self) -> list[str]:
        """The digest of each image's values."""
        return [digest_bytes(image.view(torch.uint8).numpy().data) for image in self.rows]

    @property
    def listing(self) -> str:
        return digest_json(self.digests)

    def check(self, settings: TrainingSettings) -> None:
        if settings.layer is not None:
            raise RequestError(f"training.layer is {settings.layer!r}, but rows in memory come from no layer.")

    def size(self, settings: Part) -> tuple[int, int]:
        return round(self.rows.shape[0] * self.rows.shape[1] * (1 - settings.held_out)), self.rows.shape[2]

    def config(self) -> dict:
        return {"rows": {"shape": list(self.rows.shape), "dtype": str(self.rows.dtype).removeprefix("torch.")}}

    def open(self, settings: TrainingSettings, seed: int, device: torch.device) -> Stream:
        from saetool.activations import TensorStream, held_out_mask

        mask = torch.from_numpy(held_out_mask(self.digests, seed, settings.held_out))
        training, held_out = (self.rows[chosen].flatten(0, 1).to(device) for chosen in (~mask, mask))
        return TensorStream(training, held_out, settings.batch_size, seed)


@dataclass(frozen=True)
class GivenStream(Source):
    """A stream that exists already; it brings its own batches, order and split."""

    stream: Stream

    @property
    def listing(self) -> str:
        """The digest of the training rows' moments, of held-out rows, and of the order: others are other work."""
        statistics, seed = self.stream.statistics(), getattr(self.stream, "seed", None)
        tensors = [statistics.mean, statistics.variance, *self.stream.held_out(LISTED_ROWS)]
        values = [tensor.float().cpu().contiguous().numpy().tobytes() for tensor in tensors]
        return digest_bytes(*values, f"{statistics.count}, {seed}".encode())

    def check(self, settings: TrainingSettings) -> None:
        if self.stream.batch_size != settings.batch_size:
            raise RequestError(
                f"training.batch_size is {settings.batch_size}, but the stream's batches have "
                f"{self.stream.batch_size} rows: make them equal."
            )

    def size(self, settings: Part) -> tuple[int, int]:
        return self.stream.n_rows, self.stream.d_in

    def open(self, settings: TrainingSettings, seed: int, device: torch.device) -> Stream:
        return self.stream
