"""Every family of autoencoders: its settings, building one, loading a trained one."""

from pathlib import Path

from pydantic import TypeAdapter
from safetensors.torch import load_file

from saetool.autoencoders.base import Autoencoder
from saetool.autoencoders.sparse import SparseAutoencoder
from saetool.autoencoders.sparse_settings import SparseSettings

# With a second family: Annotated[SparseSettings | ..., Field(discriminator="kind")].
AutoencoderSettings = SparseSettings

FAMILIES: dict[str, type[Autoencoder]] = {"sparse": SparseAutoencoder}


def build(settings: AutoencoderSettings, d_in: int) -> Autoencoder:
    """Return an untrained autoencoder for inputs of width `d_in`."""
    return FAMILIES[settings.kind](settings, d_in)  # type: ignore[call-arg]


def load(path: str | Path) -> Autoencoder:
    """Return the trained autoencoder of a sealed artifact, in evaluation mode: it takes raw activations.

    Raises RequestError where `path` is missing, unfinished or another kind of artifact.
    """
    from saetool.artifacts import Artifact

    artifact = Artifact.open(Path(path), kind="autoencoder")
    settings = TypeAdapter(AutoencoderSettings).validate_python(artifact.content["settings"])
    model = build(settings, artifact.content["d_in"])
    model.load_state_dict(load_file(artifact.file("model.safetensors")))
    return model.eval()
