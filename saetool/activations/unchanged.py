"""Are the images still those that a store was made from? Times say when to look, digests say what is so."""

from typing import Any

from saetool.activations.store import ActivationStore
from saetool.artifacts import Artifact
from saetool.errors import WorkError
from saetool.images import ImageSource
from saetool.progress import bar, say


def times_of(source: ImageSource) -> str | None:
    """Return when the source's files were last written; None where that is not known."""
    ask = getattr(source, "times", None)  # a source of one's own need not know
    return ask() if ask else None


def changed_since(source: ImageSource, store: Artifact) -> str | None:
    """Return a sentence that names the first image whose content is not the cached one; None where all are.

    Files that were not written since are believed; where any was, all are read.
    """
    noted, now = store.notes.get("times"), times_of(source)
    if noted is None or now is None or noted == now:
        return None
    say(f"{store.path}: files of images were written since; comparing their contents")
    rows = ActivationStore(store).images.select(["path", "digest"]).to_pylist()
    return first_changed(source, rows)


def first_changed(source: ImageSource, rows: list[dict[str, Any]]) -> str | None:
    """Return a sentence that names the first of the cached rows {path, digest} whose image is another now."""
    places = {source.path(i): i for i in range(len(source))}
    with bar("comparing", len(rows), "images") as advance:
        for row in rows:
            try:
                same = row["path"] in places and source.digest(places[row["path"]]) == row["digest"]
            except WorkError as error:
                return str(error)
            if not same:
                return f"the image {row['path']!r} is not the one that was cached (its content differs)"
            advance(1)
    return None
