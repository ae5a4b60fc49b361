"""Where a training run's rows come from, before any of them is read: a sealed store, a stream, a live model."""

from dataclasses import dataclass
from typing import Protocol

import torch

from saetool.artifacts import Artifact, digest_bytes
from saetool.autoencoders.base import Stream
from saetool.errors import RequestError
from saetool.images.settings import Grouping
from saetool.training.settings import TrainingSettings


class Source(Protocol):
    """What a training stage needs to know of its rows: cheap facts now, the stream itself when work begins."""

    @property
    def inputs(self) -> tuple[Artifact, ...]:
        """The artifacts that the rows come from."""
        ...

    @property
    def listing(self) -> str | None:
        """Digest that names the rows where no input artifact does."""
        ...

    def check(self, settings: TrainingSettings) -> None:
        """Raise RequestError where these rows cannot be had; cheap."""
        ...

    def site(self, settings: TrainingSettings) -> dict | None:
        """Return the site that the rows were read from; asked after `open`."""
        ...

    def config(self) -> dict:
        """Return what else determines the rows, as JSON types."""
        ...

    def open(self, settings: TrainingSettings, seed: int, device: torch.device) -> Stream:
        """Return the stream of shuffled batches, for a model on a device."""
        ...


@dataclass(frozen=True)
class StoreSource:
    """A sealed store of activations; `group` says which of its images are held out as one."""

    artifact: Artifact
    listing: str | None = None
    group: Grouping | None = None

    @property
    def inputs(self) -> tuple[Artifact, ...]:
        """The store."""
        return (self.artifact,)

    def site(self, settings: TrainingSettings) -> dict:
        """Return the entry of the chosen site; raises RequestError where it is missing or the choice is open."""
        sites = [site for site in self.artifact.content["sites"] if not site.get("embedding")]
        if settings.layer is None:
            if len(sites) == 1:
                return sites[0]
            wanted = None
        else:
            wanted = next((s for s in sites if settings.layer in (s.get("layer"), s.get("module"), s["folder"])), None)
        if wanted is None:
            names = ", ".join(str(site.get("layer") or site["folder"]) for site in sites)
            raise RequestError(f"training.layer is {settings.layer!r}; {self.artifact.path} holds {names}: name one.")
        return wanted

    def check(self, settings: TrainingSettings) -> None:
        """Raise RequestError where no site is chosen."""
        self.site(settings)

    def config(self) -> dict:
        """Return which images are held out as one; the input's id says the rest."""
        return {"group": self.group.rule()} if self.group else {}

    def open(self, settings: TrainingSettings, seed: int, device: torch.device) -> Stream:
        """Open the store and shuffle the chosen site."""
        from saetool.activations import ActivationStore, StoreStream, held_out_images
        from saetool.activations.device_pool import fits_whole

        store = ActivationStore(self.artifact)
        mask = held_out_images(store, {"seed": seed, "share": settings.held_out, **self.config()})
        site = store.site(self.site(settings)["folder"])
        rows = site.n_images * site.tokens
        whole = settings.tokens > rows and fits_whole(rows * site.d * site.dtype.itemsize, device)
        return StoreStream(site, settings.batch_size, settings.pool_rows, seed, mask, device, whole)


@dataclass(frozen=True)
class GivenStream:
    """A stream that exists already; it brings its own batches, order and split."""

    stream: Stream
    inputs: tuple[Artifact, ...] = ()

    @property
    def listing(self) -> str:
        """The digest of the training rows' moments: other rows, other work."""
        statistics = self.stream.statistics()
        moments = statistics.mean.cpu().numpy().tobytes() + statistics.variance.cpu().numpy().tobytes()
        return digest_bytes(moments + str(statistics.count).encode())

    def check(self, settings: TrainingSettings) -> None:
        """Raise RequestError where the stream's batches are not those that the settings ask for."""
        if self.stream.batch_size != settings.batch_size:
            raise RequestError(
                f"training.batch_size is {settings.batch_size}, but the stream's batches have "
                f"{self.stream.batch_size} rows: make them equal."
            )

    def site(self, settings: TrainingSettings) -> None:
        """Return None: nobody knows what the rows are."""

    def config(self) -> dict:
        """Return nothing: `listing` names the rows."""
        return {}

    def open(self, settings: TrainingSettings, seed: int, device: torch.device) -> Stream:
        """Return the stream."""
        return self.stream
