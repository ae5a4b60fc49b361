"""The base of every section of a config."""

from types import NoneType, UnionType
from typing import Annotated, Any, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, model_validator


class Settings(BaseModel):
    """Unknown keys are errors; values do not change afterwards. A value is a list of one where only lists will do."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields
        lists = {key for key in values if key in fields and _takes_lists_only(fields[key].annotation)}
        return {key: [value] if key in lists and _is_one(value) else value for key, value in values.items()}

    @model_validator(mode="after")
    def _kind_is_always_given(self) -> Self:
        """Count a `kind` among what was given, default or not: without it nobody knows whose keys the others are."""
        self.model_fields_set.update({"kind"} & type(self).model_fields.keys())
        return self


def _is_one(value: Any) -> bool:
    """Say whether a value is one entry, and not a list that was written without its brackets."""
    return isinstance(value, int | float | str) and not isinstance(value, bool) and "," not in str(value)


def _takes_lists_only(annotation: Any) -> bool:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _takes_lists_only(arguments[0])
    if origin in (Union, UnionType):
        return all(kind is NoneType or _takes_lists_only(kind) for kind in arguments)
    return origin is list or (origin is tuple and arguments[-1:] == (...,))
