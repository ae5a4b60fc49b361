"""The exceptions a user may see. Each message names the thing that is wrong and the way out."""

import re

_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that act on a terminal, or turn the direction of the text around, or that no encoding can write."""


class SaetoolError(Exception):
    """A failure with a message a person can act on; the command line prints it without a traceback."""

    exit_code = 1

    def __init__(self, message: str):
        super().__init__(printable(message))


class RequestError(SaetoolError):
    """What was asked for cannot be done as asked: an unknown key, a missing path, artifacts that do not fit."""

    exit_code = 2


class WorkError(SaetoolError):
    """The request was right and the work failed: a corrupt image, a full disk, a divergence."""

    exit_code = 1


def printable(text: str) -> str:
    """Return a text for a terminal: characters that would do something there, as file names may hold, are spelled."""

    def spell(found: re.Match) -> str:
        code = ord(found[0])  # bytes of a file name that are no UTF-8 come as surrogates from DC80 on
        return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else found[0].encode("unicode_escape").decode()

    return _UNSEEN.sub(spell, text)


def type_name(value: object) -> str:
    """Return the name of a value's type, with the package that it is from: `numpy.ndarray`, `int`."""
    kind = type(value)
    package = kind.__module__.partition(".")[0]
    return kind.__name__ if package == "builtins" else f"{package}.{kind.__name__}"


def shown(value: object) -> str:
    """Return a value as it stands in a message: one short line, whatever it is."""
    if hasattr(value, "shape") or hasattr(value, "parameters") or hasattr(value, "model_fields"):
        return f"a {type_name(value)}"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of anybody's class
        return f"a {type_name(value)}"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


_LONGEST_VALUE = 80
_LONGEST_LINE = 200
"""Characters of another library's message that stand inside one of ours."""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message, short enough to stand inside one of ours, in whole words."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if len(line) <= _LONGEST_LINE:
        return line
    return line[:_LONGEST_LINE].rsplit(" ", 1)[0] + " …"
