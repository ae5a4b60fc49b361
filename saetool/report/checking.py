"""Checks a finished site: nothing from elsewhere, nothing inline, every link and chunk there, within its size."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from saetool.artifacts.manifest import MANIFEST
from saetool.errors import RequestError
from saetool.report.chunks import unpack
from saetool.report.site import POLICY
from saetool.report.thumbnails import thumbnail_name

_LINKS = {"a": "href", "link": "href", "script": "src", "img": "src", "iframe": "src", "form": "action"}
_DATA_OF = {"curves": "data/curves.js", "figures": "data/figures.js", "command": "data/command.js"}
"""The chunk that an element's id stands for: its page's scripts fill it from there."""
_OPTIONAL = ("data/latents/", "data/patches/", "thumbs/")
"""What is left out of a site when it would outgrow `report.max_mb`; the rest never is."""
_FORBIDDEN = {
    "an address elsewhere": re.compile(r"""["'(=]\s*(?:[a-z]+:)?//[a-z0-9]""", re.I),
    "fetch": re.compile(r"\bfetch\s*\(|XMLHttpRequest|WebSocket|EventSource|sendBeacon|importScripts"),
    "evaluated text": re.compile(r"\beval\s*\(|new Function|innerHTML|outerHTML|insertAdjacentHTML|document\.write"),
    "an import": re.compile(r"@import|\bimport\s*\("),
}


@dataclass
class _Page(HTMLParser):
    """Collects what a page links to, its policy, its ids, and whatever should not stand in it."""

    links: list[str] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    policy: str | None = None
    problems: list[str] = field(default_factory=list)

    def __post_init__(self):
        super().__init__(convert_charrefs=True)
        self._script = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self.problems += [f"inline handler or style {key!r} on <{tag}>" for key in found if _inline(key)]
        if tag == "style":
            self.problems.append("inline <style>")
        if tag == "script":
            self._script = True
            if "src" not in found:
                self.problems.append("inline <script>")
        if tag == "meta" and found.get("http-equiv", "").lower() == "content-security-policy":
            self.policy = found.get("content")
        if "id" in found:
            self.ids.add(found["id"])
        if tag in _LINKS and found.get(_LINKS[tag]):
            self.links.append(found[_LINKS[tag]])

    def handle_endtag(self, tag: str) -> None:
        self._script = self._script and tag != "script"

    def handle_data(self, data: str) -> None:
        if self._script and data.strip():
            self.problems.append("text inside <script>")


def _inline(attribute: str) -> bool:
    return attribute == "style" or attribute.startswith("on")


def check(site: Path, max_mb: float | None = None) -> list[str]:
    """Return what is wrong with the site in directory `site`, one line a finding; an empty list is a good site.

    `max_mb` bounds the sum of all files in megabytes; without it, the data are held to what the site's own settings
    allow. Raises RequestError when there is no site.
    """
    if not (site / "index.html").is_file():
        raise RequestError(f"{site}: not a report (it has no index.html).")
    problems = [f"{path.relative_to(site)}: {text}" for path, text in _findings(site)]
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) / 1e6
    if max_mb is not None and size > max_mb:
        problems.append(f"the site takes {size:.1f} MB, more than {max_mb:g} MB")
    return problems + ([] if max_mb is not None else list(_outgrown(site)))


def _manifest(site: Path) -> dict[str, Any]:
    """Return the site's manifest; raise RequestError where it is none."""
    try:
        manifest = json.loads((site / MANIFEST).read_bytes())
        numbers = [manifest["config"]["max_mb"], *(file["bytes"] for file in manifest["files"].values())]
        if all(isinstance(number, int | float) for number in numbers):
            return manifest
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise RequestError(f"{site / MANIFEST}: not the manifest of a report; make the report again (`--force`).")


def _outgrown(site: Path) -> Iterator[str]:
    """Yield a finding when pages and thumbnails take more than the site's settings allow."""
    if not (site / MANIFEST).is_file():
        return
    max_mb = _manifest(site)["config"]["max_mb"]
    sizes = {path.relative_to(site).as_posix(): path.stat().st_size for path in site.rglob("*") if path.is_file()}
    size = sum(size for name, size in sizes.items() if name.startswith(_OPTIONAL)) / 1e6
    if size > max_mb:
        yield f"pages and thumbnails take {size:.1f} MB, more than report.max_mb = {max_mb:g}"


def _findings(site: Path) -> Iterator[tuple[Path, str]]:
    yield from _check_sizes(site)
    for path in sorted(site.rglob("*.html")):
        for text in _check_page(site, path):
            yield path, text
    for path in sorted((site / "assets").glob("*")):
        source = path.read_text("utf-8", "replace")
        for name, pattern in _FORBIDDEN.items():
            if found := pattern.search(source):
                yield path, f"{name}: {found[0]!r}"
    if (site / "data").is_dir():
        yield from _check_data(site)


def _check_sizes(site: Path) -> Iterator[tuple[Path, str]]:
    """Compare what was sealed with what is there: a file that was cut is found, whatever it holds."""
    if not (site / MANIFEST).is_file():
        return
    for name, sealed in _manifest(site)["files"].items():
        path = site / name
        if not path.is_file():
            yield path, "is missing"
        elif (size := path.stat().st_size) != sealed["bytes"]:
            yield path, f"has {size:,} bytes where {sealed['bytes']:,} were written"


def _check_page(site: Path, path: Path) -> Iterator[str]:
    page = _Page()
    page.feed(path.read_text("utf-8", "replace"))
    page.close()
    yield from page.problems
    if page.policy != POLICY:
        yield f"content security policy is {page.policy!r}"
    for link in page.links:
        parts = urlsplit(link)
        if link == "data:,":
            continue
        if parts.scheme or parts.netloc:
            yield f"address elsewhere: {link}"
            continue
        target = path.parent / unquote(parts.path) if parts.path else path
        if not target.is_file():
            yield f"broken link: {link}"
        elif target == path and parts.fragment and parts.fragment not in page.ids:
            yield f"no element for #{parts.fragment}"
    for name, chunk in _DATA_OF.items():
        if name in page.ids and not (site / chunk).is_file():
            yield f"shows {chunk}, which is missing"


def _check_data(site: Path) -> Iterator[tuple[Path, str]]:
    """Check that every chunk reads, has its file's name, and that all announced chunks and thumbnails are there."""
    for path in sorted((site / "data").rglob("*.js")):
        try:
            name, _, _ = unpack(path.read_bytes())
        except (ValueError, KeyError, TypeError) as error:
            yield path, f"unreadable chunk: {error}"
            continue
        if path != site / "data" / f"{name}.js":
            yield path, f"holds the chunk {name!r}"
    index = site / "data" / "site.js"
    if index.is_file():
        try:
            missing = [name for name in _announced(index) if not (site / name).is_file()]
        except (ValueError, KeyError, TypeError):
            return  # it is unreadable, as was said above, or of another page
        yield from ((index, f"announces {name}, which is missing") for name in missing)


def _announced(index: Path) -> Iterator[str]:
    """Yield the files that the pages will ask for."""
    _, arrays, values = unpack(index.read_bytes())
    if "blocks" not in values:
        return
    blocks = values["blocks"]
    yield from (f"data/{name}.js" for name in ("table", "first", "labels", "weights", "catalog"))
    yield from (f"data/latents/{block}.js" for block in _blocks(arrays["with_page"], blocks["latents"]))
    yield from (f"data/patches/{block}.js" for block in _blocks(arrays["image_page"], blocks["patches"]))
    yield from (f"data/glimpses/{block}.js" for block in range(-(-values["n_latents"] // blocks["glimpses"])))
    yield from (f"data/images/{block}.js" for block in range(-(-values["n_images"] // blocks["images"])))
    yield from (thumbnail_name(int(image)) for image in _members(arrays["thumbnail"]))


def _members(bits: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.unpackbits(bits, bitorder="little"))


def _blocks(bits: np.ndarray, size: int) -> list[int]:
    return np.unique(_members(bits) // size).tolist()
