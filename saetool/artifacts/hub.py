"""The Hugging Face hub: whether it is within reach, and what lies there as a place on this machine.

One look before its clients try again and again, for a minute, where it is not; what they downloaded before is found
either way. `hf/OWNER/NAME[/FOLDER][@REVISION]` (`hf/spaces/OWNER/NAME` of a Space) is a place like a path.
"""

import functools
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies

from saetool.artifacts.manifest import MANIFEST
from saetool.artifacts.reading import compare_all
from saetool.errors import RequestError, SaetoolError, WorkError, first_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PREFIX = "hf/"
_PLACE = re.compile(r"^hf/(spaces/)?([\w.-]+/[\w.-]+)((?:/[^/@]+)*)(?:@([^@]+))?$")
_PATIENCE = 10.0
"""Seconds for the first contact."""


@functools.cache
def why_unreachable() -> str | None:
    """Return why the hub's address answers nobody here; None where it does, or where a proxy decides."""
    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    if address.scheme in (proxies := getproxies()) or "all" in proxies:
        return None
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout=_PATIENCE).close()
    except OSError as error:
        return f"{address.hostname} cannot be reached: {error.strerror or error}"
    return None


@contextmanager
def reaching() -> Iterator[None]:
    """While the hub's clients work: where it is out of reach they look only at what is on this machine."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or why_unreachable() is None:
        yield
        return
    modules = [constants, *([sys.modules["datasets.config"]] if "datasets.config" in sys.modules else [])]
    for module in modules:
        vars(module)["HF_HUB_OFFLINE"] = True
    try:
        yield
    finally:
        for module in modules:
            vars(module)["HF_HUB_OFFLINE"] = False


@dataclass(frozen=True)
class HubPlace:
    """A repository on the hub, or a folder in it."""

    repo: str
    """OWNER/NAME."""
    folder: str = ""
    revision: str | None = None
    """A branch, tag or commit; None: what the main branch has now."""
    space: bool = False

    @property
    def kind(self) -> str:
        """What the hub calls such a repository."""
        return "space" if self.space else "model"

    @classmethod
    def of(cls, text: str | os.PathLike) -> "HubPlace":
        """Return the place that a text names; raises RequestError where it names none."""
        found = _PLACE.match(str(text))
        if not found:
            raise RequestError(f"{text}: a place on the hub is hf/OWNER/NAME[/FOLDER][@REVISION].")
        return cls(found[2], found[3].strip("/"), found[4], bool(found[1]))


def is_hub(path: object) -> bool:
    """Say whether a path names a place on the hub; a folder of this name here goes by `./hf/…`."""
    return isinstance(path, str) and path.startswith(PREFIX)


def fetch(text: str | os.PathLike, kind: str | None = None) -> Path:
    """Return the folder on this machine that holds a place of the hub, downloaded or found in its cache.

    With `kind`, the artifact of that kind in a repository where no folder is named and there is one. An interrupted
    download goes on with the files that are missing; every artifact is compared with its manifest. Raises
    RequestError where there is no such place, WorkError where the hub cannot be reached and nothing was kept.
    """
    from huggingface_hub import constants, snapshot_download

    place = HubPlace.of(text)
    wanted = {"revision": place.revision, "repo_type": place.kind, "endpoint": constants.ENDPOINT}
    for folder in [place.folder] if place.folder or kind is None else [kind, ""]:
        with _explaining(str(text)), reaching():
            whole = snapshot_download(place.repo, allow_patterns=f"{folder}/*" if folder else None, **wanted)
        found = Path(whole) / folder
        if found.exists():
            _compare(found, str(text))
            return found
    raise RequestError(f"{text}: {place.repo} holds no {place.folder or 'files'}.")


@contextmanager
def writing(text: str) -> "Iterator[HfApi]":
    """While artifacts are uploaded to a place: the hub's client, and its failures in words.

    Raises WorkError at once where the hub is not within reach.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        raise WorkError(f"{text}: the hub is not asked (HF_HUB_OFFLINE), so nothing can be uploaded.")
    if why := why_unreachable():
        raise WorkError(f"{text}: {why}, so nothing was uploaded.")
    with _explaining(text):
        yield HfApi(endpoint=constants.ENDPOINT)


@contextmanager
def _explaining(text: str) -> Iterator[None]:
    """Turn what the hub's client raises into one sentence."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        yield
    except SaetoolError:
        raise
    except LocalEntryNotFoundError as error:
        offline = "the hub is not asked (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else None
        why = offline or why_unreachable() or "the hub did not answer"
        raise WorkError(f"{text}: {why}, and this machine keeps no copy of it.") from error
    except RepositoryNotFoundError as error:
        raise RequestError(f"{text}: is not on the hub, or is private and not yours (`hf auth login`).") from error
    except HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (400, 404):
            raise RequestError(f"{text}: {first_line(error)}") from error
        if status in (401, 403):
            raise RequestError(f"{text}: not allowed ({first_line(error)}). Log in with `hf auth login`.") from error
        raise _interrupted(text, error) from error
    except Exception as error:
        transport = type(error).__module__.startswith("http")  # the client's own client has errors of its own
        if transport or isinstance(error, OSError | ValueError | RuntimeError):
            raise _interrupted(text, error) from error
        raise


def _interrupted(text: str, error: Exception) -> WorkError:
    return WorkError(f"{text}: could not be transferred ({first_line(error)}). Run the command again: it goes on.")


def _compare(folder: Path, text: str) -> None:
    """Raise WorkError where an artifact that was downloaded is not what its manifest says."""
    for manifest in sorted(folder.rglob(MANIFEST)):
        if b'"xxh3-128:' not in manifest.read_bytes():
            continue  # another program's
        try:
            compare_all(manifest.parent)
        except RequestError as error:
            raise WorkError(
                f"{text}: did not arrive as it was sealed ({first_line(error)}). Delete {folder} and fetch it again; "
                "where that does not help, it was pushed damaged."
            ) from None


def revision_of(path: Path) -> str | None:
    """Return the commit whose files a fetched folder holds."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None
