"""The formats, and which of them a source is in."""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from saetool.autoencoders.sparse import SparseAutoencoder
from saetool.errors import RequestError, first_line, shown
from saetool.exchange import dictionary_learning, openai, overcomplete, plain_file, prisma, sae_lens, saev, sparsify
from saetool.exchange.files import read_torch
from saetool.exchange.model import to_model
from saetool.exchange.plain import Plain


class Reader(Protocol):
    """What a format's module answers. It may have `KEYS` too (what can be given beside the file), `BESIDE` (names of
    files beside it that count) and, to be exported to, `write(plain, facts) -> {file name: content}`.
    """

    def recognizes(self, path: Path, /) -> bool:
        """Say whether a file or a folder is in this format; RequestError and OSError mean that it is not."""
        ...

    def read(self, path: Path, given: dict[str, Any], /) -> Plain:
        """Return what it holds; RequestError where the sparse family cannot compute the same."""
        ...


READERS: dict[str, Reader] = {
    "sae_lens": sae_lens,
    "sparsify": sparsify,
    "saev": saev,
    "overcomplete": overcomplete,
    "dictionary_learning": dictionary_learning,
    "prisma": prisma,
    "openai": openai,
    "safetensors": plain_file,
}
WRITERS: dict[str, ModuleType] = {"sae_lens": sae_lens, "sparsify": sparsify, "safetensors": plain_file}
_OF_TORCH = (".pt", ".pth")
_FILES = (*_OF_TORCH, ".safetensors")
_AS_IT_IS = (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError)
"""What a config raises that is anybody's JSON: what it lacks, or has in another type, is its own."""


@dataclass(frozen=True)
class Found:
    """A source: the file or folder that was read, its format, what it holds, and the model of that."""

    path: Path
    format: str
    plain: Plain
    model: SparseAutoencoder


def read(path: Path, format: str | None = None, given: dict[str, Any] | None = None) -> Found:
    """Read an autoencoder in another tool's format; `given` is what the file does not say.

    Raises RequestError where the format is not recognized, or twice, or the file is not what it says.
    """
    given = given or {}
    path, format = recognize(path, format)
    known = getattr(READERS[format], "KEYS", ())
    if unknown := [key for key in given if key not in known]:
        raise RequestError(f"{unknown[0]}=: not asked of {format}; can be given: {', '.join(known) or 'nothing'}.")
    name = str(path)
    try:
        plain: Plain = READERS[format].read(path, given).check(name)
        plain = plain.saying(activation=plain.says_activation())
        return Found(path, format, plain, to_model(plain))
    except _AS_IT_IS as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise RequestError(f"{name}: not {format} as it is written ({reason}).") from None


def recognize(path: Path, format: str | None = None) -> tuple[Path, str]:
    """Return what to read of a source and its format, given or recognized."""
    if not path.exists():
        raise RequestError(f"{path}: no such file or directory.")
    if format is not None and not (isinstance(format, str) and format in READERS):
        raise RequestError(
            f"--format {format if isinstance(format, str) else shown(format)}: none of {', '.join(READERS)}."
        )
    places = [path, *_files_in(path)]
    if format is not None:
        fitting = [place for place in places if _recognizes(READERS[format], place)]
        return (fitting or [path])[0], format
    found = {name: place for place in reversed(places) for name, it in READERS.items() if _recognizes(it, place)}
    if len(found) > 1:
        raise RequestError(f"{path}: could be {' or '.join(found)}: say which with --format.")
    if not found:
        for place in places:
            if place.is_file() and place.suffix in _OF_TORCH:
                read_torch(place, str(place))  # says why it is not opened, if it is not
        raise RequestError(
            f"{path}: in none of the formats {', '.join(READERS)}, or damaged: --format NAME says what is amiss."
        )
    name, place = found.popitem()
    return place, name


def _recognizes(reader: Reader, place: Path) -> bool:
    """Say whether a file or a folder is in a reader's format; what cannot be read is in none."""
    try:
        return reader.recognizes(place)
    except (RequestError, OSError, *_AS_IT_IS):
        return False


def _files_in(path: Path) -> list[Path]:
    """Return the file of a folder that may be an autoencoder by itself, where there is one only."""
    if not path.is_dir():
        return []
    files = [file for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith(".")]
    weights = [file for file in files if file.suffix in _FILES]
    return weights if len(weights) == 1 else []
