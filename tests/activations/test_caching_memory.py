"""Peak memory is that of a few shards, however many images there are."""

import subprocess
import sys

import pytest

JOB = """
import resource, sys
from pathlib import Path

import numpy as np, torch
from saetool.activations import CacheSettings, cache
from saetool.images.picture import picture_of_array
from saetool.vision import BackboneSettings, load_backbone

torch.set_num_threads(1)


class Noise:
    "Pictures that are drawn when they are read: all that can grow is what saetool keeps."

    name, root, attribution, label_columns = "noise", None, None, []

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def path(self, i):
        return f"{i:06d}"

    def size_hint(self, i):
        return 0

    def labels(self, i):
        return {}

    def read(self, i):
        return picture_of_array(np.random.default_rng(i).integers(0, 256, (96, 96, 3), dtype=np.uint8))

    def listing(self):
        return str(self.count)


backbone = load_backbone(BackboneSettings(name="pixels", layers=[1], image_size=96), device="cpu")
cache(backbone, Noise(int(sys.argv[1])), None, sys.argv[2], CacheSettings(batch_size=16, shard_mb=4))
status = Path("/proc/self/status")
if status.exists():  # on Linux ru_maxrss begins with the parent's, which may hide all of it
    (peak,) = [int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM")]
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak)
"""
IMAGE_BYTES = 96 * 96 * 3 * 2
"""In the store, in bfloat16."""


def peak_memory(images: int, out) -> int:
    done = subprocess.run([sys.executable, "-c", JOB, str(images), str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_number_of_images(tmp_path):
    """1,200 images more are 66 MB more in the store, 16 shards of 4 MiB; buffers were full with 1,100 already, and
    what compiles the resizing of so many was loaded."""
    few, many = peak_memory(1100, tmp_path / "few"), peak_memory(2300, tmp_path / "many")
    assert many - few < 0.2 * 1200 * IMAGE_BYTES
