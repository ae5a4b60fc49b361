"""Writes the parts that every page shares: HTML from templates, the packaged scripts and styles."""

from collections.abc import Callable
from importlib import resources
from typing import Any

import jinja2

POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:"
"""Nothing from elsewhere, nothing inline: text that slipped through unescaped could still not run."""


def environment() -> jinja2.Environment:
    """Return the template environment: everything is escaped, a missing name is an error."""
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _template(name: str) -> str:
    return (resources.files("saetool.report") / "templates" / name).read_text("utf-8")


Write = Callable[[str, bytes], None]
"""Takes a file's name below the site and its bytes."""


def write_page(write: Write, name: str, facts: dict[str, Any], template: str | None = None) -> None:
    page = environment().get_template(template or name).render(policy=POLICY, **facts)
    write(name, page.encode("utf-8"))


def write_assets(write: Write) -> None:
    """Copy the packaged scripts and styles into the site."""
    for asset in sorted((resources.files("saetool.report") / "assets").iterdir(), key=lambda item: item.name):
        if asset.name.endswith((".js", ".css")):
            write(f"assets/{asset.name}", asset.read_bytes())
