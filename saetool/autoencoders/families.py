"""Every family of autoencoders: its settings, building one, loading a trained one."""

import os
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from saetool.autoencoders.base import Autoencoder
from saetool.autoencoders.contractive import Contractive, ContractiveSettings
from saetool.autoencoders.denoising import Denoising, DenoisingSettings
from saetool.autoencoders.dense import Dense, DenseSettings
from saetool.autoencoders.linear import Linear, LinearSettings
from saetool.autoencoders.sparse import SparseAutoencoder
from saetool.autoencoders.sparse_settings import SparseSettings
from saetool.autoencoders.variational import Variational, VariationalSettings
from saetool.errors import RequestError, first_line

if TYPE_CHECKING:
    from saetool.artifacts import Artifact

AutoencoderSettings = Annotated[
    SparseSettings | LinearSettings | DenseSettings | DenoisingSettings | ContractiveSettings | VariationalSettings,
    Field(discriminator="kind"),
]

FAMILIES: dict[str, type[Autoencoder]] = {
    "sparse": SparseAutoencoder,
    "linear": Linear,
    "dense": Dense,
    "denoising": Denoising,
    "contractive": Contractive,
    "variational": Variational,
}


def build(settings: AutoencoderSettings, d_in: int) -> Autoencoder:
    """Return an untrained autoencoder for inputs of width `d_in`."""
    return FAMILIES[settings.kind](settings, d_in)  # type: ignore[call-arg]


def load(path: "str | os.PathLike | Artifact") -> Autoencoder:
    """Return the trained autoencoder of a sealed artifact, in evaluation mode: it takes raw activations.

    Raises RequestError where `path` is missing, unfinished, damaged or another kind of artifact.
    """
    from saetool.artifacts import Artifact

    artifact = path if isinstance(path, Artifact) else Artifact.open(path, kind="autoencoder")
    settings = TypeAdapter(AutoencoderSettings).validate_python(artifact.content["settings"])
    with torch.random.fork_rng(devices=[]):  # what a model draws while it is built is overwritten
        model = build(settings, artifact.content["d_in"])
    file = artifact.path / "model.safetensors"
    try:
        state = load_tensors(artifact.read_bytes("model.safetensors"))
        model.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:  # other bytes, other names or shapes
        raise RequestError(f"{file}: damaged ({first_line(error)}). `saetool verify` tells more.") from None
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise RequestError(f"{file}: damaged: {name} is not finite everywhere. `saetool verify` tells more.")
    model.site = artifact.content.get("site")
    return model.eval()
