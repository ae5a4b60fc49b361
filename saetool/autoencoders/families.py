"""Every family of autoencoders, saetool's own and those that users register: settings, building one, loading one."""

import os
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args

import torch
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from pydantic_core import core_schema
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from saetool.autoencoders.answers import require_answers
from saetool.autoencoders.base import Autoencoder, FamilySettings
from saetool.autoencoders.contractive import Contractive, ContractiveSettings
from saetool.autoencoders.denoising import Denoising, DenoisingSettings
from saetool.autoencoders.dense import Dense, DenseSettings
from saetool.autoencoders.linear import Linear, LinearSettings
from saetool.autoencoders.sparse import SparseAutoencoder
from saetool.autoencoders.sparse_settings import Activation, SparseSettings
from saetool.autoencoders.variational import Variational, VariationalSettings
from saetool.errors import RequestError, first_line, shown
from saetool.registry import Registry, run

if TYPE_CHECKING:
    from saetool.artifacts import Artifact


@dataclass(frozen=True)
class Family:
    """A family's settings, and what makes an untrained model of them and the width of its inputs."""

    settings: type[FamilySettings]
    build: Callable[[Any, int], Autoencoder]


OWN = {
    "sparse": Family(SparseSettings, SparseAutoencoder),
    "linear": Family(LinearSettings, Linear),
    "dense": Family(DenseSettings, Dense),
    "denoising": Family(DenoisingSettings, Denoising),
    "contractive": Family(ContractiveSettings, Contractive),
    "variational": Family(VariationalSettings, Variational),
}
_ACTIVATIONS = {get_args(m.model_fields["kind"].annotation)[0]: m for m in get_args(get_args(Activation)[0])}
_WITH_K = frozenset(kind for kind, model in _ACTIVATIONS.items() if "k" in model.model_fields)


def _enter(name: str, loaded: Any) -> None:
    if name not in REGISTERED.known:
        raise RequestError(
            f"the entry point {name} of saetool.families names {shown(loaded)}, which registers no {name}"
        )


REGISTERED = Registry(
    call="register_family",
    noun="a family of autoencoders",
    group="saetool.families",
    variable="SAETOOL_FAMILIES",
    taken=(*OWN, *_ACTIVATIONS, "auto", "trained"),
    enter=_enter,
)


def register_family(name: str, settings: type[FamilySettings], build: Callable[[Any, int], Autoencoder]) -> None:
    """Let `autoencoder: {kind: NAME, …}` mean a family of your own, in every command and call.

    settings: a class derived from `saetool.autoencoders.FamilySettings` whose `kind` is `Literal["NAME"]`.
    build: called with settings and d_in, returns the untrained `saetool.autoencoders.Autoencoder`; its class will do.

    A later process knows the name once it has imported the module that registers it: list the module in the environment
    variable SAETOOL_FAMILIES, or offer it as an entry point of the group `saetool.families`. docs/custom.md has one.

    Raises RequestError for a name that is none or that is taken, and for settings or a builder that cannot be one.

    >>> from typing import Literal
    >>> from saetool.autoencoders.linear import Linear, LinearSettings
    >>> class Mine(LinearSettings):
    ...     kind: Literal["mine"] = "mine"
    >>> saetool.register_family("mine", Mine, Linear)
    >>> rows = torch.randn(100, 16, generator=torch.Generator().manual_seed(0))
    >>> made = saetool.train(rows, kind="mine", n_latents=2, tokens=512, batch_size=64, out="runs/mine/autoencoder")
    >>> saetool.load(made)
    Linear(16 → 2 latents, none)
    """
    REGISTERED.require_name(name)
    if not (isinstance(settings, type) and issubclass(settings, FamilySettings)):
        raise RequestError(
            f"register_family: {name}: settings must be a class derived from saetool.autoencoders.FamilySettings, not "
            f"{shown(settings)}"
        )
    kind = settings.model_fields.get("kind")
    if kind is None or get_args(kind.annotation) != (name,):
        raise RequestError(f'register_family: {name}: its settings need the field kind: Literal["{name}"] = "{name}"')
    if not callable(build):
        raise RequestError(f"register_family: {name}: build must make a model of settings and d_in, not {shown(build)}")
    earlier = REGISTERED.known.get(name)
    # A notebook's cell that runs again makes the same class again.
    if earlier is not None and _home(earlier.settings) != _home(settings):
        raise RequestError(
            f"register_family: {name} is registered already, by {'.'.join(_home(earlier.settings))}: take another name"
        )
    REGISTERED.known[name], REGISTERED.places[name] = Family(settings, build), settings.__module__


def _home(settings: type) -> tuple[str, str]:
    return settings.__module__, settings.__qualname__


def find_family(kind: Any) -> Family | None:
    """Return the family of a name; None where nobody here knows it."""
    if not isinstance(kind, str):
        return None
    return OWN.get(kind) or (REGISTERED.known[kind] if REGISTERED.find(kind) else None)


@dataclass(frozen=True)
class AnyFamily:
    """In an annotation: the settings of any family, or of one of `others`, told apart by `kind`."""

    others: tuple[type[BaseModel], ...] = ()

    def models(self) -> tuple[type[BaseModel], ...]:
        """Return the classes that are possible now."""
        families = (*OWN.values(), *REGISTERED.known.values())
        return (*(family.settings for family in families), *self.others)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self._validate)

    def _validate(self, given: Any) -> Any:
        given = spelled_out(given)
        find_family(given.get("kind") if isinstance(given, Mapping) else None)  # which modules may register only now
        return _one_of(self.models()).validate_python(given)


@lru_cache(maxsize=16)
def _one_of(models: tuple[type[BaseModel], ...]) -> TypeAdapter:
    kinds: Any = Annotated[Union[models], Field(discriminator="kind")]  # noqa: UP007
    return TypeAdapter(kinds)


AutoencoderSettings = Annotated[FamilySettings, AnyFamily()]


def spelled_out(given: Any) -> Any:
    """Return settings with an activation that stands as their kind, and its k, in their places.

    >>> spelled_out({"kind": "topk", "k": 32, "expansion": 4})
    {'kind': 'sparse', 'expansion': 4, 'activation': {'kind': 'topk', 'k': 32}}
    """
    if not isinstance(given, Mapping):
        return given
    settings, activation = dict(given), given.get("activation")
    kind = given.get("kind", "topk" if "k" in given else None)
    shorthand = _is_activation(kind)
    if shorthand or kind == "sparse" or isinstance(activation, Mapping | BaseModel):
        activation = _section(activation)
    if shorthand:
        if isinstance(activation, dict) and activation.setdefault("kind", kind) != kind:
            other = shown(activation["kind"])
            raise ValueError(f"kind {kind} and an activation of kind {other} contradict each other: leave one out")
        settings["kind"], activation = "sparse", {"kind": kind} if activation is None else activation
    ours = settings.get("kind") == "sparse" and "k" in settings  # another family may have a k of its own
    if ours and isinstance(activation, dict) and _is_activation(activation.get("kind"), _WITH_K):
        activation["k"] = settings.pop("k")
    return settings if activation is None else {**settings, "activation": activation}


def with_later(given: dict[str, Any], key: str) -> dict[str, Any]:
    """Return settings whose `key` was given after the others: of two activations, one as their kind, it chooses.

    >>> with_later({"kind": "topk", "k": 32, "activation": {"kind": "relu"}}, "activation")
    {'kind': 'sparse', 'activation': {'kind': 'relu'}}
    """
    kind, activation = given.get("kind"), _section(given.get("activation"))
    if not _is_activation(kind) or not isinstance(activation, dict) or activation.get("kind", kind) == kind:
        return given
    if key == "kind":
        return {name: value for name, value in given.items() if name != "activation"}
    takes_k = _is_activation(activation["kind"], _WITH_K) and "k" not in activation
    return {name: value for name, value in given.items() if name != "k" or takes_k} | {"kind": "sparse"}


def _is_activation(kind: Any, among: Container[str] = _ACTIVATIONS) -> bool:
    return isinstance(kind, str) and kind in among


def _section(activation: Any) -> Any:
    """Return an activation as a dictionary of its own, one given by its name alone too."""
    if isinstance(activation, str):
        return {"kind": activation}
    return dict(activation) if isinstance(activation, Mapping | BaseModel) else activation


def is_kind(word: str) -> bool:
    """Say whether a word is a family, or an activation that stands for its sparse one."""
    return word in _ACTIVATIONS or find_family(word) is not None


def build(settings: FamilySettings, d_in: int) -> Autoencoder:
    """Return an untrained autoencoder for inputs of width `d_in`.

    Raises RequestError where a registered family makes none, or one that does not answer as `Autoencoder` says.
    """
    family = find_family(settings.kind)
    assert family is not None, "settings are checked before anything is built of them"
    if settings.kind in OWN:
        return family.build(settings, d_in)
    what = f"autoencoder.kind {settings.kind}: "
    model = run(lambda: family.build(settings, d_in), f"{what}its build")
    require_answers(model, d_in, settings.width(d_in), what)
    return model


def load(path: "str | os.PathLike | Artifact") -> Autoencoder:
    """Return the trained autoencoder of a sealed artifact, in evaluation mode: it takes raw activations.

    Raises RequestError where `path` is missing, unfinished, damaged or another kind of artifact, or of a family that
    this process does not know.
    """
    from saetool.artifacts import Artifact

    artifact = path if isinstance(path, Artifact) else Artifact.open(path, kind="autoencoder")
    settings = _settings_of(artifact)
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


def _settings_of(artifact: "Artifact") -> FamilySettings:
    """Return the settings that an artifact's model was made of."""
    given = artifact.content["settings"]
    if find_family(given.get("kind")) is None:
        module = artifact.notes.get("family_registered")
        raise RequestError(
            f"{artifact.path}: {REGISTERED.lacking('autoencoder.kind', given.get('kind'), module, 'autoencoder')}"
        )
    try:
        return TypeAdapter(AutoencoderSettings).validate_python(given)
    except ValidationError as error:  # of a family that has changed since
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise RequestError(
            f"{artifact.path}: its settings are not those of {given['kind']} here: {place}: {problem['msg']}"
        ) from None
