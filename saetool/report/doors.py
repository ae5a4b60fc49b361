"""The doors of the landing page: labels with their latents, junk, and the first look itself, as chunks."""

from typing import Any

import numpy as np
import pyarrow as pa

from saetool.report.chunks import pack, text
from saetool.report.columns import numbers
from saetool.report.crops import crops
from saetool.report.first import MIN_IMAGES, POSITIONAL, Interest
from saetool.report.latents import class_codes

STRIP = 8
"""Crops of a latent of the first look."""
PER_CLASS = 8
MAX_Q = 0.05
"""Share of false discoveries among the latents of a class."""
NEAR_COPY = 0.8
"""Cosine of decoder directions from which two latents are near copies of each other."""


def first_chunk(interest: Interest) -> bytes:
    """Return the script of what the landing page shows at once: the first look and the doors to junk."""
    chosen, n = np.array(interest.first_look, np.int64), interest.files.n_latents
    held_out = interest.places.of_group("held_out").first(n, STRIP)
    top = interest.places.of_group("top").first(n, STRIP)
    enough = (held_out[0][chosen] >= 0).sum(1) * 2 >= STRIP
    images, patches = (np.where(enough[:, None], h[chosen], t[chosen]) for h, t in zip(held_out, top, strict=True))
    words = [interest.words.sentence(latent) for latent in chosen.tolist()]
    strips = [
        {"latent": latent, "words": said, "held_out": bool(unseen)}
        for latent, said, unseen in zip(chosen.tolist(), words, enough, strict=True)
    ]
    arrays = crops(interest.words.facts, images, patches) | {"strips": text(strips), "junk": text(junk(interest))}
    return pack("first", arrays, {"each": STRIP})


def junk(interest: Interest) -> list[dict[str, Any]]:
    """Return the kinds of junk: name, number of latents, what it means, and the filters that list them."""
    latents = interest.files.latents
    status = np.array(latents["status"].to_pylist())
    living = ~np.isin(status, ["dead", "rare"])

    def of(name: str, low: float, high: float) -> np.ndarray:
        if name not in latents.column_names:
            return np.zeros(len(status), bool)
        values = numbers(latents[name]).astype(np.float64)
        return living & (values >= low) & (values <= high)

    # Where most latents are dense, they are meant to be: a code that is no sparse one.
    dense = (status == "dense") & ((status == "dense").mean() <= 0.5)
    often = of("image_count", MIN_IMAGES, np.inf)
    kinds = [
        ("Near copies", of("neighbor_similarity", NEAR_COPY, np.inf), "status=ok,dense", "-neighbor_similarity",
         [f"neighbor_similarity:{NEAR_COPY}:"], f"another latent's direction has a cosine of {NEAR_COPY} or more"),
        ("Positional", often & of("spatial_entropy", -np.inf, POSITIONAL), "status=ok,dense", "spatial_entropy",
         [f"spatial_entropy::{POSITIONAL}", f"image_count:{MIN_IMAGES}:"], "fire at the same place of most pictures"),
        ("Rare", status == "rare", "status=rare", "-max", [], "fire too seldom to be judged"),
        ("Silent on held-out images", of("silent_on_held_out", 1, 1), "status=ok,dense", "-token_frequency",
         ["silent_on_held_out:1:1"], "never fire on images that training did not see"),
        ("Dense", dense, "status=dense", "-token_frequency", [], "fire on a large share of all tokens"),
        ("Dead", status == "dead", "status=dead", "latent", [], "never fire on any image"),
    ]  # fmt: skip
    return [
        {"name": name, "count": int(mask.sum()), "filters": [kept, f"sort={sort}", *ranges], "help": meaning}
        for name, mask, kept, sort, ranges, meaning in kinds
    ]


SHOWN = ("auroc", "auroc_low", "held_out_auroc")
"""What is said of a class's latents, as far as the index knows it."""


def labels_chunk(interest: Interest) -> bytes:
    """Return the script that says, for every class of every label, which latents tell it apart best."""
    files, statistics = interest.files, interest.files.label_statistics
    if statistics is None or not statistics.num_rows:
        return pack("labels", {}, {"classes": []})
    pairs, codes = class_codes(statistics)
    latent = statistics["latent"].to_numpy()
    known = {name: numbers(statistics[name]).astype(np.float64) for name in SHOWN if name in statistics.column_names}
    low = known["auroc_low"]
    # A latent that is silent on a class tells it apart too, but stands for the others.
    sure = interest.alive[latent] & _sure(files.latents, statistics, latent) & (known["auroc"] > 0.5) & ~np.isnan(low)
    counts = statistics["images"].to_numpy()
    totals = {column.name: int((column.classes >= 0).sum()) for column in interest.words.facts.columns}
    order = np.lexsort((latent, -low, codes))
    order = order[sure[order]]
    starts = np.searchsorted(codes[order], np.arange(len(pairs) + 1))
    first = np.unique(codes, return_index=True)[1]
    found, classes = np.full((len(pairs), PER_CLASS), -1, np.int64), []
    values = {name: np.full((len(pairs), PER_CLASS), np.nan, np.float32) for name in known}
    for k, (label, name) in enumerate(pairs):
        rows = order[starts[k] : starts[k + 1]]
        kept = rows[:PER_CLASS]
        found[k, : len(kept)] = latent[kept]
        for key, column in known.items():
            values[key][k, : len(kept)] = column[kept]
        images = int(counts[first[k]])
        classes.append([label, name, images, images / max(totals.get(label, 0), images, 1), len(rows)])
    images, patches = interest.places.of_group("top").first(files.n_latents, 1)
    shown = [np.where(found >= 0, one[np.maximum(found, 0), 0], -1) for one in (images, patches)]
    arrays = crops(interest.words.facts, *shown) | {"latent": found.astype(np.int32), "classes": text(classes)}
    return pack("labels", arrays | values, {"each": PER_CLASS, "max_q": MAX_Q, "min_images": MIN_IMAGES})


def _sure(latents: pa.Table, statistics: pa.Table, latent: np.ndarray) -> np.ndarray:
    """Say for which rows of the statistics the latent fires on enough images and stands the class's test."""
    sure = np.ones(len(latent), bool)
    if "image_count" in latents.column_names:
        sure &= latents["image_count"].to_numpy()[latent] >= MIN_IMAGES
    if "q_value" in statistics.column_names:
        return sure & (numbers(statistics["q_value"], np.float64) <= MAX_Q)
    labels = np.array(statistics["label"].to_pylist())
    for name in np.unique(labels).tolist():
        if f"{name}.q_value" in latents.column_names:
            q = numbers(latents[f"{name}.q_value"], np.float64)[latent]
            sure &= (labels != name) | (q <= MAX_Q)
    return sure
