"""Is the Hugging Face hub within reach? One look before its clients try again and again, for a minute, where it is not.

What they downloaded before is found either way.
"""

import functools
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies

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
