"""One YAML file = one run: the rooms' settings put together, overrides, and errors that help.

Checks here are those that span two rooms; each room checks its own section.
"""

import difflib
import itertools
import os
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from saetool.activations import CacheSettings
from saetool.artifacts.verification import KINDS
from saetool.autoencoders.families import AutoencoderSettings
from saetool.errors import RequestError
from saetool.evaluation import EvaluationSettings
from saetool.features import IndexSettings
from saetool.images import ImageSettings
from saetool.report import ReportSettings
from saetool.settings import Settings
from saetool.training import TrainingSettings
from saetool.vision import BackboneSettings

LIVE = "live"
LONGEST_NAME = 240
"""Bytes of a name that every usual file system takes, with `.partial` behind it."""


class Trained(Settings):
    """An autoencoder that is trained already, in place of settings: its path, or a place on the hub."""

    kind: Literal["trained"]
    path: str = Field(min_length=1)


class RunConfig(Settings):
    """A whole run. `activations`: null caches in the run, a path or address shares a store, `live` needs no disk.

    `autoencoder` may be a path too: a trained one, which is indexed and evaluated as it is.
    """

    run: str = Field(min_length=1)
    seed: int = Field(0, ge=0)
    images: ImageSettings
    backbone: BackboneSettings
    activations: str | None = None
    cache: CacheSettings = CacheSettings()
    autoencoder: Annotated[AutoencoderSettings | Trained, Field(discriminator="kind")]
    training: TrainingSettings
    index: IndexSettings = IndexSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    report: ReportSettings = ReportSettings()
    sweep: dict[str, list[Any]] | list[dict[str, Any]] | None = None

    @field_validator("run", "activations")
    @classmethod
    def _is_a_place(cls, place: str | None) -> str | None:
        if place is None or "://" in place:
            return place
        if "\0" in place or any(len(os.fsencode(part)) > LONGEST_NAME for part in place.split("/")):
            raise ValueError(
                f"no folder can have this name: it holds a zero byte, or a part of over {LONGEST_NAME} bytes"
            )
        return place

    @field_validator("autoencoder", mode="before")
    @classmethod
    def _is_a_path(cls, given: Any) -> Any:
        return {"kind": "trained", "path": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _layer_is_cached(self) -> "RunConfig":
        layer = self.training.layer
        wildcard = any(isinstance(given, str) and "*" in given for given in self.backbone.layers)
        if layer is not None and not wildcard and layer not in self.backbone.layers:
            raise ValueError(f"training.layer is {layer!r}, but backbone.layers caches {list(self.backbone.layers)}")
        embedding, elsewhere = self.index.embedding_layer, self.index.embeddings or self.activations
        if embedding is not None and not elsewhere and not wildcard and embedding not in self.backbone.layers:
            raise ValueError(
                f"index.embedding_layer is {embedding!r}, but backbone.layers caches {list(self.backbone.layers)}"
            )
        return self


def load_config(source: str, overrides: list[str] | None = None) -> RunConfig:
    """Read a YAML file, or a packaged config by name, apply `key.sub=value` overrides and check everything.

    Raises RequestError naming the key, what is wrong with it and what would be right.
    """
    path = find_config(source)
    values = _read_yaml(path)
    for override in overrides or []:
        key, separator, text = override.partition("=")
        if not separator or not key.strip():
            raise RequestError(f"{override!r} is not an override; write key.sub=value, for example training.lr=1e-3.")
        set_key(values, key.strip(), _parse(text, f"override {override!r}"))
    return build_config(values, path.name)


def build_config(values: dict[str, Any], name: str) -> RunConfig:
    """Check a config given as nested dictionaries; `name` is used in messages."""
    try:
        config = RunConfig.model_validate(values)
        _refuse_unwritable(config.model_dump(), name, "", set())
        return config
    except ValidationError as error:
        raise RequestError(f"{name}: " + "\n".join(_explain_all(error.errors()))) from None


_UNWRITABLE = re.compile("[\\0\\ud800-\\udfff]")


def _refuse_unwritable(value: Any, name: str, key: str, seen: set[int]) -> None:
    """Raise RequestError for a text that no file system or encoding takes; `seen` are the containers looked into."""
    if isinstance(value, str):
        if _UNWRITABLE.search(value):
            raise RequestError(f"{name}: {key}: {value[:80]!r} holds a character that cannot be written.")
    elif isinstance(value, dict | list | tuple) and id(value) not in seen:
        seen.add(id(value))
        inner = value.items() if isinstance(value, dict) else [("", entry) for entry in value]
        for part, entry in inner:
            _refuse_unwritable(str(part), name, key or "a key", seen)
            _refuse_unwritable(entry, name, f"{key}.{part}".strip("."), seen)


def sweep_members(config: RunConfig) -> list[tuple[str, RunConfig]]:
    """Return (directory name, config) of every member of a sweep; one member named "" where there is no sweep.

    A mapping of key to values is taken as a product; a list holds each member's overrides, `name` among them.
    """
    if not config.sweep:
        return [("", config)]
    if isinstance(config.sweep, dict):
        keys = list(config.sweep)
        empty = next((key for key in keys if not config.sweep[key]), None)
        if empty is not None:
            raise RequestError(f"sweep: {empty} has no values; give at least one, or leave it out.")
        choices: list[dict[str, Any]] = [
            dict(zip(keys, c, strict=True)) for c in itertools.product(*config.sweep.values())
        ]
    else:
        choices = config.sweep
    members = [_member(config, choice) for choice in choices]
    names = [name for name, _ in members]
    if len(set(names)) < len(names):
        raise RequestError(
            f"sweep: two members have the same name ({', '.join(sorted(names))}); give each its own `name`."
        )
    return members


def _member(config: RunConfig, choice: dict[str, Any]) -> tuple[str, RunConfig]:
    values = config.model_dump(exclude={"sweep"}, exclude_unset=True)
    overrides = {key: value for key, value in choice.items() if key != "name"}
    for key, value in overrides.items():
        if not key.startswith(("autoencoder", "training", "seed")):
            raise RequestError(
                f"sweep: {key}: a sweep's members share images and activations; it varies the model only."
            )
        set_key(values, key, value)
    name = str(
        choice.get("name") or ",".join(f"{key.removeprefix('autoencoder.')}={v}" for key, v in overrides.items())
    )
    folder = re.sub(r"[^\w.=,+-]+", "_", name)
    if folder in KINDS or folder.startswith(".") or folder.endswith((".partial", ".old", ".lock")):
        raise RequestError(f"sweep: a member cannot be named {name!r}: its directory has a meaning of its own.")
    return folder, build_config(values, f"sweep member {name}")


def set_key(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested dictionaries, making those on the way."""
    *folders, last = key.split(".")
    here = values
    for folder in folders:
        if not isinstance(here.get(folder), dict):
            here[folder] = {}
        here = here[folder]
    here[last] = value


def find_config(source: str) -> Path:
    """Return the path of a config: a file, or the name of a packaged one."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    packaged = packaged_configs()
    if source in packaged:
        return packaged[source]
    if path.suffix in (".yaml", ".yml") or path.parent != Path("."):
        raise RequestError(f"{source}: no such config file.")
    close = difflib.get_close_matches(source, packaged, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise RequestError(f"{source}: neither a file nor a packaged config.{hint} Packaged: {', '.join(packaged)}.")


def packaged_configs() -> dict[str, Path]:
    """Return the configs that come with saetool, by name: in the wheel beside this module, else in the checkout."""
    here = Path(__file__).parent
    for folder in (here / "configs", here.parent / "configs"):
        found = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
        if found:
            return found
    return {}


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars (1e-3 is a number, `no` a word), and a key given twice is an error."""


def _float_and_bool_of_yaml_1_2() -> None:
    resolvers = {
        first: [
            (tag, regexp) for tag, regexp in entries if tag not in ("tag:yaml.org,2002:float", "tag:yaml.org,2002:bool")
        ]
        for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _Loader.yaml_implicit_resolvers = resolvers
    number = re.compile(
        r"^[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    )
    _Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))
    _Loader.add_implicit_resolver(
        "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
    )


def _mapping_without_repeats(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict:
    seen = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(None, None, f"{key!r} cannot be a key", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


_float_and_bool_of_yaml_1_2()
_Loader.add_constructor(
    yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG,
    lambda loader, node: _mapping_without_repeats(loader, node, deep=True),  # pyright: ignore[reportArgumentType]
)


def _parse(text: str, name: str) -> Any:
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _size(node, {}) > MOST_VALUES:
                raise RequestError(f"{name}: holds more than {MOST_VALUES:,} values, aliases written out: no config.")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise RequestError(f"{name}: not valid YAML: {str(error).replace(chr(10), ' ')}") from None
    except (RecursionError, ValueError) as error:  # nested too deep, or a number beyond Python's own limit
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise RequestError(f"{name}: not valid YAML: {reason}") from None


MOST_VALUES = 100_000
"""In a config, aliases written out: a few lines of them can stand for more than any memory holds."""


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node stands for, aliases written out; one that holds itself stands for too many."""
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1
        parts = node.value if isinstance(node, yaml.SequenceNode | yaml.MappingNode) else []
        children = [child for part in parts for child in (part if isinstance(part, tuple) else (part,))]
        known[id(node)] = 1 + sum(_size(child, known) for child in children)
    return known[id(node)]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot be read: {error}") from None
    values = _parse(text, str(path))
    if not isinstance(values, dict):
        raise RequestError(
            f"{path}: a config is a mapping of keys such as run, images, backbone; found {type(values).__name__}."
        )
    return values


_OTHER_NAMES = {"epochs": "tokens", "steps": "tokens", "learning_rate": "lr", "dataset": "source"}
"""What other programs call a key: nothing that letters alone would tell."""


_OF_A_KEY = ("extra_forbidden", "missing", "union_tag_invalid", "union_tag_not_found")
"""Errors about a key, not about a value that could have several types."""


def _explain_all(errors: list[Any]) -> list[str]:
    """Return one line a key: where several types would do, each says something about the same value."""
    by_key: dict[str, list[Any]] = {}
    for entry in errors:
        by_key.setdefault(_key_of(entry), []).append(entry)
    lines = []
    for key, entries in by_key.items():
        if len(entries) == 1 or key == "":
            lines += [_explain(entry) for entry in entries]
            continue
        wanted = [entry["msg"].removeprefix("Value error, ").removeprefix("Input should be ") for entry in entries]
        given = next((entry.get("input") for entry in entries), None)
        lines.append(f"{key}: should be {' or '.join(dict.fromkeys(wanted))} (given: {given!r})")
    return list(dict.fromkeys(lines))


def _key_of(entry: Any) -> str:
    """Return the key that an error is about: its location up to where types of one value begin."""
    location: tuple = entry["loc"]
    if entry["type"] in _OF_A_KEY:
        return ".".join(map(str, location))
    models: list[type[BaseModel]] = [RunConfig]
    key: list[str] = []
    for part in location:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        if fields:
            models = [m for f in fields for m in _models_in(f.annotation)]
            key.append(str(part))
        elif isinstance(part, int):
            key.append(str(part))
        elif not any(_tag_of(m) == part or m.__name__ == part for m in models):
            break
        else:
            models = [m for m in models if _tag_of(m) == part or m.__name__ == part]
    return ".".join(key)


def _explain(entry: Any) -> str:
    """Put one pydantic error into a sentence that names the key and the way out."""
    location = [part for part in entry["loc"] if not _is_union_tag(part)]
    key = ".".join(map(str, location)) if entry["type"] in _OF_A_KEY else _key_of(entry)
    if entry["type"] == "extra_forbidden":
        valid = _keys_at(entry["loc"][:-1])
        given = str(entry["loc"][-1])
        known = [name for name in (_OTHER_NAMES.get(given),) if name in valid]
        close = known or difflib.get_close_matches(given, valid, n=1, cutoff=0.6)
        parent = "".join(f"{part}." for part in location[:-1])
        hint = f" Did you mean {parent}{close[0]}?" if close else ""
        return f"{key}: unknown key.{hint} Valid here: {', '.join(valid)}."
    if entry["type"] == "missing":
        return f"{key}: missing; it has no default."
    if entry["type"] in ("union_tag_invalid", "union_tag_not_found"):
        context = entry.get("ctx", {})
        given = context.get("tag")
        expected = context.get("expected_tags", "")
        return (
            f"{key}.kind: {'missing' if given is None else f'{given!r} is unknown'}; one of {expected or 'the kinds'}."
        )
    message = entry["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    given = entry.get("input")
    shown = "" if isinstance(given, dict | BaseModel) else f" (given: {given!r})"
    return f"{key}: {message}{shown}" if key else message


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the settings classes that an annotation mentions, unions looked through."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _keys_at(location: tuple) -> list[str]:
    """Return the valid keys of the section that a pydantic location names; union tags choose among its classes."""
    models: list[type[BaseModel]] = [RunConfig]
    for part in location:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        if fields:
            models = [m for f in fields for m in _models_in(f.annotation)]
        else:
            models = [m for m in models if _tag_of(m) == part or m.__name__ == part] or models
    return sorted({name for model in models for name in model.model_fields})


def _tag_of(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    values = get_args(field.annotation) if field else ()
    return values[0] if values else None


def _is_union_tag(part: Any) -> bool:
    return isinstance(part, str) and part in _all_tags()


def _all_tags() -> set[str]:
    """Return every union tag and class name that pydantic may put into a location."""
    found: set[str] = set()
    todo: list[type[BaseModel]] = [RunConfig]
    seen: set[type[BaseModel]] = set()
    while todo:
        model = todo.pop()
        if model in seen:
            continue
        seen.add(model)
        children = [m for f in model.model_fields.values() for m in _models_in(f.annotation)]
        for child in children:
            found |= {child.__name__, *([tag] if (tag := _tag_of(child)) else [])}
        todo += children
    return found - {name for model in seen for name in model.model_fields}
