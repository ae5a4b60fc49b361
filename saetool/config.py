"""One YAML file = one run: the rooms' settings put together, overrides, and errors that help.

Checks here are those that span two rooms; each room checks its own section.
"""

import difflib
import itertools
import os
import re
from collections.abc import Hashable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from saetool.activations import CacheSettings
from saetool.artifacts.files import write_atomic
from saetool.artifacts.verification import KINDS
from saetool.autoencoders.base import Training
from saetool.autoencoders.families import AnyFamily, AutoencoderSettings, is_kind, with_later
from saetool.autoencoders.sparse_dead import require_possible
from saetool.autoencoders.sparse_settings import SparseSettings
from saetool.errors import RequestError
from saetool.evaluation import EvaluationSettings
from saetool.features import IndexSettings
from saetool.images import ImageSettings
from saetool.other_names import OTHER_NAMES
from saetool.report import ReportSettings
from saetool.settings import Settings
from saetool.training.advice import AutoAutoencoder, TrainingOrAuto, written_out
from saetool.training.settings import TrainingSettings
from saetool.validation import check
from saetool.vision import BackboneSettings

LIVE = "live"
KEPT = "config.yaml"
"""The config in a run's folder."""
LONGEST_NAME = 240
"""Bytes of a name that every usual file system takes, with `.partial` behind it."""


class Trained(Settings):
    """An autoencoder that is trained already, in place of settings: its path, or a place on the hub."""

    kind: Literal["trained"] = "trained"
    path: str = Field(min_length=1)


class RunConfig(Settings):
    """A whole run. `activations`: null caches in the run, a path or address shares a store, `live` needs no disk.

    `autoencoder` may be a path too: a trained one, which is indexed and evaluated as it is. It and `training` may be
    `auto` (or `training: {minutes: 20}`): settings that follow from the store and the time (docs/settings.md).
    """

    run: str = Field(min_length=1)
    seed: int = Field(0, ge=0)
    images: ImageSettings
    backbone: BackboneSettings
    activations: str | None = None
    cache: CacheSettings = CacheSettings()
    autoencoder: Annotated[AutoencoderSettings | Trained | AutoAutoencoder, AnyFamily((Trained, AutoAutoencoder))]
    training: TrainingOrAuto
    index: IndexSettings = IndexSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    report: ReportSettings = ReportSettings()
    sweep: dict[str, list[Any]] | list[dict[str, Any]] | None = None
    """Several models on the same rows: keys with values, every combination a member, or each member's keys."""

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
        given = written_out("autoencoder", given)
        if not isinstance(given, str):
            return given
        return {"kind": given} if is_kind(given) else {"kind": "trained", "path": given}

    @field_validator("training", mode="before")
    @classmethod
    def _may_be_auto(cls, given: Any) -> Any:
        return written_out("training", given)

    @field_validator("sweep", mode="before")
    @classmethod
    def _one_value_is_a_list_of_one(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {key: values if isinstance(values, list | tuple) else [values] for key, values in given.items()}

    @model_validator(mode="after")
    def _cure_can_act(self) -> "RunConfig":
        training = self.training
        if isinstance(self.autoencoder, SparseSettings) and isinstance(training, TrainingSettings):
            require_possible(self.autoencoder.dead, Training(training.steps, training.steps * training.batch_size))
        return self

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


def load_config(source: str | os.PathLike, overrides: list[str] | None = None) -> RunConfig:
    """Read a YAML file, a packaged config by name or the config that a run's folder keeps; apply overrides; check.

    Overrides are `key.sub=value`. A run's folder is where it is now, whatever its config says. Raises RequestError
    naming the key, what is wrong with it and what would be right.
    """
    path = find_config(os.fspath(source))
    values = _read_yaml(path)
    if path.name == KEPT and path.parent == Path(source).expanduser():
        values["run"] = os.fspath(source)
    for override in overrides or []:
        key, separator, text = override.partition("=")
        if key.startswith("-"):
            word = key.strip("- ").replace("-", "_")
            hint = OTHER_NAMES[word].sentence() if word in OTHER_NAMES else "For example training.lr=1e-3."
            raise RequestError(f"{key}: no option of this command; settings are given as key=value. {hint}")
        if not separator or not key.strip():
            raise RequestError(f"{override!r} is not an override; write key.sub=value, for example training.lr=1e-3.")
        set_key(values, key.strip(), _parse(text, f"override {override!r}"))
    return build_config(values, path.name)


def keep_config(config: RunConfig, folder: Path, keys: frozenset[str] | None = None) -> None:
    """Write a run's config, with its overrides, into its folder: its stages then need no other argument.

    Where one is kept already, only `keys` of it change: the others say what the other stages were made from.
    """
    values = config.model_dump(mode="json")
    if keys is not None and (folder / KEPT).is_file():
        with suppress(RequestError):  # one that was damaged by hand is written anew
            kept = load_config(folder / KEPT).model_dump(mode="json")
            for key in {"run", *keys}:
                section, _, inner = key.partition(".")
                set_key(kept, key, values[section][inner] if inner else values[section])
            values = build_config(kept, KEPT).model_dump(mode="json")
    text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
    head = "# What this run was asked for, defaults and overrides included. Paths are as they were given.\n"
    path, data = folder / KEPT, (head + text).encode()
    for left in folder.glob(f".{KEPT}.*"):  # by a start that was killed while it wrote
        if not _runs(left.suffix[1:]):
            left.unlink(missing_ok=True)
    if not path.is_file() or path.read_bytes() != data:
        write_atomic(path, [data], folder / f".{KEPT}.{os.getpid()}")


def _runs(process: str) -> bool:
    """Say whether a process of this number runs here."""
    try:
        os.kill(int(process), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        pass
    return True


def build_config(values: dict[str, Any], name: str) -> RunConfig:
    """Check a config given as nested dictionaries; `name` is used in messages."""
    return check(RunConfig, values, name)


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
    """Set a dotted key in nested dictionaries, making those on the way; of two activations, the later one stays."""
    *folders, last = key.split(".")
    here = values
    for folder in folders:
        if not isinstance(here.get(folder), dict):
            whole = written_out(folder, here.get(folder))
            here[folder] = whole if isinstance(whole, dict) else {}
        here = here[folder]
    here[last] = value
    if folders[:1] == ["autoencoder"]:
        values["autoencoder"] = with_later(values["autoencoder"], folders[1] if folders[1:] else last)


def find_config(source: str) -> Path:
    """Return the path of a config: a file, or the name of a packaged one."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    packaged = packaged_configs()
    if source in packaged:
        return packaged[source]
    if path.is_dir():
        if (path / KEPT).is_file():
            return path / KEPT
        raise RequestError(f"{source}: a folder without a {KEPT}, so no run that was begun: name the config itself.")
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


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back as it was."""


_float_and_bool_of_yaml_1_2()
_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers
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
