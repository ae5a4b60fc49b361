"""Messages are safe to print, whatever a file is called."""

import pytest

from saetool.errors import RequestError, printable
from saetool.progress import bar, say


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("\x1b[2Jgone.png", r"\x1b[2Jgone.png"),
        ("a\x07\x08\r", r"a\x07\x08\r"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("bytes \udcff", r"bytes \xff"),
        ("half \ud83d", r"half \ud83d"),
        ("Übung – 写真 🙂\n\tnext", "Übung – 写真 🙂\n\tnext"),
    ],
)
def test_characters_that_act_on_a_terminal_are_spelled_out(name, shown, capsys):
    assert printable(name) == shown
    assert str(RequestError(f"{name}: no")) == f"{shown}: no"
    assert printable(shown) == shown
    say(name)
    assert capsys.readouterr().err == f"{shown}\n".expandtabs()
    with bar(name, 1, "images") as advance:
        advance(1)
