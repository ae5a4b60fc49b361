"""From the `images` section of a config, or from whatever holds pictures, to a source."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from saetool.artifacts import Artifact
from saetool.errors import RequestError, type_name
from saetool.images.folder import PATHS, FolderSource, LabelTable, PathsSource
from saetool.images.registry import SOURCES, registered_source, unknown_source
from saetool.images.sampling import Subset
from saetool.images.settings import HUB_PREFIX, NAMED, ImageSettings, is_named, is_section
from saetool.images.source import ImageSource
from saetool.settings import Settings
from saetool.validation import request


class _Request(Settings):
    images: ImageSettings


def open_source(images: Any, root: str | None = None, **keywords: Any) -> ImageSource:
    """Open images: what settings, a name or a path say, or what holds them.

    Args:
        images: settings or a mapping of their keys; a name or path, as `images.source`; a list of paths; a torch
            Dataset, map-style or iterable; a Hugging Face Dataset; an array or tensor [images, …]; a list of pictures;
            a source, which is returned as it is.
        root: where a named path's images are now, if they moved.
        keywords: keys of a config's `images` section: `limit=100, labels="labels.csv"`.

    Raises RequestError where there are none, WorkError where they cannot be read.

    >>> len(saetool.open_source("digits", limit=20))
    20
    >>> source = saetool.open_source(np.zeros((3, 8, 8), np.uint8))
    >>> len(source), source.read(0).image.size
    (3, (8, 8))
    """
    if isinstance(images, str | os.PathLike):
        images = {"source": os.fspath(images)}
    if is_section(images):
        asked = request(_Request, "open_source", {"images": images}, keywords).images
        source = _open_named(asked, root)
        source.on_error = asked.on_error
        return source
    settings = request(_Request, "open_source", {"images": {}}, keywords).images
    source = _open_object(images, settings, type(images).__name__.lower())
    if "on_error" in keywords:
        source.on_error = settings.on_error
    return source


def _open_named(settings: ImageSettings, root: str | None) -> ImageSource:
    if "\0" in settings.source:
        raise RequestError(f"images.source: {settings.source!r} holds a zero byte, which no name does")
    try:
        return _open(settings, root)
    except OSError as error:
        raise RequestError(f"images.source: {error.filename or root or settings.source}: {error.strerror}") from None


def _open(settings: ImageSettings, root: str | None) -> ImageSource:
    name, sample = settings.source, settings.sample
    table = _table_of(settings)
    if table is not None and is_named(name):
        raise RequestError(f"images.labels: joins files by their names, which {name} does not have; it has own labels")
    if root is None and SOURCES.find(name):
        source = _open_object(registered_source(name), settings, name)
        source.name = name
        return source
    if name == "elpv":
        from saetool.images.elpv import ElpvSource

        return ElpvSource(root, sample)
    if name in NAMED:
        from saetool.images import arrays

        return {"digits": arrays.digits, "mnist": arrays.mnist}[name](sample)
    if "://" in (address := root or name):
        from saetool.images.remote import RemoteFolderSource

        return RemoteFolderSource(address, sample, settings.max_pixels, table)
    if name.startswith(HUB_PREFIX):
        from saetool.images.datasets import open_hub

        return open_hub(settings)
    return _open_path(settings, Path(root or name).expanduser(), table)


def _open_path(settings: ImageSettings, path: Path, table: LabelTable | None) -> ImageSource:
    from saetool.images.tars import TarSource, tar_files

    if tars := tar_files(str(path)):
        return TarSource(tars, settings.sample, settings.max_pixels, table, settings.label_columns)
    if _is_dataset(path):
        from saetool.images.datasets import open_local

        if table is not None:
            raise RequestError(f"images.labels: joins files by their names, and {path} is a data set of rows")
        return open_local(path, settings)
    if not path.exists():
        raise RequestError(
            f"images.source: there is no {path} (known names: elpv, digits, mnist, hf/NAME, and what a module "
            f"registers by saetool.register_source, once it is imported here: {SOURCES.variable}=MODULE)"
        )
    return FolderSource(path, settings.sample, settings.max_pixels, table)


def _open_object(images: Any, settings: ImageSettings, name: str) -> ImageSource:
    """Open what holds pictures; RequestError says what it is where it holds none."""
    sample, pixels = settings.sample, settings.max_pixels
    if isinstance(images, str | os.PathLike):
        place = os.fspath(images)
        # A folder may be registered by its own name, which would mean itself for ever.
        place = os.path.join(os.curdir, place) if SOURCES.find(place) else place
        return _open_named(settings.model_copy(update={"source": place}), None)
    if hasattr(images, "listing") and hasattr(images, "read"):
        return images if sample.limit is None and sample.first is None else Subset(images, sample)
    if isinstance(images, list | tuple) and images and all(isinstance(item, str | os.PathLike) for item in images):
        return _open_paths([Path(item) for item in images], settings)
    if settings.labels:
        raise RequestError(f"images.labels: joins files by their names, which {name} does not have")
    if type(images).__module__.partition(".")[0] == "datasets":
        from saetool.images.datasets import open_object

        return open_object(images, settings, name)
    if type(images).__name__ == "DataLoader":
        raise RequestError("images: a DataLoader gives batches; give its data set (loader.dataset)")
    if getattr(images, "is_meta", False):
        raise RequestError(
            "images: a tensor on the device meta has a shape and no values; give one that holds pictures"
        )
    from saetool.images.items import ItemsSource
    from saetool.images.stream import IterableSource

    if hasattr(images, "__getitem__") and hasattr(images, "__len__") and not isinstance(images, dict | bytes):
        return ItemsSource(images, name, sample, pixels)
    if isinstance(images, Iterable) and not isinstance(images, dict | bytes):
        return IterableSource(images, name, sample, pixels)
    raise RequestError(
        f"open_source takes no {type_name(images)}: give a folder, a name, settings, a list of paths or pictures, an "
        "array, or a torch or Hugging Face Dataset"
    )


def _table_of(settings: ImageSettings) -> LabelTable | None:
    return LabelTable(Path(settings.labels).expanduser(), settings.label_columns) if settings.labels else None


def _open_paths(paths: list[Path], settings: ImageSettings) -> ImageSource:
    table = _table_of(settings)
    if all(path.suffix == ".tar" for path in paths):
        from saetool.images.tars import TarSource

        return TarSource(paths, settings.sample, settings.max_pixels, table, settings.label_columns)
    return PathsSource(paths, settings.sample, settings.max_pixels, table)


def open_moved(store: Artifact, given: Any) -> ImageSource:
    """Open the images that a store was made from, as `open_cached` does: given in any way that `open_source` takes, as
    the path to which they have moved, or None where they have not."""
    if given is None or isinstance(given, str | os.PathLike):
        return open_cached(store, None if given is None else os.fspath(given))
    return given if hasattr(given, "read") else open_source(given)


def open_cached(store: Artifact, root: str | None = None) -> ImageSource:
    """Open the images that a store of activations was made from; `root` says where they are now, when they have moved.

    A folder is looked for where it was; RequestError says in one sentence what is missing where there are none: the
    store was made from tensors, or from pictures in memory, or its source is registered by a module not imported yet.
    """
    described = store.content["source"]
    if described is None:
        raise RequestError(f"{store.path}: was made from tensors; there are no pictures to show.")
    name, noted = described["source"], store.notes.get("images_root")
    if name == PATHS and (root or noted):
        paths = [str(path) for path in store.read_table("images.parquet")["path"].to_pylist()]
        return PathsSource(paths, max_pixels=None, root=root or noted)
    module = store.notes.get("images_registered")
    if is_named(name) and (module or not SOURCES.find(name)):
        noted = None  # what has a name is found wherever it is now
    elif root is None and noted is None:
        raise RequestError(
            f"{store.path}: {unknown_source(name, module)}"
            if module
            else f"{store.path}: was made from pictures in memory ({name}): give them again, or their folder, or cache "
            "with cache.thumbnails=true"
        )
    # They were read once: how large they may be was asked then, and labels stand in the store.
    settings = {key: value for key, value in described.items() if key != "labels"}
    if (limit := settings.get("limit")) is not None and "seed" not in settings:
        # Older than samples, when a limit took each class's first images: they are among all, and found by their paths.
        settings |= {"limit": None, "first": limit if settings.get("streaming") else None}
    return open_source(ImageSettings(**{**settings, "max_pixels": None}), root or noted)


def _is_dataset(path: Path) -> bool:
    from saetool.images.datasets import DATASET_SUFFIXES, data_files

    if path.is_file():
        return path.suffix in DATASET_SUFFIXES
    if not path.is_dir():
        return False
    marks = ("dataset_info.json", "dataset_dict.json", "state.json")
    return any((path / mark).is_file() for mark in marks) or bool(data_files(path))
