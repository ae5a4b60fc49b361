"""Write docs/config.md: every key of a config, its type, default and meaning, from the settings themselves.

python scripts/config_page.py [--check]      # --check writes nothing and exits with 1 where the page is another
"""

import ast
import inspect
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from saetool.config import RunConfig
from saetool.training.advice import AutoTraining
from saetool.validation import models_in

PAGE = Path(__file__).resolve().parents[1] / "docs" / "config.md"
HEAD = """# Every key of a config

Made by `scripts/config_page.py` from the settings themselves. A config is one YAML file of these sections; any key can
be given on the command line as `section.key=value`, and as a keyword from Python. `saetool --help` has the commands.
"""


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Return the docstring below each field of a settings class, its bases' fields too."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not (isinstance(base, type) and issubclass(base, BaseModel)) or base is BaseModel:
            continue
        body = ast.parse(inspect.cleandoc("\n" + inspect.getsource(base))).body[0].body
        for statement, after in zip(body, [*body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                found[statement.target.id] = " ".join(str(after.value.value).split()) if said else ""
    return found


def type_of(annotation: Any) -> str:
    """Return a type in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_of(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if models_in(annotation):
        kinds = [
            model.model_fields["kind"].annotation for model in models_in(annotation) if "kind" in model.model_fields
        ]
        return "a section" + (f": {', '.join(type_of(kind) for kind in kinds)}" if kinds else "")
    if origin in (list, tuple, dict):
        inner = ", ".join(type_of(one) for one in arguments if one is not Ellipsis)
        return f"{'a mapping' if origin is dict else 'a list'} of {inner}"
    if origin is Union or str(origin) == "<class 'types.UnionType'>":
        return " or ".join(dict.fromkeys(type_of(one) for one in arguments))
    if annotation is Any:
        return "any value"
    return {type(None): "null", str: "text", int: "a whole number", float: "a number", bool: "true or false"}.get(
        annotation, getattr(annotation, "__name__", str(annotation))
    )


def default_of(field: FieldInfo) -> str:
    """Return a default as it would be written; empty where a key is needed."""
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        kind = getattr(value, "kind", None)
        return f"`{{kind: {kind}}}`" if kind else "its own defaults"
    if value is None or isinstance(value, bool):
        return f"`{ {None: 'null', True: 'true', False: 'false'}[value] }`"
    return f"`{list(value) if isinstance(value, list | tuple) else value}`"


def table(model: type[BaseModel]) -> list[str]:
    """Return the rows of a settings class."""
    said = meanings(model)
    rows = ["| key | type | default | |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if name == "kind":
            continue
        kind = type_of(field.annotation).replace("|", "\\|")
        rows.append(f"| `{name}` | {kind} | {default_of(field)} | {said.get(name, '').replace('|', chr(92) + '|')} |")
    return rows if len(rows) > 2 else ["No keys but `kind`."]


def sections(model: type[BaseModel], path: str, depth: int) -> list[str]:
    """Return the headings and tables of a section and of what is in it."""
    kind = model.model_fields.get("kind")
    title = f"{path} (kind: {', '.join(get_args(kind.annotation))})" if kind and get_args(kind.annotation) else path
    title = f"{title} (auto)" if model is AutoTraining else title
    about = " ".join((inspect.cleandoc(model.__doc__ or "")).split())
    parts = [f"{'#' * min(depth, 4)} {title}", about, "\n".join(table(model))]
    for name, field in model.model_fields.items():
        for inner in models_in(field.annotation):
            parts += sections(inner, f"{path}.{name}", depth + 1)
    return parts


def render() -> str:
    """Return the page."""
    said = meanings(RunConfig)
    top = ["| key | type | default | |", "|---|---|---|---|"]
    parts = []
    for name, field in RunConfig.model_fields.items():
        top.append(f"| `{name}` | {type_of(field.annotation)} | {default_of(field)} | {said.get(name, '')} |")
        for model in models_in(field.annotation):
            parts += sections(model, name, 2)
    about = " ".join(inspect.cleandoc(RunConfig.__doc__ or "").split())
    return "\n\n".join([HEAD.rstrip(), about, "\n".join(top), *parts]) + "\n"


if __name__ == "__main__":
    page = render()
    if "--check" in sys.argv:
        raise SystemExit(0 if PAGE.read_text() == page else "docs/config.md is another: run scripts/config_page.py")
    PAGE.write_text(page)
