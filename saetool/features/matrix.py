"""Images × latents and patches × latents as sparse tables, from one encoding pass over a store."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from saetool import distributed
from saetool.activations import ActivationStore
from saetool.activations.sites import find_site
from saetool.artifacts import Artifact
from saetool.artifacts.artifact import artifact_of
from saetool.autoencoders.families import load
from saetool.errors import RequestError, shown
from saetool.features.columns import IMAGE_LATENTS, PATCH_LATENTS
from saetool.features.encoding import Pass
from saetool.features.tables import TableWriter, table as arrow_table
from saetool.progress import bar
from saetool.sparse.codes import Codes

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Rows = Literal["images", "patches"]
Value = Literal["max", "sum", "count"]
_GROUP_ROWS = 1 << 17
"""Entries in a row group of the file."""
_TYPES = {"max": np.float32, "sum": np.float64, "count": np.int32}


def table(
    features: Artifact | str | os.PathLike,
    activations: Artifact | str | os.PathLike | None = None,
    out: str | os.PathLike | None = None,
    *,
    rows: Rows = "images",
    value: Value = "max",
    force: bool = False,
) -> "csr_array | Path":
    """Return images × latents, or patches × latents, as a scipy CSR array; or write it to a file and return its path.

    features: an index, whose autoencoder and store are found where they stand; or an autoencoder, with `activations`.
    out: a `.parquet` file takes a row for each pair of which the latent fires: of images its maximum, sum and count of
    tokens, of patches its activation (docs/tables.md); a `.npz` file takes the CSR array (`scipy.sparse.load_npz`).
    value: what the array holds of images. Rows of patches are image · tokens + token, in the store's order.

    Memory of a Parquet file does not grow with the store; an array holds all of its entries. Raises RequestError for
    artifacts that do not fit together, another ending, and a file that is there already, unless `force` replaces it.

    >>> rows = torch.randn(40, 4, 16)                                                     # images, tokens, d
    >>> store = saetool.write_store("runs/rows/activations", rows)
    >>> model = saetool.train(store, kind="topk", k=4, n_latents=32, tokens=512, batch_size=64, out="runs/rows/model")
    >>> saetool.table(model, store).shape, saetool.table(model, store, rows="patches").shape
    ((40, 32), (160, 32))
    """
    if rows not in ("images", "patches") or value not in tuple(_TYPES):
        given = f"{shown(rows)} and {shown(value)}"
        raise RequestError(f"table: rows are images or patches, values max, sum or count; not {given}")
    place = None if out is None else _place(out, force)
    matrix = _Matrix.open(features, activations, rows)
    if place is None:
        return matrix.array(value)
    partial = place.with_name(f"{place.name}.partial")
    if place.suffix == ".parquet":
        matrix.write(partial)
    else:
        from scipy.sparse import save_npz

        with partial.open("wb") as file:
            save_npz(file, matrix.array(value))
    os.replace(partial, place)
    return place


@dataclass(frozen=True)
class _Matrix:
    """A pass over a store whose codes become entries of a table."""

    pass_: Pass
    rows: Rows
    made_from: dict[str, str]
    """Ids of the autoencoder and the store."""

    @classmethod
    def open(cls, features: Any, activations: Any, rows: Rows) -> "_Matrix":
        found = artifact_of(features, None, "table")
        given = None if activations is None else artifact_of(activations, "activations", "table")
        if found.kind == "features":
            store = found.find_input("activations", given and given.path)
            autoencoder = found.find_input("autoencoder")
        elif found.kind == "autoencoder" and given is not None:
            store, autoencoder = given, found
        else:
            raise RequestError(
                f"{found.path}: a table is made from an index (features), or from an autoencoder and activations; this "
                f"is {'an autoencoder alone' if found.kind == 'autoencoder' else found.kind}"
            )
        device = distributed.default_device()
        site = ActivationStore(store).site(find_site(autoencoder, store)["folder"])
        model = load(autoencoder).to(device).eval()
        return cls(Pass(model, site, device), rows, {"autoencoder": autoencoder.id, "activations": store.id})

    @property
    def n_rows(self) -> int:
        return self.pass_.site.n_images * (1 if self.rows == "images" else self.pass_.site.tokens)

    def array(self, value: Value) -> "csr_array":
        """Return the whole as a CSR array; of patches it holds the activations."""
        from scipy.sparse import csr_array

        name = value if self.rows == "images" else "value"
        counts, latents, values = [np.zeros(1, np.int64)], [], []
        for piece in self._pieces():
            counts.append(piece["entries"])
            latents.append(piece["latent"])
            values.append(piece[name].astype(_TYPES[value] if self.rows == "images" else np.float32))
        offsets = np.concatenate(counts).cumsum()
        shape = (self.n_rows, self.pass_.autoencoder.n_latents)
        return csr_array((np.concatenate(values), np.concatenate(latents), offsets), shape=shape)

    def write(self, place: Path) -> None:
        """Write the entries as a Parquet file, in order of rows, then latents."""
        columns = IMAGE_LATENTS if self.rows == "images" else PATCH_LATENTS
        tokens, start = self.pass_.site.tokens, 0
        said = {"rows": self.rows, "n_rows": self.n_rows, "n_latents": self.pass_.autoencoder.n_latents}
        with TableWriter(place, columns, _GROUP_ROWS, {"saetool": json.dumps(said | self.made_from)}) as writer:
            for piece in self._pieces():
                row = np.repeat(np.arange(start, start + len(piece["entries"])), piece["entries"])
                start += len(piece["entries"])
                named = {"image": row} if self.rows == "images" else {"image": row // tokens, "patch": row % tokens}
                writer.write(arrow_table(columns, {**piece, **named}))

    def _pieces(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield the entries of consecutive rows: how many each row has, their latents ascending, and their numbers."""
        chunks = self.pass_.cut(range(self.pass_.site.n_images))
        with bar("table", self.pass_.site.n_images, "images") as advance:
            for chunk, found in zip(chunks, self.pass_.map(_entries, chunks), strict=True):
                offsets, latents, values = (tensor.numpy() for tensor in found)
                advance(len(chunk))
                if self.rows == "patches":
                    yield {"entries": np.diff(offsets), "latent": latents.astype(np.int32), "value": values}
                else:
                    yield _of_images(offsets[:: self.pass_.site.tokens], latents, values)


def _entries(worker: int, codes: Codes, images: Sequence[int]) -> list[Tensor]:
    return [codes.offsets, codes.latents, codes.values.float()]


def _of_images(bounds: np.ndarray, latents: np.ndarray, values: np.ndarray) -> dict[str, np.ndarray]:
    """Put the entries of each image's tokens together; `bounds` [images + 1] is where an image's entries begin."""
    image = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))
    order = np.lexsort((latents, image))  # it keeps tokens in their order
    image, latents, values = image[order], latents[order], values[order]
    first = np.flatnonzero(np.r_[True, (image[1:] != image[:-1]) | (latents[1:] != latents[:-1])][: len(image)])
    entries = np.bincount(image[first], minlength=len(bounds) - 1)
    if not len(first):
        nothing = {name: np.zeros(0, kind) for name, kind in _TYPES.items()}
        return {"entries": entries, "latent": latents.astype(np.int32), **nothing}
    return {
        "entries": entries,
        "latent": latents[first].astype(np.int32),
        "max": np.maximum.reduceat(values, first),
        "sum": np.add.reduceat(values.astype(np.float64), first),
        "count": np.diff(np.r_[first, len(image)]).astype(np.int32),
    }


def _place(out: Any, force: bool) -> Path:
    if not isinstance(out, str | os.PathLike):
        raise RequestError(f"table: a file's name is a path, not {shown(out)}")
    place = Path(out).expanduser()
    if place.suffix not in (".parquet", ".npz"):
        raise RequestError(f"table: {place} is written as .parquet or .npz: end the name so")
    if not place.parent.is_dir():
        raise RequestError(f"table: there is no folder {place.parent}")
    if place.exists() and not force:
        raise RequestError(f"table: {place} is there already; give --force (force=True) to replace it")
    return place
