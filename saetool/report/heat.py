"""Heat maps kept sparse: most patches of most images are zero."""

import numpy as np
import pyarrow as pa

from saetool.report.chunks import smallest_unsigned


def sparse(dense: np.ndarray) -> dict[str, np.ndarray]:
    """Return the chunk arrays of heat maps [maps, tokens] of bytes: how many of each are not zero, which, and what."""
    maps, positions = np.nonzero(dense)
    counts = np.bincount(maps, minlength=len(dense)).astype(smallest_unsigned(dense.shape[1]))
    return {
        "heat_counts": counts,
        "heat_positions": positions.astype(smallest_unsigned(max(dense.shape[1] - 1, 0))),
        "heat_bytes": dense[maps, positions],
    }


def dense_bytes(column: pa.ChunkedArray, tokens: int) -> np.ndarray:
    """Return a column of heat maps as bytes [rows, tokens]; a null or one of another length is empty."""
    joined = column.combine_chunks()
    if not joined.null_count and _regular(joined, tokens):
        first = np.frombuffer(joined.buffers()[1], np.int32)[joined.offset]
        whole = np.frombuffer(joined.buffers()[2], np.uint8)
        return whole[first : first + len(joined) * tokens].reshape(len(joined), tokens)
    rows = [np.frombuffer(value, np.uint8) if value else np.zeros(0, np.uint8) for value in joined.to_pylist()]
    return np.stack([row if row.size == tokens else np.zeros(tokens, np.uint8) for row in rows])


def _regular(column: pa.Array, tokens: int) -> bool:
    if len(column) == 0 or column.type != pa.binary() or column.buffers()[2] is None:
        return False
    offsets = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
    return bool((np.diff(offsets) == tokens).all())
