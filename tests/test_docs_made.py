"""The pages that are made from the code are what it says now; tables that speak of the same columns agree."""

import importlib.util
import re
from pathlib import Path

import pytest

from saetool.features.columns import LABELED, LATENTS
from saetool.report.columns import OF_LABEL, PLAIN

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", ["config", "tables"])
def test_the_page_is_what_its_script_writes(page):
    file = ROOT / "scripts" / f"{page}_page.py"
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / f"{page}.md").read_text() == module.render(), f"run scripts/{file.name}"


def test_the_page_of_keys_names_keys_of_every_room():
    page = (ROOT / "docs" / "config.md").read_text()
    assert not re.search(r"\bNone\b", page), "what YAML calls null"
    assert all(f"`{key}`" in page for key in ("held_out", "target_l0", "minutes", "thumbnails", "max_mb"))


def test_a_report_shows_columns_of_the_index_and_three_that_it_adds():
    declared = {column.name for column in (*LATENTS, *LABELED)}
    shown = {column.key for column in PLAIN} | {f"{{label}}.{column.key}" for column in OF_LABEL}
    assert shown - declared == {"monosemanticity_low", "{label}.auroc_low", "{label}.base_rate"}
    assert declared - shown == {"latent", "status", "monosemanticity_spread", "top_excess"}
