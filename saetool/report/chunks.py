"""Chunks: the form in which numbers reach a page.

`file://` forbids `fetch`, so data comes as scripts, loaded on demand. A chunk is one call,

    saetool.define("latents/12", {"arrays": [["value", "float32", 640], …], "values": {…}}, "eNrt…");

with named little-endian arrays, one after the other, deflated (zlib) and in base64, and JSON values beside them.
Arrays stand in the order of their item size, largest first, so that each one is aligned. A chunk is ASCII and holds
no `<`, whatever the data says: it cannot end a script element. The key "__proto__" stands in brackets, as in a
script it would otherwise not be a key.
"""

import base64
import json
import re
import zlib
from typing import Any

import numpy as np

DTYPES = ("float64", "float32", "int32", "uint32", "int16", "uint16", "int8", "uint8")
_PROTO, _PROTO_KEY = '"__proto__":', '["__proto__"]:'
_FORM = re.compile(r'\Asaetool\.define\(("[^\n]*?"), (\{[^\n]*\}), "([A-Za-z0-9+/=]*)"\);\n\Z')


def script_json(value: Any) -> str:
    """Return `value` as JSON that is safe inside a script: ASCII, no `<`, no `>`, no `&`."""
    text = json.dumps(value, ensure_ascii=True, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def pack(name: str, arrays: dict[str, np.ndarray], values: dict[str, Any] | None = None) -> bytes:
    """Return the script of the chunk `name`; arrays are flattened and must have one of `DTYPES`."""
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    for key, array in ordered:
        if array.dtype.name not in DTYPES:
            raise TypeError(f"chunk {name}: array {key} has dtype {array.dtype}")
    body = b"".join(np.ascontiguousarray(a, dtype=a.dtype.newbyteorder("<")).tobytes() for _, a in ordered)
    header = {"arrays": [[key, a.dtype.name, a.size] for key, a in ordered], "values": values or {}}
    encoded = base64.b64encode(zlib.compress(body, 6)).decode()
    literal = script_json(header).replace(_PROTO, _PROTO_KEY)
    return f'saetool.define({script_json(name)}, {literal}, "{encoded}");\n'.encode("ascii")


def unpack(script: bytes) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
    """Return name, flat arrays and values of a chunk; raise ValueError when it is not one."""
    found = _FORM.match(script.decode("ascii"))
    if found is None or b"<" in script:
        raise ValueError("not a chunk")
    header = json.loads(found[2].replace(_PROTO_KEY, _PROTO))
    try:
        body = zlib.decompress(base64.b64decode(found[3], validate=True))
    except zlib.error as error:
        raise ValueError(f"damaged data: {error}") from None
    start, arrays = 0, {}
    for key, dtype, size in header["arrays"]:
        if dtype not in DTYPES:
            raise ValueError(f"array {key} has dtype {dtype}")
        kind = np.dtype(dtype).newbyteorder("<")
        arrays[key] = np.frombuffer(body, kind, size, start)
        start += size * kind.itemsize
    if start != len(body):
        raise ValueError(f"{len(body)} bytes of data where {start} were announced")
    return json.loads(found[1]), arrays, header["values"]


def text(value: Any) -> np.ndarray:
    """Return a JSON value as an array of bytes: deflated with the numbers, where `values` stand as they are."""
    return np.frombuffer(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode(), np.uint8)


def smallest_unsigned(largest: int) -> np.dtype:
    """Return the smallest unsigned type of a chunk that holds `largest`."""
    return np.dtype(np.uint8 if largest < 1 << 8 else np.uint16 if largest < 1 << 16 else np.uint32)


def bitmap(mask: np.ndarray) -> np.ndarray:
    """Return a mask as bytes, the first member in the lowest bit."""
    return np.packbits(np.asarray(mask, bool), bitorder="little")
