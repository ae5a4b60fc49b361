"""What a latent is, in one sentence: how often it fires and what its strongest images have in common."""

import numpy as np
import pyarrow as pa

from saetool.features.labels import LabelColumn
from saetool.report.facts import ImageFacts
from saetool.report.places import Places

LONGEST = 60
"""Characters of a class's name in a sentence."""
SURE = 3.0
"""Standard deviations above the base rate from which a class is worth a clause."""


class Words:
    """Sentences about latents; `enrichment` [n_latents] is how far their best class lies above its base rate."""

    def __init__(self, latents: pa.Table, places: Places, facts: ImageFacts):
        self.facts = facts
        self._status = latents["status"].to_pylist()
        self._share = latents["image_frequency"].to_numpy()
        self._best: list[tuple[int, int, str, float] | None] = [None] * latents.num_rows
        self.enrichment = np.full(latents.num_rows, np.nan)
        top = places.of_group("top")
        for column in facts.columns:
            self._add(column, top)

    def _add(self, column: LabelColumn, top: Places) -> None:
        """Note each latent's most enriched class of one label column among its strongest images."""
        n, labeled = len(column.names), column.classes >= 0
        if n < 2 or not labeled.any():
            return
        base = np.bincount(column.classes[labeled], minlength=n) / labeled.sum()
        code = column.classes[top.image]
        known = code >= 0
        latent = top.latent[known].astype(np.int64)
        totals = np.bincount(latent, minlength=len(self._best))
        pairs, hits = np.unique(latent * n + code[known], return_counts=True)
        latent, code = pairs // n, pairs % n
        total, p = totals[latent], base[code]
        z = (hits - total * p) / np.sqrt(np.maximum(total * p * (1 - p), 1e-12))
        for i in np.flatnonzero((hits * 2 >= total) & (p < 1) & (total > 1)).tolist():
            j = int(latent[i])
            if np.isnan(self.enrichment[j]) or z[i] > self.enrichment[j]:
                self.enrichment[j] = z[i]
                name = column.names[int(code[i])][:LONGEST]
                what = f"{column.name[:LONGEST]} {name}" if column.ranks is not None else f"“{name}”"
                self._best[j] = (int(hits[i]), int(total[i]), what, float(p[i]))

    def sentence(self, latent: int) -> str:
        if self._status[latent] == "dead":
            return "Never fires on any of these images."
        said = f"Fires on {percent(self._share[latent])} of images"
        best = self._best[latent]
        if best is not None and self.enrichment[latent] >= SURE:
            hits, total, what, base = best
            return f"{said}; {hits} of its {total} strongest are {what}, base rate {percent(base)}."
        return said + "."


def percent(share: float) -> str:
    """Return a share in percent, two digits where it is small."""
    value = 100 * float(share)
    return f"{value:.0f}%" if value >= 9.5 or value == 0 else f"{value:.1f}%" if value >= 0.095 else f"{value:.1g}%"
