"""`kind: topk, k: 32` for a sparse autoencoder with that activation: as short in a config as in a call."""

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel

from saetool.autoencoders.sparse_settings import Activation

_ACTIVATIONS = {get_args(m.model_fields["kind"].annotation)[0]: m for m in get_args(get_args(Activation)[0])}
_WITH_K = frozenset(kind for kind, model in _ACTIVATIONS.items() if "k" in model.model_fields)


def spelled_out(given: Any) -> Any:
    """Return an autoencoder's settings with an activation that stands as their kind, and its k, in their places.

    >>> spelled_out({"kind": "topk", "k": 32, "expansion": 4})
    {'kind': 'sparse', 'expansion': 4, 'activation': {'kind': 'topk', 'k': 32}}
    """
    if not isinstance(given, Mapping):
        return given
    settings = {key: value for key, value in given.items() if key != "activation"}
    activation = given.get("activation")
    if isinstance(activation, Mapping | BaseModel):
        activation = dict(activation)
    kind = settings.get("kind", "topk" if "k" in settings else None)
    if isinstance(kind, str) and kind in _ACTIVATIONS:
        kept = activation if isinstance(activation, dict) and activation.get("kind") in (None, kind) else {}
        settings["kind"], activation = "sparse", {"kind": kind, **kept}
    if "k" in settings and isinstance(activation, dict) and activation.get("kind") in _WITH_K:
        activation["k"] = settings.pop("k")
    return settings if activation is None else {**settings, "activation": activation}
