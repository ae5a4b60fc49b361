"""Figure 9, the lecture's headline: eight latents of a trained sparse autoencoder, their top images and heat maps."""

import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from saetool.artifacts import Artifact
from saetool.errors import RequestError
from saetool.features import Features
from saetool.images import open_cached
from saetool.vision.geometry import Geometry

LATENTS = 8
IMAGES = 5
COMMON = 0.2
"""Share of the images above which a latent is too common to be a finding."""
REGION = 0.15
"""Share of an image's patches above which a firing is no region."""
VARYING = 0.7
"""Entropy of a latent's places over all images, of its maximum."""
ALIKE = 0.3
"""Decoder cosine or co-activation above which two latents would show the same thing."""


def draw(run: Path):
    """Show eight latents of `run`, no two alike; their numbers go into the JSON."""
    features = Features(run / "features")
    if features.grid is None:
        raise RequestError(f"{run}: these tokens have no grid, so there are no heat maps to show")
    store = Artifact.open(run / "activations", kind="activations")
    source = open_cached(store)
    places = {source.path(i): i for i in range(len(source))}
    geometry = Geometry.from_dict(features.content["geometry"])
    chosen = choose(features)
    widths = [1.0] * IMAGES + [0.15] + [1.0] * IMAGES
    figure, axes = plt.subplots(LATENTS // 2, len(widths), figsize=(17, 7.2), width_ratios=widths)
    for ax in axes.flat:
        ax.axis("off")
    for position, latent in enumerate(chosen):
        line, block = divmod(position, 2)
        row = features.latent(latent)
        for rank, example in enumerate(features.top(latent, IMAGES)):
            ax = axes[line, block * (IMAGES + 1) + rank]
            picture = source.read(places[example["path"]])
            _overlay(ax, picture, features.heat(example), geometry)
            ax.set_title(f"{example['value']:.1f}" + (" (held out)" if example["held_out"] else ""), fontsize=7, pad=2)
            if rank == 0:
                text = f"latent {latent}\non {row['image_frequency']:.0%} of images"
                ax.text(-0.08, 0.5, text, transform=ax.transAxes, rotation=90, ha="right", va="center", fontsize=8)
    site = features.content["site"]["folder"]
    figure.suptitle(f"{LATENTS} of {features.n_latents:,} latents, {site}: their top images", y=0.95)
    if source.attribution:
        figure.text(0.5, 0.06, source.attribution, ha="center", fontsize=7)
    numbers = [_numbers(features, latent) for latent in chosen]
    return figure, {"images": store.content["source"]["source"], "site": site, "latents": numbers}


def _numbers(features: Features, latent: int) -> dict:
    row = features.latent(latent)
    kept = ("image_frequency", "token_frequency", "max", "mean_firing", "spatial_entropy")
    top = [{"path": example["path"], "value": example["value"]} for example in features.top(latent, IMAGES)]
    return {"latent": latent, **{key: row[key] for key in kept}, "top": top}


def choose(features: Features) -> list[int]:
    """Take the strongest latents that are selective and fire on small regions at varying places; skip look-alikes.

    A latent that always fires at one place would show the place, not the content.
    """
    table = features.latents.to_pydict()
    spread, patches = table["spatial_entropy"], math.prod(features.grid)
    eligible = [
        latent
        for latent, status in enumerate(table["status"])
        if status == "ok"
        and 4 * IMAGES <= table["image_count"][latent] <= COMMON * features.content["images"]
        and 3 <= table["token_count"][latent] / table["image_count"][latent] <= REGION * patches
        and (spread[latent] or 0) > VARYING
    ]
    eligible.sort(key=lambda latent: (-table["max"][latent], latent))
    chosen: list[int] = []
    for latent in eligible:
        alike = set()
        for by in ("decoder", "coactivation"):
            alike |= {row["latent"] for row in features.similar(latent, by) if row["similarity"] > ALIKE}
        if not alike & set(chosen):
            chosen.append(latent)
        if len(chosen) == LATENTS:
            return chosen
    raise RequestError(f"{features.artifact.path}: only {len(chosen)} latents are common and distinct enough to show")


def _overlay(ax, picture, heat: np.ndarray, geometry: Geometry) -> None:
    """Draw the picture in gray with the heat where the patch grid lies on it."""
    left, top, right, bottom = geometry.grid_box(picture.width, picture.height)
    ax.imshow(np.asarray(picture.image.convert("L")), cmap="gray", extent=(0, picture.width, picture.height, 0))
    strength = heat / max(float(heat.max()), 1e-12)
    place = (left, right, bottom, top)
    ax.imshow(strength, cmap="inferno", alpha=0.75 * strength, extent=place, interpolation="bilinear")
    ax.set(xlim=(0, picture.width), ylim=(picture.height, 0))
