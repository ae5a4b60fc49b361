"""Heat maps kept sparse: most patches of most images are zero."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from saetool.report.chunks import smallest_unsigned


@dataclass(frozen=True)
class Heats:
    """The nonzero bytes of several heat maps, map after map: counts [maps], positions and bytes [all nonzeros]."""

    counts: np.ndarray
    positions: np.ndarray
    bytes: np.ndarray

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """Return the chunk arrays of these maps."""
        return {
            f"{prefix}_counts": self.counts,
            f"{prefix}_positions": self.positions,
            f"{prefix}_bytes": self.bytes,
        }


def sparse(dense: np.ndarray) -> Heats:
    """Return the nonzeros of heat maps [maps, tokens] of bytes."""
    maps, positions = np.nonzero(dense)
    kind = smallest_unsigned(max(dense.shape[1] - 1, 0))
    counts = np.bincount(maps, minlength=len(dense)).astype(smallest_unsigned(dense.shape[1]))
    return Heats(counts, positions.astype(kind), dense[maps, positions])


def dense_bytes(column: pa.ChunkedArray, tokens: int) -> np.ndarray:
    """Return a column of heat maps as bytes [rows, tokens]; a null or one of another length is empty."""
    joined = column.combine_chunks()
    values = joined.to_pylist() if joined.null_count or not _regular(joined, tokens) else None
    if values is None:
        start = joined.offset * tokens
        whole = np.frombuffer(joined.buffers()[2], np.uint8)
        first = np.frombuffer(joined.buffers()[1], np.int32)[joined.offset] if len(joined) else start
        return whole[first : first + len(joined) * tokens].reshape(len(joined), tokens)
    rows = [np.frombuffer(value, np.uint8) if value else np.zeros(0, np.uint8) for value in values]
    return np.stack([row if row.size == tokens else np.zeros(tokens, np.uint8) for row in rows])


def _regular(column: pa.Array, tokens: int) -> bool:
    if len(column) == 0 or column.type != pa.binary() or column.buffers()[2] is None:
        return False
    offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
    return bool((np.diff(offsets) == tokens).all())
