"""Memory that a step frees is there for the next one without new pages."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from saetool.program import keep_heap
keep_heap()
def step():
    tensors = [torch.ones(7_500_000) for _ in range(4)]
    return sum(float(t[-1]) for t in tensors)
for _ in range(4):  # until nothing new is needed
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's")
def test_freed_tensors_are_kept():
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM]
    pages = int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert pages < 5 * 4 * 30_000_000 / 4096 / 10  # else it is all of them
