"""Which images stand for which latent, without heat maps: all examples of an index as arrays."""

from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from saetool.features.ranking import GROUPS

COLUMNS = ["latent", "group", "rank", "image", "patch", "held_out"]


@dataclass(frozen=True)
class Places:
    """Examples in order of latent, group, rank; `group` indexes GROUPS, `patch` is −1 without a grid."""

    latent: np.ndarray
    group: np.ndarray
    rank: np.ndarray
    image: np.ndarray
    patch: np.ndarray
    held_out: np.ndarray

    @classmethod
    def of(cls, table: pa.Table) -> "Places":
        """Take `COLUMNS` of examples.parquet."""
        encoded = table["group"].cast(pa.string()).combine_chunks().dictionary_encode()
        codes = [GROUPS.index(name) if name in GROUPS else -1 for name in encoded.dictionary.to_pylist()]
        group = np.array(codes, np.int8)[encoded.indices.to_numpy()]
        filled = {"patch": -1, "held_out": False}
        rest = {
            name: pc.fill_null(table[name], filled.get(name, 0)).to_numpy(zero_copy_only=False)
            for name in COLUMNS
            if name != "group"
        }
        order = np.lexsort((rest["rank"], group, rest["latent"]))
        return cls(group=group[order], **{name: values[order] for name, values in rest.items()})

    def where(self, mask: np.ndarray) -> "Places":
        return Places(*(getattr(self, field.name)[mask] for field in fields(self)))

    def of_group(self, name: str) -> "Places":
        return self.where(self.group == GROUPS.index(name))

    def first(self, n_latents: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return image and patch of each latent's first `count` examples, int32 [n_latents, count], −1 for none."""
        kept = self.where(self.rank < count)
        images, patches = np.full((2, n_latents, count), -1, np.int32)
        images[kept.latent, kept.rank] = kept.image
        patches[kept.latent, kept.rank] = kept.patch
        return images, patches

    def ranked_images(self) -> np.ndarray:
        """Return the rows of all example images, those of the best rank among top examples first, then by row."""
        rank = self.rank.astype(np.int64) + (self.group != 0) * (1 << 20)
        order = np.lexsort((self.image, rank))
        _, first = np.unique(self.image[order], return_index=True)
        return self.image[order][np.sort(first)].astype(np.int64)
