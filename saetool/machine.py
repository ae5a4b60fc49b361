"""What this machine is to saetool: versions, devices, which backend serves each. To attach to a report of a fault."""

import platform

import torch

from saetool import distributed
from saetool.sparse.backends import default_precision, describe
from saetool.version import version_of

PACKAGES = ("saetool", "torch", "triton", "numba", "timm", "transformers", "datasets", "safetensors", "pyarrow")


def describe_machine() -> str:
    """Return a few readable lines."""
    devices = [torch.device("cpu")]
    if distributed.default_device().type != "cpu":
        devices.append(distributed.default_device())
    lines = [
        f"python       {platform.python_version()} on {platform.platform()}",
        *(f"{name:<12} {version_of(name) or 'not installed'}" for name in PACKAGES),
    ]
    for device in devices:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
        codes = f"codes: auto is {default_precision(device)}"
        lines.append(f"{device.type:<12} {name}; {describe(device)}; {codes}")
    return "\n".join(lines)
