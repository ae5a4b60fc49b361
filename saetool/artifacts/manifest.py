"""The manifest: what a sealed directory says about itself, and how its id, recipe and seal are computed.

    {"kind", "schema", "saetool", "id", "recipe", "config", "content", "inputs", "files", "notes", "seal"}

- `config` is the resolved request, `content` the facts found while building; both are part of the id.
- `recipe` is known before work starts (kind, schema, config, input ids, source listing): equal recipe, same work.
- `id` covers kind, schema, config, content, input ids and the digests of all files but logs.
- `notes` (time, host, paths, rates, logs) stand outside the id; `seal` covers everything else in the file.
"""

import errno
import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from saetool.errors import RequestError

SCHEMA = 1
SCHEMAS = {"autoencoder": 2}
"""Of kinds whose files have changed since the first; 2: their tensors are W_enc, b_enc, W_dec, b_dec."""
MANIFEST = "manifest.json"
COMMANDS = {
    "activations": "cache",
    "autoencoder": "train",
    "features": "index",
    "evaluation": "evaluate",
    "report": "report",
}
"""The command, and the call, that makes each kind of artifact."""


def canonical(value: Any) -> bytes:
    """Return `value` as canonical JSON: sorted keys, UTF-8, no spaces, no NaN."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode()


def digest_bytes(*pieces: bytes | memoryview) -> str:
    """Return the tagged xxh3-128 digest of some bytes, or of pieces of them in their order."""
    state = xxhash.xxh3_128()
    for piece in pieces:
        state.update(piece)
    return "xxh3-128:" + state.hexdigest()


def digest_json(value: Any) -> str:
    """Return the digest of a JSON value's canonical form."""
    return digest_bytes(canonical(value))


def digest_file(path: Path) -> str:
    """Return the digest of a file's bytes, read a piece at a time."""
    _refuse_streams(path)
    with path.open("rb") as file:
        file.seek(0)  # a path like /dev/fd/3 may share its place with another reader
        return "xxh3-128:" + hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def manifest_bytes(path: Path) -> bytes:
    _refuse_streams(path / MANIFEST)
    return (path / MANIFEST).read_bytes()


def is_sealed(path: Path) -> bool:
    """Say whether a folder has a manifest, damaged or not, that speaks of a file as ours do."""
    try:
        return b'"xxh3-128:' in manifest_bytes(path)
    except OSError:
        return False


def _refuse_streams(path: Path) -> None:
    """Raise OSError for what never ends or never answers: a pipe, a device."""
    if isinstance(path, Path) and path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def schema_of(kind: str) -> int:
    """Return the schema in which artifacts of a kind are written, and read."""
    return SCHEMAS.get(kind, SCHEMA)


def recipe_of(kind: str, config: dict, input_ids: list[str], listing: str | None) -> str:
    """Return the digest of everything that determines a stage's result and is known before it starts."""
    return digest_json(
        {"kind": kind, "schema": schema_of(kind), "config": config, "inputs": input_ids, "listing": listing}
    )


def id_of(manifest: dict) -> str:
    """Return the id that a manifest's content has."""
    logs = set(manifest["notes"].get("logs", ()))
    return digest_json(
        {
            "kind": manifest["kind"],
            "schema": manifest["schema"],
            "config": manifest["config"],
            "content": manifest["content"],
            "inputs": [entry["id"] for entry in manifest["inputs"]],
            "files": {name: entry["digest"] for name, entry in manifest["files"].items() if name not in logs},
        }
    )


def seal_of(manifest: dict) -> str:
    """Return the digest of a manifest without its seal."""
    return digest_json({key: value for key, value in manifest.items() if key != "seal"})


def render(manifest: dict) -> bytes:
    """Return the only byte form in which a manifest is written."""
    return (json.dumps(manifest, sort_keys=True, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()


def is_safe_name(name: str) -> bool:
    """Say whether a file name of a manifest stays inside its directory."""
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and "\\" not in name and "\0" not in name


class ManifestProblem(Exception):
    """Says in words why a manifest cannot be believed."""


class OtherSchema(ManifestProblem):
    """Says that another version wrote it: nothing tells that it is damaged."""


def parse_manifest(data: bytes) -> dict:
    """Return the manifest whose bytes are `data`; raises ManifestProblem unless it is whole and its digests follow."""
    try:
        manifest = json.loads(data, parse_constant=_refuse_constant)
        if not isinstance(manifest, dict) or "schema" not in manifest:
            raise ManifestProblem("not a saetool manifest")
        kind = str(manifest.get("kind"))
        if manifest["schema"] != schema_of(kind):
            raise OtherSchema(
                f"written in schema {manifest['schema']!r}; this saetool reads schema {schema_of(kind)}. Read it with "
                f"the version that wrote it, or {COMMANDS.get(kind, 'build')} it again (--force)"
            )
        if manifest.get("seal") != seal_of(manifest) or render(manifest) != data:
            raise ManifestProblem("damaged: its seal does not match")
        if not _has_shape(manifest):
            raise ManifestProblem("not a saetool manifest")
        if manifest["id"] != id_of(manifest) or manifest["recipe"] != _recipe(manifest):
            raise ManifestProblem("its id does not follow from its content: it was edited")
    except (ValueError, RecursionError):  # not JSON, not a number, not Unicode, nested without end
        raise ManifestProblem("damaged: not JSON") from None
    return manifest


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _recipe(manifest: dict) -> str:
    inputs = [entry["id"] for entry in manifest["inputs"]]
    return recipe_of(manifest["kind"], manifest["config"], inputs, manifest["notes"].get("listing"))


def _has_shape(manifest: dict) -> bool:
    """Say whether every key that readers ask for is there and of its type."""
    keys = dict.fromkeys(("kind", "saetool", "id", "recipe"), str) | {"inputs": list}
    keys |= dict.fromkeys(("config", "content", "files", "notes"), dict)
    if not all(isinstance(manifest.get(key), kind) for key, kind in keys.items()):
        return False
    files, notes = manifest["files"].values(), manifest["notes"]
    inputs, texts = manifest["inputs"], [notes.get(key, []) for key in ("logs", "input_paths")]
    return (
        all(isinstance(f, dict) and type(f.get("bytes")) is int and isinstance(f.get("digest"), str) for f in files)
        and all(isinstance(i, dict) and all(isinstance(i.get(key), str) for key in ("kind", "id")) for i in inputs)
        and all(isinstance(found, list) and all(isinstance(text, str) for text in found) for found in texts)
    )


def read_manifest(path: Path, kind: str | None = None) -> dict:
    """Return the manifest of the artifact at `path`; raise RequestError where there is none this version can read.

    `kind` is what it should be, for the message.
    """
    file = path / MANIFEST
    try:
        return parse_manifest(manifest_bytes(path))
    except (FileNotFoundError, NotADirectoryError):
        raise RequestError(no_artifact(path, kind)) from None
    except OSError as error:
        raise RequestError(f"{file}: cannot be read ({error.strerror}).") from None
    except ValueError as error:  # a NUL in the path
        raise RequestError(f"{path!s}: not a path ({error}).") from None
    except OtherSchema as problem:
        raise RequestError(f"{file}: {problem}.") from None
    except ManifestProblem as problem:
        raise RequestError(f"{file}: {problem}. {remedy(path)}") from None


def remedy(path: Path) -> str:
    """Return what to do about a damaged artifact."""
    return f"Restore it from a copy, or make {path.name} again with --force; `saetool verify {path}` tells more."


def no_artifact(path: Path, kind: str | None = None) -> str:
    """Return why there is no artifact (of a `kind`) at `path`, as far as what stands beside it tells."""
    if not path.name:
        path = path.absolute()
    if not path.name:
        return f"{path}: not a saetool artifact (it has no {MANIFEST})."
    partial = path.with_name(path.name + ".partial")
    command = COMMANDS.get(kind or path.name)
    again = f"`saetool {command}` finishes it" if command else "the command that began it finishes it"
    if path.name.endswith(".partial"):
        return f"{path}: unfinished work, not an artifact. Run the command that began it again: it resumes."
    if partial.is_dir():
        return f"{path}: begun and not finished; its work so far is in {partial.name}: {again}."
    if not path.exists() and (path.with_name(path.name + ".old") / MANIFEST).is_file():
        return f"{path}: replacing it was interrupted; it waits as {path.name}.old. The same command puts it back."
    if not path.exists():
        return f"{path}: no such artifact." + (f" `saetool {command}` makes it." if command else "")
    inside = [name for name in COMMANDS if (path / name / MANIFEST).is_file()]
    if inside:
        places = ", ".join(str(path / name) for name in ([kind] if kind in inside else inside))
        return f"{path}: a folder of artifacts. Name the one: {places}."
    return f"{path}: not a saetool artifact (it has no {MANIFEST})."
