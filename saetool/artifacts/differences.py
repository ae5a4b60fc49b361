"""How what is asked for differs from what stands there, in words: a digest says nothing to a person."""

import re
from typing import Any

_DIGEST = re.compile(r"^xxh3-128:[0-9a-f]+$")


def request_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the request that an artifact with this manifest answers."""
    return {
        "kind": manifest["kind"],
        "config": manifest["config"],
        "inputs": {entry["kind"]: entry["id"] for entry in manifest["inputs"]},
        "listing": manifest["notes"].get("listing"),
        "listed": manifest["notes"].get("listed"),
    }


def differences(there: dict[str, Any], asked: dict[str, Any]) -> str:
    """Return one line for each key in which two requests differ."""
    lines = _inputs(there["inputs"], asked["inputs"], asked["places"])
    if there.get("listing") != asked.get("listing"):
        lines.append(_listing(there.get("listed"), asked.get("listed")))
    old, new = (_flatten({key: request[key] for key in ("kind", "config")}) for request in (there, asked))
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key, "nothing"), new.get(key, "nothing")
        if a != b:
            digests = _DIGEST.match(str(a)) and _DIGEST.match(str(b))
            what = "other content than there" if digests else f"{_named(a)} there, {_named(b)} asked"
            lines.append(f"  {key.removeprefix('config.')}: {what}")
    return "\n".join(lines) or "  (the difference is in a version)"


def _named(value: Any) -> str:
    return "a file" if _DIGEST.match(str(value)) else str(value)


def _inputs(there: dict[str, str], asked: dict[str, str], places: dict[str, str]) -> list[str]:
    lines = []
    for kind in sorted(there.keys() | asked.keys()):
        if kind not in there:
            lines.append(f"  {kind}: none there, {places[kind]} asked")
        elif kind not in asked:
            lines.append(f"  {kind}: some there, none asked")
        elif there[kind] != asked[kind]:
            lines.append(f"  {kind}: made from others than those that are at {places[kind]} now")
    return lines


def _listing(before: str | None, now: str | None) -> str:
    """Return how the files or rows that are read differ: `60 → 61 images` where their number does."""
    if not before or not now:
        return "  what it reads: other rows or files than there"
    (count, what), (new_count, _) = before.split(" ", 1), now.split(" ", 1)
    if count == new_count:
        return f"  {what}: {now} there and asked, of other names or sizes"
    return f"  {what}: {count} → {new_count} {what}"


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {k: v for key, item in value.items() for k, v in _flatten(item, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): value}
