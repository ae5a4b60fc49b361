"""docs/guarantees.md names a test for every promise, and each of them exists."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TEXT = (TESTS.parent / "docs" / "guarantees.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", TEXT)))


def test_every_promise_has_a_test():
    rows = [line.split("|") for line in TEXT.splitlines() if line.startswith("| ") and "promise | test" not in line]
    assert len(rows) > 20
    assert all(".py" in row[-2] for row in rows)


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_a_named_test_exists(file, name):
    source = (TESTS / file).read_text("utf-8")
    assert f"def {name}(" in source if name else "def test_" in source
