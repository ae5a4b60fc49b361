"""Every Triton kernel compiles for the GPUs it is meant for, where there are none, and keeps numbers in registers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "kernel_table.py"
WARPS_AT_LEAST = 16
"""Warps on a multiprocessor (of 64) that the registers of a kernel must leave room for, where entries are gathered."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    pytest.importorskip("triton")
    out = tmp_path_factory.mktemp("kernels") / "table.json"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, SCRIPT, "--json", out], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(out.read_text())


def test_every_kernel_compiles_for_every_architecture(rows):
    from saetool.sparse.backends.cuda import kernels

    written = {name for name, value in vars(kernels).items() if hasattr(value, "arg_names") and name[0] != "_"}
    assert {row["kernel"] for row in rows} >= written - {"tl"}
    assert {row["sm"] for row in rows} == {80, 90, 100}


def test_no_kernel_spills(rows):
    assert [row for row in rows if row["spilled"]] == []


def test_gathered_sums_leave_room_for_many_warps(rows):
    gathers = [row for row in rows if row["kernel"] in ("weighted_sums", "chunk_sums", "residuals", "row_products")]
    assert gathers
    for row in gathers:
        limit = WARPS_AT_LEAST if row["use"] != "outputs" else WARPS_AT_LEAST / 2
        assert 65536 / (row["registers"] * 32) >= limit, row
