"""What is known of the images that rows made elsewhere come from: their table, their labels, their small pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saetool import distributed
from saetool.artifacts import digest_bytes
from saetool.errors import RequestError, shown, type_name
from saetool.images import ImageSource, open_source
from saetool.images.folder import PathsSource
from saetool.images.items import to_picture
from saetool.images.picture import thumbnail_of
from saetool.images.source import require_text, stored_label
from saetool.progress import bar
from saetool.threads import ordered


@dataclass(frozen=True)
class RowImages:
    """The images of rows: a row of images.parquet each, the label columns, and where a report finds the pictures."""

    table: list[dict[str, Any]]
    labels: list[dict[str, Any]]
    thumbnails: list[bytes] = field(default_factory=list)
    """Of each image, where they are kept in the store."""
    source: ImageSource | None = None
    """What gives the pictures again."""

    def facts(self) -> dict[str, Any]:
        """Return what a store says of the source of its pictures."""
        if self.source is None or self.thumbnails:
            return {"source": None}
        attribution = {"attribution": self.source.attribution} if self.source.attribution else {}
        return {"source": {"source": self.source.name}, **attribution}


@dataclass(frozen=True)
class Pictures:
    """What `write_store` was given of the pictures."""

    images: Any = None
    thumbnails: Sequence[Any] | None = None
    root: Any = None
    keep: bool = False
    """Whether the store keeps thumbnails of pictures that can be read again."""


def describe_rows(rows: Tensor, given: Pictures, labels: Sequence[dict[str, Any]]) -> RowImages:
    """Return what is known of the images of rows; RequestError where what was given does not fit the rows."""
    images, thumbnails = given.images, given.thumbnails
    listed = isinstance(images, Sequence) and not isinstance(images, str)
    described = listed and all(isinstance(i, Mapping) for i in images)
    entries = [dict(entry) for entry in given.images] if described else [{} for _ in rows]
    columns = _require_labels(labels)
    source = _source_of(images, given.root, described)
    if source is not None and not columns:
        columns = [{"name": c.name, "kind": c.kind, "classes": c.classes} for c in source.label_columns]
    count = len(entries) if source is None else len(source)
    if count != len(rows):
        raise RequestError(f"{count} images are described, {len(rows)} are given.")
    if thumbnails is not None and not (hasattr(thumbnails, "__len__") and hasattr(thumbnails, "__getitem__")):
        raise RequestError(f"write_store: thumbnails are a list of pictures, not {type_name(thumbnails)}.")
    if thumbnails is not None and len(thumbnails) != len(rows):
        raise RequestError(f"{len(thumbnails)} thumbnails are given for {len(rows)} images: give one each.")
    shown = given.keep or getattr(source, "in_memory", False) or thumbnails is not None
    small: list[bytes] = []
    if source is not None or shown:
        seen, small = _look(source, thumbnails, len(rows), keep=shown)
        entries = [{**facts, **entry} for facts, entry in zip(seen, entries, strict=True)]
    return RowImages(_table(entries, rows, columns), columns, small, source)


def _source_of(images: Any, root: Any, described: bool) -> ImageSource | None:
    if described or images is None:
        if root is None:
            return None
        paths = [entry.get("path") for entry in images or ()]
        if not paths or not all(isinstance(path, str) for path in paths):
            raise RequestError("write_store: root says where the pictures are; give each image its path below it.")
        return PathsSource([Path(str(path)) for path in paths], root=root)
    if root is not None and isinstance(images, Sequence) and not isinstance(images, str):
        return PathsSource([Path(path) for path in images], root=root)
    return open_source(images)


def _look(
    source: ImageSource | None, thumbnails: Sequence[Any] | None, count: int, keep: bool
) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Return the path, size, digest and labels of every image, as far as a source tells, and its thumbnail if kept."""

    def one(i: int) -> tuple[dict[str, Any], bytes]:
        own = None if thumbnails is None else to_picture(thumbnails[i], f"thumbnail {i}")
        picture = own if source is None else source.read(i)
        assert picture is not None  # one of the two was given
        facts: dict[str, Any] = {"width": picture.width, "height": picture.height}
        if source is not None:
            facts |= {"path": source.path(i), "digest": picture.digest, **source.labels(i)}
        return facts, thumbnail_of((own or picture).image) if keep else b""

    sequential = source is not None and source.sequential
    found = []
    with bar("images", count, "images") as advance:
        for facts in ordered(one, range(count), 1 if sequential else distributed.cores()):
            found.append(facts)
            advance(1)
    return [facts for facts, _ in found], [small for _, small in found] if keep else []


def _table(entries: Sequence[dict[str, Any]], rows: Tensor, labels: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    table = []
    for i, (entry, values) in enumerate(zip(entries, rows, strict=True)):
        row = {"path": f"{i:06d}", "width": None, "height": None, **{label["name"]: None for label in labels}, **entry}
        row.setdefault("digest", digest_bytes(content_of(values)))
        try:
            require_text(row["path"])
            for column in labels:
                name, kind, classes = column["name"], column["kind"], column.get("classes")
                row[name] = stored_label(row[name], name, kind, classes)
        except ValueError as error:
            raise RequestError(f"Image {i}: {error}.") from None
        table.append(row)
    return table


def _require_labels(labels: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the label columns; raise RequestError unless each has a name, a kind, and its classes where it has any."""
    if not isinstance(labels, Sequence) or not all(isinstance(label, Mapping) for label in labels):
        raise RequestError(f"write_store: labels are a list of {{name, kind, classes}}, not {shown(labels)}.")
    for label in labels:
        name, kind, classes = (label.get(key) for key in ("name", "kind", "classes"))
        if not isinstance(name, str) or kind not in ("category", "number"):
            raise RequestError(f"A label is {{name, kind: category or number, classes}}, not {label}.")
        if kind == "category" and not (isinstance(classes, list | tuple) and all(isinstance(c, str) for c in classes)):
            raise RequestError(f"Label {name!r}: give its classes, a list of texts, not {classes!r}.")
    return [dict(label) for label in labels]


def content_of(rows: Tensor) -> memoryview:
    """Return the bytes of rows, without a copy where they lie together."""
    return rows.reshape(-1).view(torch.uint8).numpy().data
