"""The chunks of the latent pages, and the glimpses that stand for a latent in the table and among neighbors."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from saetool.report import heat
from saetool.report.chunks import pack, smallest_unsigned
from saetool.report.columns import numbers
from saetool.report.source import Examples, FeatureFiles

PAGE_BLOCK = 32
"""Latents in one chunk: about 100 kB, read in a few milliseconds."""
GLIMPSE_BLOCK = 256
GLIMPSE_IMAGES = 4

TENSORS = (
    "histogram",
    "spatial_profile",
    "neighbors_decoder",
    "neighbors_decoder_value",
    "neighbors_coactivation",
    "neighbors_coactivation_value",
)
STATISTICS = ("images", "firing_images", "auroc", "auroc_low", "auroc_high", "average_precision", "mass_share")


def page_chunks(files: FeatureFiles, chosen: np.ndarray) -> Iterator[tuple[int, bytes]]:
    """Yield (block, script) for every block of `PAGE_BLOCK` latents that holds a chosen one (mask [n_latents])."""
    tensors = {name: files.tensor(name) for name in TENSORS}
    statistics = _Statistics(files)
    for start, examples in files.examples(PAGE_BLOCK):
        stop = min(start + PAGE_BLOCK, files.n_latents)
        if not chosen[start:stop].any():
            continue
        arrays = _example_arrays(examples, start, stop)
        for name, tensor in tensors.items():
            if tensor is not None:
                arrays[name] = _narrow(name, tensor[start:stop])
        arrays |= statistics.arrays(start, stop)
        block = start // PAGE_BLOCK
        yield block, pack(f"latents/{block}", arrays, {"start": start, "stop": stop})


def _example_arrays(examples: Examples, start: int, stop: int) -> dict[str, np.ndarray]:
    """Return the examples of latents start to stop as arrays, `example_counts` of them a latent."""
    if not examples.table.num_rows:
        return {"example_counts": np.zeros(stop - start, np.uint16)}
    latent = examples.column("latent", 0, np.int64)
    scale = np.zeros(stop - start, np.float32)
    scale[latent - start] = examples.column("heat_scale", 0.0, np.float32)
    return {
        "example_counts": np.bincount(latent - start, minlength=stop - start).astype(np.uint16),
        "group": examples.column("place", 0, np.uint8),
        "interval": examples.column("interval", -1, np.int8),
        "image": examples.column("image", 0, np.int32),
        "patch": examples.column("patch", -1, np.int32),
        "value": examples.column("value", 0.0, np.float32),
        "held_out": examples.column("held_out", False, np.uint8),
        "heat_scale": scale,
        **heat.sparse(examples.heat).arrays("heat"),
    }


def _narrow(name: str, tensor: np.ndarray) -> np.ndarray:
    """Return a tensor in a small type: spatial profiles as bytes of their own maximum, counts as narrow as they go."""
    if name == "spatial_profile":
        peak = np.maximum(tensor.max(axis=1, keepdims=True, initial=0.0), np.finfo(np.float32).tiny)
        return np.rint(np.clip(tensor, 0, None) / peak * 255).astype(np.uint8)
    if name == "histogram":
        return tensor.astype(np.uint32 if tensor.max(initial=0) < 1 << 32 else np.float64)
    return tensor.astype(np.float32 if tensor.dtype.kind == "f" else np.int32)


class _Statistics:
    """Label statistics, cut by latent."""

    def __init__(self, files: FeatureFiles):
        table = files.label_statistics
        self.classes: list[tuple[str, str]] = []
        self.columns: dict[str, np.ndarray] = {}
        if table is None or not table.num_rows:
            return
        self.latent = table["latent"].to_numpy()
        pairs = list(zip(table["label"].to_pylist(), table["class"].to_pylist(), strict=True))
        self.classes = list(dict.fromkeys(pairs))
        index = {pair: i for i, pair in enumerate(self.classes)}
        codes = np.fromiter((index[pair] for pair in pairs), np.int64, len(pairs))
        self.columns = {name: numbers(table[name]) for name in STATISTICS if name in table.column_names}
        self.columns["class"] = codes.astype(smallest_unsigned(len(self.classes)))

    def arrays(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Return the statistics of latents start to stop, `label_counts` rows a latent."""
        if not self.columns:
            return {}
        low, high = np.searchsorted(self.latent, [start, stop])
        counts = np.bincount(self.latent[low:high] - start, minlength=stop - start).astype(np.uint32)
        return {"label_counts": counts} | {f"label_{k}": v[low:high] for k, v in self.columns.items()}


def label_classes(files: FeatureFiles) -> list[list[str]]:
    """Return the (label, class) pairs that `label_class` in the chunks points into."""
    return [list(pair) for pair in _Statistics(files).classes]


def glimpses(files: FeatureFiles) -> Iterator[tuple[int, bytes, np.ndarray]]:
    """Yield (block, script, best image of each latent or −1) for every block of `GLIMPSE_BLOCK` latents.

    A glimpse is a latent's first `GLIMPSE_IMAGES` top examples with their heat maps.
    """
    for start, examples in files.examples(GLIMPSE_BLOCK):
        stop = min(start + GLIMPSE_BLOCK, files.n_latents)
        images = np.full((stop - start, GLIMPSE_IMAGES), -1, np.int32)
        patches = np.full((stop - start, GLIMPSE_IMAGES), -1, np.int32)
        maps = np.zeros((stop - start, GLIMPSE_IMAGES, files.heat_size), np.uint8)
        if examples.table.num_rows:
            rank = examples.column("rank", 0, np.int64)
            kept = (examples.column("place", 0, np.int64) == 0) & (rank < GLIMPSE_IMAGES)
            place = (examples.column("latent", 0, np.int64)[kept] - start, rank[kept])
            images[place] = examples.column("image", -1, np.int32)[kept]
            patches[place] = examples.column("patch", -1, np.int32)[kept]
            maps[place] = examples.heat[kept]
        block = start // GLIMPSE_BLOCK
        arrays = {"image": images, "patch": patches}
        arrays |= heat.sparse(maps.reshape(len(maps) * GLIMPSE_IMAGES, files.heat_size)).arrays("heat")
        yield block, pack(f"glimpses/{block}", arrays, {"start": start}), images[:, 0]


def example_images(places: pa.Table) -> np.ndarray:
    """Return the rows of all example images, those of the best rank among top examples first, then by row."""
    image = places["image"].to_numpy()
    rank = places["rank"].to_numpy().astype(np.int64)
    rank = np.where(places["group"].cast(pa.string()).to_numpy(zero_copy_only=False) == "top", rank, rank + (1 << 20))
    order = np.lexsort((image, rank))
    _, first = np.unique(image[order], return_index=True)
    return image[order][np.sort(first)].astype(np.int64)
