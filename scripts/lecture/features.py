"""Figure 9, the lecture's headline: eight latents of a trained sparse autoencoder, their top images and heat maps."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from saetool.artifacts import Artifact
from saetool.errors import RequestError
from saetool.features import Features
from saetool.images import ImageSettings, open_source
from saetool.vision.geometry import Geometry

LATENTS = 8
IMAGES = 5
ALIKE = 0.4
"""Decoder cosine or co-activation above which two latents would show the same thing."""


def draw(run: Path):
    """Show the most localized common latents of `run`, no two alike; their numbers go into the JSON."""
    features = Features(run / "features")
    if features.grid is None:
        raise RequestError(f"{run}: these tokens have no grid, so there are no heat maps to show")
    store = Artifact.open(run / "activations", kind="activations")
    source = open_source(ImageSettings(**store.content["source"]))
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
    numbers = [_numbers(features, latent) for latent in chosen]
    return figure, {"images": store.content["source"]["source"], "site": site, "latents": numbers}


def _numbers(features: Features, latent: int) -> dict:
    row = features.latent(latent)
    kept = ("image_frequency", "token_frequency", "max", "mean_firing", "spatial_entropy")
    top = [{"path": example["path"], "value": example["value"]} for example in features.top(latent, IMAGES)]
    return {"latent": latent, **{key: row[key] for key in kept}, "top": top}


def choose(features: Features) -> list[int]:
    """Take the latents with the most localized heat among those with enough images, skipping look-alikes."""
    table = features.latents.to_pydict()
    spread = table["spatial_entropy"]
    eligible = [
        latent
        for latent, (status, images) in enumerate(zip(table["status"], table["image_count"], strict=True))
        if status == "ok" and images >= 2 * IMAGES and spread[latent] is not None
    ]
    eligible.sort(key=lambda latent: (spread[latent], latent))
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
