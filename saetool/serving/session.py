"""A model and its autoencoder, ready for pictures: what fires where on each, and what the model says without it."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from saetool import distributed
from saetool.activations import ActivationStore
from saetool.activations.sites import find_site, refuse_other_site
from saetool.artifacts import Artifact, digest_bytes
from saetool.autoencoders.base import Autoencoder
from saetool.autoencoders.families import load
from saetool.errors import RequestError
from saetool.evaluation.interventions import intervene, rows_for
from saetool.features.sheet import Originals
from saetool.images import ImageSource
from saetool.images.picture import as_address, read_picture
from saetool.serving.answers import Answers, Said, open_answers
from saetool.sparse.codes import Codes
from saetool.training.heldout import reconstruct
from saetool.vision import BackboneSettings, load_backbone
from saetool.vision.backbone import Backbone, Site

KEPT = 16
"""Pictures that are kept, prepared; an older one is forgotten."""
MOST_PIXELS = 100_000_000
STRONGEST = 64
"""Latents of a patch that the page is told, at most."""
SHOWN_PX = 720
MOST_CLASSES = 8
LARGEST_FACTOR = 100.0
MOST_CHANGES = 200
"""Latents that are changed at once: others are looked for one by one."""


@dataclass(frozen=True)
class Kept:
    """A picture as the model takes it, and what the model says of it."""

    pixels: Tensor
    said: Said
    codes: Codes
    """What fires on each token."""


@dataclass
class Session:
    """One run's model, for one visitor's pictures. Thread-safe: one picture is computed at a time."""

    backbone: Backbone
    autoencoder: Autoencoder
    site: Site
    mean: Tensor
    """The site's mean activation over the store, [d_in]."""
    answers: Answers
    originals: Originals | None = None
    """The run's own images, where they are at hand."""
    _pictures: OrderedDict[str, Kept] = field(default_factory=OrderedDict)
    _turn: Any = field(default_factory=RLock)

    @classmethod
    def open(
        cls,
        autoencoder: Artifact,
        store: Artifact,
        settings: BackboneSettings,
        source: ImageSource | None,
        *,
        label: str | None = None,
        seed: int = 0,
    ) -> "Session":
        """Load the model of a store of activations and an autoencoder of one of its sites, and what gives answers.

        Raises RequestError where the settings are of another model than the store's, or `label` is none of the store's.
        """
        opened, info = ActivationStore(store), find_site(autoencoder, store)
        backbone = load_backbone(settings, seed)
        site = backbone.site(info["module"])
        refuse_other_site(backbone.describe_site(site), info)
        answers = open_answers(
            backbone, opened, autoencoder.content["held_out"], source, label, pretrained=settings.pretrained
        )
        model = load(autoencoder).to(distributed.default_device())
        mean = opened.site(info["folder"]).statistics().mean.float()
        originals = None if source is None else Originals(opened.images, source)
        return cls(backbone, model, site, mean, answers, originals)

    def look(self, content: bytes, name: str = "the picture") -> dict[str, Any]:
        """Return what the page shows of an image file's bytes: the picture, its patches' latents, the model's answer.

        Raises WorkError where they are no picture.
        """
        with self._turn:  # a large picture takes memory from here on
            image = read_picture(content, name, MOST_PIXELS, of_a_run=False).image.convert("RGB")
            return self._look(image, digest_bytes(content), name)

    def look_at(self, row: int) -> dict[str, Any]:
        """Return the same of an image of the run, by its number.

        Raises RequestError where there is none, or the images are not those that were cached.
        """
        if self.originals is None:
            raise RequestError("the run's images are not at hand: drop a picture.")
        n = len(self.originals.paths)
        if not 0 <= row < n:
            raise RequestError(f"there is no image {row}: they go from 0 to {n - 1}.")
        return self._look(self.originals.read(row), f"image {row}", f"image {row}: {self.originals.paths[row]}")

    def _look(self, image: Image.Image, key: str, name: str) -> dict[str, Any]:
        with self._turn, torch.no_grad():
            pixels = self.backbone.transform(image)[None]
            tokens = self.backbone.forward_to(pixels, [self.site])[0][0].float()
            said = self.answers.of(pixels)
            rows = rows_for(self.autoencoder, tokens)
            codes, x_hat = reconstruct(self.autoencoder, rows)
            kept = Kept(pixels, said, codes)
            self._keep(key, kept)
        return {
            "picture": key,
            "name": name,
            "width": image.width,
            "height": image.height,
            "shown": as_address(image, SHOWN_PX, 88),
            "grid": self._grid(len(tokens)),
            "box": self._box(image.width, image.height, len(tokens)),
            "unexplained": self._unexplained(rows, x_hat),
            **_strongest(codes, len(rows)),
            "answer": self._told(kept, kept.said, kept.said),
        }

    def change(
        self, picture: str, changes: Mapping[int, float], patches: Sequence[int] | None = None
    ) -> dict[str, Any]:
        """Return the model's answer with latents multiplied by factors (0: off), on some patches or on all.

        "others" is the answer with as many others changed in the same way, those of nearest mass on these patches: a
        change that these make too tells nothing of the latents.

        Raises RequestError for a picture that is not kept any more, a latent or a patch that does not exist.
        """
        with self._turn:
            return self._change(picture, changes, patches)

    def _change(self, picture: str, changes: Mapping[int, float], patches: Sequence[int] | None) -> dict[str, Any]:
        kept = self._pictures.get(picture)
        if kept is None:
            raise RequestError("this picture is not kept any more: drop it again.")
        if any(not 0 <= factor <= LARGEST_FACTOR for factor in changes.values()):
            raise RequestError(f"a latent is multiplied by 0 (off) to {LARGEST_FACTOR:g}.")
        if len(changes) > MOST_CHANGES:
            raise RequestError(f"at most {MOST_CHANGES} latents are changed at once.")
        self._pictures.move_to_end(picture)
        changed = self._changed(kept, changes, patches)
        matched = matched_latents(self._mass(kept.codes, patches), changes)
        others = self._changed(kept, matched, patches)
        return {**self._told(kept, changed, others), "matched": list(matched)}

    def _changed(self, kept: Kept, changes: Mapping[int, float], patches: Sequence[int] | None) -> Said:
        with intervene(self.backbone, self.autoencoder, changes, patches, site=self.site.module):
            return self.answers.of(kept.pixels)

    def _keep(self, key: str, kept: Kept) -> None:
        self._pictures[key] = kept
        self._pictures.move_to_end(key)
        while len(self._pictures) > KEPT:
            self._pictures.popitem(last=False)

    def _grid(self, tokens: int) -> list[int] | None:
        grid = self.backbone.grid if self.backbone.tokens == "patches" else None
        return list(grid) if grid is not None and tokens == grid[0] * grid[1] else None

    def _box(self, width: int, height: int, tokens: int) -> list[float] | None:
        if self._grid(tokens) is None:
            return None
        left, top, right, bottom = self.backbone.transform.geometry.grid_box(width, height)
        return [left / width, top / height, right / width, bottom / height]

    def _unexplained(self, rows: Tensor, x_hat: Tensor) -> float | None:
        """Return this picture's FVU: squared error over squared distance from the store's mean, summed over tokens."""
        error = (rows - x_hat).double().square().sum()
        whole = (rows - self.mean.to(rows)).double().square().sum()
        return float(error / whole) if whole > 0 else None

    def _mass(self, codes: Codes, patches: Sequence[int] | None) -> dict[int, float]:
        """Return each firing latent's values, summed over the patches, times the length of its direction."""
        row = codes.row_of_entry()
        here = torch.ones_like(row, dtype=torch.bool) if patches is None else torch.isin(row, row.new_tensor(patches))
        latents, place = codes.latents[here].unique(return_inverse=True)
        sums = torch.zeros(len(latents), dtype=torch.float64, device=latents.device)
        sums.index_add_(0, place, codes.values[here].double().abs())
        directions = self.autoencoder.decoder_directions()
        if directions is not None:
            sums *= directions[latents.to(directions.device)].norm(dim=1).to(sums)
        return dict(zip(latents.tolist(), sums.tolist(), strict=True))

    def _told(self, kept: Kept, changed: Said, others: Said) -> dict[str, Any]:
        """Return answers side by side: the likeliest classes before and after, the embeddings' cosines to before."""
        (before, likely), (after, changed_to), (beside, others_to) = kept.said, changed, others
        classes: list[dict[str, Any]] = []
        if likely is not None and changed_to is not None and others_to is not None:
            told = {"before": likely[0], "after": changed_to[0], "others": others_to[0]}
            best = torch.maximum(likely[0], changed_to[0]).argsort(descending=True, stable=True)[:MOST_CLASSES]
            for k in best.tolist():
                shares = {name: float(found[k]) for name, found in told.items()}
                classes.append({"name": self.answers.classes[k], **shares})
        cosines = {
            name: float(torch.cosine_similarity(before, e)[0]) for name, e in (("after", after), ("others", beside))
        }
        return {"classes": classes, "cosine": cosines}


def matched_latents(mass: Mapping[int, float], changes: Mapping[int, float]) -> dict[int, float]:
    """Return for each changed latent that fires another one of nearest mass, each once, with the same factor.

    >>> matched_latents({1: 5.0, 2: 4.0, 3: 1.0, 4: 0.5}, {1: 0.0, 4: 2.0, 9: 0.0})
    {2: 0.0, 3: 2.0}
    """
    left, found = {latent: m for latent, m in mass.items() if latent not in changes}, {}
    for latent, factor in changes.items():
        if latent in mass and left:
            nearest = min(left, key=lambda other: (abs(left[other] - mass[latent]), other))
            del left[nearest]
            found[nearest] = factor
    return found


def _strongest(codes: Codes, tokens: int) -> dict[str, Any]:
    """Return each token's strongest latents, strongest first, as run-length coded lists."""
    row, latent = codes.row_of_entry().cpu().numpy(), codes.latents.cpu().numpy()
    value = codes.values.float().cpu().numpy()
    order = np.lexsort((latent, -value, row))
    row, latent, value = row[order], latent[order], value[order]
    counts = np.bincount(row, minlength=tokens)
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = place < STRONGEST
    return {
        "counts": np.minimum(counts, STRONGEST).tolist(),
        "most": STRONGEST,
        "latents": latent[kept].tolist(),
        "values": [float(f"{one:.6g}") for one in value[kept]],
    }
