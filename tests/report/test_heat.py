"""Sparse heat maps say the same as dense ones."""

import numpy as np
import pyarrow as pa
import pytest

from saetool.report.heat import dense_bytes, sparse


@pytest.mark.parametrize("tokens", [6, 256, 300])
def test_sparse_is_dense(tokens):
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((7, tokens)) < 0.2, rng.integers(1, 256, (7, tokens)), 0).astype(np.uint8)
    dense[3] = 0
    dense[5] = 255
    heats = sparse(dense)
    again, start = np.zeros_like(dense), 0
    for row, count in enumerate(heats["heat_counts"].tolist()):
        again[row, heats["heat_positions"][start : start + count]] = heats["heat_bytes"][start : start + count]
        start += count
    assert (again == dense).all()
    assert heats["heat_positions"].dtype == (np.uint8 if tokens <= 256 else np.uint16)


def test_column_of_maps_with_offset_and_nulls():
    maps = [bytes(range(i, i + 6)) for i in range(5)]
    whole = pa.chunked_array([pa.array(maps[:2], pa.binary()), pa.array(maps[2:], pa.binary())])
    assert dense_bytes(whole, 6).tolist() == [list(m) for m in maps]
    assert dense_bytes(whole.slice(1, 3), 6).tolist() == [list(m) for m in maps[1:4]]
    assert dense_bytes(pa.chunked_array([pa.array([None, maps[1]], pa.binary())]), 6).tolist() == [
        [0] * 6,
        list(maps[1]),
    ]
