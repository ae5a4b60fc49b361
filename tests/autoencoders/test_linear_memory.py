"""The closed form reads a store of any size: it holds a block of rows and one covariance."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from saetool.activations import CacheSettings, write_store

JOB = """
import json, sys, threading, time
from pathlib import Path

import torch
from saetool.artifacts import Artifact
from saetool.autoencoders.linear import LinearSettings
from saetool.training import TrainingSettings, train

torch.set_num_threads(1)


def own():
    "Memory of this process that is not a mapped file's."
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024


def watch():
    while True:
        seen.append(own())
        time.sleep(0.005)


def fit(name):
    settings = TrainingSettings(tokens=2048, batch_size=1024, held_out=0.1)
    train(Artifact.open(out / f"store-{name}"), LinearSettings(n_latents=4), settings, out / name)


out = Path(sys.argv[1])
fit("small")  # loads what is loaded once, and fills what is kept
seen = [own()]
threading.Thread(target=watch, daemon=True).start()
fit("large")
print(json.dumps({"grown": max(seen) - seen[0], "samples": len(seen)}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own account of memory")
def test_a_large_store_takes_little_memory(tmp_path):
    generator = torch.Generator().manual_seed(0)
    scales = torch.linspace(3, 0.1, 128)
    tokens = torch.randn(300, 1024, 128, generator=generator) * scales  # 157 MB
    settings = CacheSettings(dtype="float32", shard_mb=2, batch_size=2)
    for images, name in ((60, "small"), (300, "large")):
        write_store(tmp_path / f"store-{name}", tokens[:images], settings=settings)
    # glibc would keep freed blocks for later, up to tens of megabytes of them; these go back at once.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", JOB, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    memory = json.loads(done.stdout)
    assert memory["samples"] > 20
    assert memory["grown"] < 0.1 * tokens.numel() * 4
    spectrum = load_file(tmp_path / "large" / "model.safetensors")["spectrum"]
    np.testing.assert_allclose(spectrum, scales.square(), rtol=0.05)
