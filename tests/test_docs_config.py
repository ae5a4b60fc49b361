"""The page of config keys is the settings', and every key has a meaning."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def page_maker():
    spec = importlib.util.spec_from_file_location("config_page", ROOT / "scripts" / "config_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_keys_is_the_settings():
    made = page_maker().render()
    assert (ROOT / "docs" / "config.md").read_text() == made, "run scripts/config_page.py"
    for key in ("`held_out`", "`target_l0`", "`minutes`", "`thumbnails`", "`max_mb`"):
        assert key in made
