"""From the `images` section of a config to a source."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saetool.artifacts import Artifact
from saetool.errors import RequestError, type_name
from saetool.images.datasets import DATASET_SUFFIXES, data_files
from saetool.images.settings import HUB_PREFIX, ImageSettings, is_named
from saetool.images.source import ImageSource
from saetool.settings import Settings
from saetool.validation import request


class _Request(Settings):
    images: ImageSettings


def open_source(
    settings: ImageSettings | Mapping[str, Any] | str | os.PathLike, root: str | None = None
) -> ImageSource:
    """Open the images that `settings` (or a name or path alone) name; `root` says where they are now, if they moved.

    Raises RequestError where there are none.

    >>> len(saetool.open_source({"source": "digits", "limit": 20}))
    20
    """
    if not isinstance(settings, str | os.PathLike | Mapping | ImageSettings):
        raise RequestError(f"open_source takes no {type_name(settings)}: give a folder, a name, or settings.")
    section = {"source": os.fspath(settings)} if isinstance(settings, str | os.PathLike) else settings
    settings = request(_Request, "open_source", {"images": section}, {}).images
    if "\0" in settings.source:
        raise RequestError(f"images.source: {settings.source!r} holds a zero byte, which no name does")
    try:
        return _open(settings, root)
    except OSError as error:
        raise RequestError(f"images.source: {error.filename or root or settings.source}: {error.strerror}") from None


def _open(settings: ImageSettings, root: str | None) -> ImageSource:
    name = settings.source
    if name == "elpv":
        from saetool.images.elpv import ElpvSource

        return ElpvSource(root, settings.limit)
    if name in ("digits", "mnist"):
        from saetool.images.arrays import digits, mnist

        return (digits if name == "digits" else mnist)(settings.limit)
    if "://" in (address := root or name):
        from saetool.images.remote import RemoteFolderSource

        return RemoteFolderSource(address, settings.limit, settings.max_pixels)
    if name.startswith(HUB_PREFIX):
        from saetool.images.datasets import open_hub

        return open_hub(settings)
    path = Path(root or name).expanduser()
    if _is_dataset(path):
        from saetool.images.datasets import open_local

        return open_local(path, settings)
    if not path.exists():
        raise RequestError(f"images.source: there is no {path} (known names: elpv, digits, mnist, hf/NAME)")
    from saetool.images.folder import FolderSource

    return FolderSource(path, settings.limit, settings.max_pixels)


def open_cached(store: Artifact, root: str | None = None) -> ImageSource:
    """Open the images that a store of activations was made from; `root` says where they are now, when they have moved.

    A folder is looked for where it was; RequestError where there are none, or the store was made from tensors.
    """
    described = store.content["source"]
    if described is None:
        raise RequestError(f"{store.path}: was made from tensors; there are no pictures to show.")
    # A packaged set is found wherever it is installed now.
    noted = None if is_named(described["source"]) else store.notes.get("images_root")
    # They were read once: how large they may be was asked then.
    return open_source(ImageSettings(**{**described, "max_pixels": None}), root or noted)


def _is_dataset(path: Path) -> bool:
    if path.is_file():
        return path.suffix in DATASET_SUFFIXES
    if not path.is_dir():
        return False
    marks = ("dataset_info.json", "dataset_dict.json", "state.json")
    return any((path / mark).is_file() for mark in marks) or bool(data_files(path))
