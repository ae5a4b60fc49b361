"""Writes the parts that every page shares: HTML from templates, the packaged scripts and styles, attribution."""

from importlib import resources
from typing import Any

import jinja2

from saetool.artifacts import Partial

POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:"
"""Nothing from elsewhere, nothing inline: text that slipped through unescaped could still not run."""

ATTRIBUTIONS = {
    "elpv": (
        "Photographs: the ELPV dataset of solar-cell electroluminescence images (Buerhop-Lutz, Deitsch and others; "
        "Deitsch et al. 2019, 2021), licensed CC BY-NC-SA 4.0, shown here scaled down with activations drawn on top "
        "under the same license."
    ),
    "mnist": "Images: MNIST (LeCun, Cortes, Burges), licensed CC BY-SA 3.0.",
    "digits": "Images: Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, UCI), licensed CC BY 4.0.",
}


def attribution(source: str) -> str:
    """Return who made the images of a source and under which license, empty where that is not known."""
    return ATTRIBUTIONS.get(source, "")


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


def write_page(partial: Partial, name: str, facts: dict[str, Any], template: str | None = None) -> None:
    """Write one HTML page from its template."""
    page = environment().get_template(template or name).render(policy=POLICY, **facts)
    partial.write_bytes(name, page.encode("utf-8"))


def write_assets(partial: Partial) -> None:
    """Copy the packaged scripts and styles into the site."""
    for asset in sorted((resources.files("saetool.report") / "assets").iterdir(), key=lambda item: item.name):
        if asset.name.endswith((".js", ".css")):
            partial.write_bytes(f"assets/{asset.name}", asset.read_bytes())
