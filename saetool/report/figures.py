"""Pictures of models whose latents are not sparse: reconstructions, directions, spectrum, samples.

They come from `figures.safetensors` of the evaluation (float32, raw units: originals, corrupted, reconstructions,
samples [n, d_in]; filters, encoder_filters [k, d_in]; spectrum [k]). Without one, directions and spectrum are read off
the decoder's weights where they are recognizable.
"""

import numpy as np
from safetensors import safe_open

from saetool.artifacts import Artifact
from saetool.report.chunks import pack

FILE = "figures.safetensors"
KINDS = {
    "originals": "Originals",
    "corrupted": "Corrupted",
    "reconstructions": "Reconstructions",
    "samples": "Samples",
    "filters": "Decoder directions",
    "encoder_filters": "Filters of the encoder's first layer",
}
DIRECTIONS = ("filters", "encoder_filters")
MAX_FILTERS = 64


def read_figures(autoencoder: Artifact, evaluation: Artifact | None) -> dict[str, np.ndarray]:
    """Return the figures' arrays, {} for a sparse model and where there is nothing to show."""
    if autoencoder.content.get("family") in (None, "sparse"):
        return {}
    for artifact in (evaluation, autoencoder):
        if artifact is not None and FILE in artifact.files:
            with safe_open(artifact.file(FILE), "np") as file:
                return {name: file.get_tensor(name) for name in sorted(file.keys())}
    return _from_weights(autoencoder)


def _from_weights(autoencoder: Artifact) -> dict[str, np.ndarray]:
    """Return directions (largest first) and singular values of the one matrix that maps latents to d_in."""
    d_in, found = autoencoder.content.get("d_in"), {}
    if "model.safetensors" not in autoencoder.files:
        return {}
    with safe_open(autoencoder.file("model.safetensors"), "np") as file:
        for name in sorted(file.keys()):
            shape = file.get_slice(name).get_shape()
            if ("decoder" in name or name == "W_dec") and len(shape) == 2 and d_in in shape:
                found[name] = file.get_tensor(name).astype(np.float32)
    if len(found) != 1:
        return {}
    (matrix,) = found.values()
    rows = matrix if matrix.shape[1] == d_in else matrix.T
    order = np.argsort(-np.linalg.norm(rows, axis=1), kind="stable")[:MAX_FILTERS]
    return {"filters": rows[order], "spectrum": np.linalg.svd(rows, compute_uv=False)}


def picture_shape(store: Artifact) -> tuple[int, int, int] | None:
    """Return (channels, height, width) where the store's rows are flattened images, None otherwise."""
    backbone = store.content.get("backbone") or {}
    if not str(backbone.get("name", "")).startswith("pixels"):
        return None
    preprocessing = backbone["preprocessing"]
    height, width = preprocessing["geometry"]["crop"]
    return (1 if preprocessing["gray"] else 3), height, width


def figures_chunk(figures: dict[str, np.ndarray], shape: tuple[int, int, int] | None) -> bytes:
    """Return the script of the chunk `figures`: rows as bytes, pictures channel last, and the spectrum.

    Pictures go from 0 to 1, other rows and directions from minus to plus their largest magnitude (128 is zero).
    """
    arrays, kinds = {}, []
    for name, title in KINDS.items():
        rows = figures.get(name)
        if rows is None or not rows.size:
            continue
        whole = shape is not None and name not in DIRECTIONS
        shares = rows if whole else 0.5 + 0.5 * rows / np.maximum(_magnitude(rows, name), np.finfo(np.float32).tiny)
        values = np.rint(255 * np.clip(shares, 0, 1)).astype(np.uint8)
        if shape is not None and rows.shape[1] == np.prod(shape):
            values = values.reshape(len(rows), *shape).transpose(0, 2, 3, 1)
        arrays[name] = values
        kinds.append({"name": name, "title": title, "rows": len(rows), "signed": not whole})
    if figures.get("spectrum") is not None:
        arrays["spectrum"] = figures["spectrum"].astype(np.float32)
    return pack("figures", arrays, {"kinds": kinds, "shape": list(shape) if shape else None})


def _magnitude(rows: np.ndarray, name: str) -> np.ndarray:
    """Return the scale of rows: one a direction, one for all data."""
    size = np.abs(rows)
    return size.max(axis=1, keepdims=True) if name in DIRECTIONS else size.max(keepdims=True)
