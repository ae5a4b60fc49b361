"""Values become checked settings, or one message that names the key, what is wrong with it and what would be right.

A config's YAML, a dictionary and the keyword arguments of a call all come through `check`, so that they say the same.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from saetool.errors import RequestError, shown
from saetool.other_names import OTHER_NAMES

M = TypeVar("M", bound=BaseModel)
_MOST_LINES = 8
"""Wrong keys that are named: a long list can be wrong in every place."""
_MOST_PLACES = 3
"""Where a key of elsewhere is said to belong."""
_UNWRITABLE = re.compile("[\\0\\ud800-\\udfff]")
_OF_A_KEY = ("extra_forbidden", "missing", "union_tag_invalid", "union_tag_not_found")
"""Errors about a key, not about a value that could have several types."""
_NO_SECTION = ("model_type", "model_attributes_type")


def check(model: type[M], values: Mapping[str, Any], name: str) -> M:
    """Return `values` (nested dictionaries, or settings in their place) as a checked `model`.

    Raises RequestError with a line a wrong key; `name` says whose values they are.
    """
    try:
        made = model.model_validate(dict(values))
        _refuse_unwritable(made.model_dump(), name, "", set())
    except ValidationError as error:
        raise RequestError(f"{name}: " + "\n".join(_Explainer(model).lines(error.errors()))) from None
    return made


def request(
    model: type[M],
    call: str,
    sections: Mapping[str, Any],
    keywords: Mapping[str, Any],
    others: Mapping[str, Any] | None = None,
) -> M:
    """Return what a Python call asks for, as a `model` whose sections were given whole, by single keys, or both.

    A section is settings, a mapping or None; a keyword goes to the first section that has a key of its name; `others`
    are keys of the model itself. Raises RequestError as `check` does: the message that a config would get.
    """
    values = {name: _as_mapping(given) for name, given in sections.items()} | dict(others or {})
    for key, value in keywords.items():
        keys = {name: _keys_of(model, name) for name in sections}
        section = next((name for name in keys if key in keys[name]), None)
        if section is None and key not in (*model.model_fields, *OTHER_NAMES):
            # `check` refuses it, and says what would be right where it seems to belong.
            near = difflib.get_close_matches(key, sorted(set().union(*keys.values())), n=1)
            section = next((name for name in keys if len(keys) == 1 or (near and near[0] in keys[name])), None)
        if section is None:
            values[key] = value
        elif isinstance(values[section], dict):
            values[section][key] = value
    return check(model, values, call)


def _as_mapping(given: Any) -> Any:
    if isinstance(given, BaseModel):
        return {name: getattr(given, name) for name in given.model_fields_set}
    return dict(given) if isinstance(given, Mapping) else {} if given is None else given


def _keys_of(model: type[BaseModel], section: str) -> set[str]:
    keys = {key for part in models_in(model.model_fields[section].annotation) for key in part.model_fields}
    return keys | ({"k"} if section == "autoencoder" else set())


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


class _Explainer:
    """Puts pydantic's errors about a `root` model into sentences."""

    def __init__(self, root: type[BaseModel]):
        self.root = root
        self.tags, self.places = _survey(root)

    def lines(self, errors: list[Any]) -> list[str]:
        """Return one line a key: where several types would do, each says something about the same value."""
        # Unknown keys first: what is missing is often what they were meant for.
        errors = sorted(errors, key=lambda entry: entry["type"] != "extra_forbidden")
        by_key: dict[str, list[Any]] = {}
        for entry in errors:
            by_key.setdefault(self.key_of(entry), []).append(entry)
        lines = []
        for key, entries in by_key.items():
            if len(entries) == 1 or key == "":
                lines += [self.line(entry) for entry in entries]
                continue
            wanted = [_message(entry).removeprefix("Input should be ") for entry in entries]
            given = next((entry.get("input") for entry in entries), None)
            lines.append(f"{key}: should be {' or '.join(dict.fromkeys(wanted))} (given: {shown(given)})")
        lines = list(dict.fromkeys(lines))
        more = [f"… and {len(lines) - _MOST_LINES:,} more"] if len(lines) > _MOST_LINES else []
        return lines[:_MOST_LINES] + more

    def line(self, entry: Any) -> str:
        """Put one error into a sentence that names the key and the way out."""
        location = [part for part in entry["loc"] if part not in self.tags]
        kind, key = entry["type"], self.key_of(entry)
        if kind in _OF_A_KEY:
            key = ".".join(map(str, location))
        if kind == "extra_forbidden":
            return f"{key}: unknown key.{self.way_out(entry['loc'], location)}"
        if kind == "missing":
            return f"{key}: missing; it has no default."
        if kind in ("union_tag_invalid", "union_tag_not_found"):
            context = entry.get("ctx", {})
            tag, kinds = context.get("tag"), self.kinds_at(entry["loc"])
            if key == "autoencoder":
                kinds += [kind for kind in self.kinds_at((*entry["loc"], "sparse", "activation")) if kind not in kinds]
            close = difflib.get_close_matches(str(tag).lower().replace("-", "_"), kinds, n=1)
            given = "missing" if tag is None else f"{tag!r} is unknown"
            hint = f" Did you mean {close[0]}?" if close and tag is not None else ""
            own = ", or what a module registers (SAETOOL_FAMILIES=MODULE)" if key == "autoencoder" else ""
            return f"{key}.kind: {given}.{hint} One of {', '.join(kinds)}{own}."
        given = entry.get("input")
        hint = "" if isinstance(given, dict | BaseModel) else f" (given: {shown(given)})"
        return f"{key}: {_message(entry)}{hint}" if key else _message(entry)

    def way_out(self, place: tuple, location: list[Any]) -> str:
        """Return what to write in place of an unknown key: another tool's word, a name of elsewhere, a near one."""
        given = str(location[-1])
        word = given.lower().replace("-", "_")
        parent = "".join(f"{part}." for part in location[:-1])
        valid = self.keys_at(place[:-1])
        close = [parent + name for name in difflib.get_close_matches(given, valid, n=1, cutoff=0.6)]
        places, other = self.places.get(word, {}), OTHER_NAMES.get(word)
        if other is not None and self.knows(other.key):
            # In a section of another kind, a near key of its own is likelier to be meant.
            if other.key.startswith(parent) or not other.key:
                return f" {other.sentence()}"
            hint = f" Did you mean {close[0]}?" if close else f" {other.sentence()}"
        elif kinds := places.get(parent + word):
            hint = f" It belongs to kind {', '.join(kinds)}."
        else:
            close = list(places)[:_MOST_PLACES] or close
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
        return f"{hint} Valid here: {', '.join(valid)}."

    def knows(self, key: str) -> bool:
        """Say whether the first part of a dotted key is a section here."""
        return not key or key.split(".")[0] in self.root.model_fields

    def key_of(self, entry: Any) -> str:
        """Return the key that an error is about: its location up to where types of one value begin."""
        location: tuple = entry["loc"]
        if entry["type"] in _OF_A_KEY:
            return ".".join(map(str, location))
        models: list[type[BaseModel]] = [self.root]
        key: list[str] = []
        for part in location:
            fields = [model.model_fields[part] for model in models if part in model.model_fields]
            if fields:
                models = [m for f in fields for m in models_in(f.annotation)]
                key.append(str(part))
            elif isinstance(part, int):
                key.append(str(part))
            elif not any(part in (_tag_of(m), m.__name__) for m in models):
                break
            else:
                models = [m for m in models if part in (_tag_of(m), m.__name__)]
        return ".".join(key)

    def keys_at(self, location: tuple) -> list[str]:
        """Return the valid keys of the section that a location names; union tags choose among its classes."""
        return sorted({name for model in self.models_at(location) for name in model.model_fields})

    def kinds_at(self, location: tuple) -> list[str]:
        """Return the kinds that the section at a location may be of."""
        return [tag for model in self.models_at(location) if (tag := _tag_of(model))]

    def models_at(self, location: tuple) -> list[type[BaseModel]]:
        models: list[type[BaseModel]] = [self.root]
        for part in location:
            fields = [model.model_fields[part] for model in models if part in model.model_fields]
            if fields:
                models = [m for f in fields for m in models_in(f.annotation)]
            else:
                models = [m for m in models if part in (_tag_of(m), m.__name__)] or models
        return models


def _message(entry: Any) -> str:
    if entry["type"] in _NO_SECTION:
        return "Input should be a section, keys with their values"
    if entry["type"] in ("list_type", "tuple_type"):
        return f"{entry['msg']}, as in [1, 2]"
    return entry["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the settings classes that an annotation mentions, unions looked through."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    arguments = get_args(annotation)
    if opened := next((one for one in arguments if hasattr(one, "models")), None):  # a union that grows: `AnyFamily`
        return list(opened.models())
    return [model for argument in arguments for model in models_in(argument)]


def _tag_of(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    values = get_args(field.annotation) if field else ()
    return values[0] if values else None


def _survey(root: type[BaseModel]) -> tuple[set[str], dict[str, dict[str, list[str]]]]:
    """Return every union tag and class name that pydantic may put into a location, and where each name is a key, of
    which kinds."""
    tags: set[str] = set()
    places: dict[str, dict[str, list[str]]] = {}
    names: set[str] = set()

    def visit(model: type[BaseModel], prefix: str) -> None:
        for name, field in model.model_fields.items():
            names.add(name)
            kinds = places.setdefault(name, {}).setdefault(f"{prefix}{name}", [])
            kinds += [tag] if (tag := _tag_of(model)) and tag not in kinds else []
            for child in models_in(field.annotation):
                tags.update({child.__name__, *([tag] if (tag := _tag_of(child)) else [])})
                visit(child, f"{prefix}{name}.")

    visit(root, "")
    return tags - names, places
