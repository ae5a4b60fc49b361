"""docs/python.md: every block of it runs, in its order, and does what the text beside it says."""

import re
from pathlib import Path

import pytest
from PIL import Image

import saetool

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def after(tmp_path_factory):
    """The names that the page has made, and what it printed, once its blocks have run in a folder."""
    place, names, printed = tmp_path_factory.mktemp("docs"), {}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        names["print"] = lambda *things: printed.append(" ".join(map(str, things)))
        for number, block in enumerate(BLOCKS):
            exec(compile(block, f"docs/python.md, block {number + 1}", "exec"), names)
    return place, names, printed


@pytest.mark.slow
def test_the_blocks_run_and_what_they_print_is_what_their_comments_say(after):
    place, names, printed = after
    assert len(BLOCKS) >= 8
    said = re.findall(r"print\(model\)\s+# (.*)", "".join(BLOCKS))
    assert printed[0] == said[0]
    assert names["z"].shape == (2000, 256)
    assert ((names["z"] > 0).sum(1) <= 8).all()
    assert Image.open(place / "sevens.png").width == 5 * 160
    assert (place / "runs/digits/report/index.html").is_file()


@pytest.mark.slow
def test_the_error_at_the_end_is_the_one_that_is_printed(after):
    lines = after[2][-1].splitlines()
    wanted = [line.strip().removeprefix("# ") for line in BLOCKS[-1].splitlines() if line.strip().startswith("# ")]
    assert len(lines) == len(wanted)
    for line, pattern in zip(lines, wanted, strict=True):
        assert line.startswith(pattern.split("(")[0].rstrip("…"))


def test_every_call_that_the_page_names_is_public():
    named = set(re.findall(r"saetool\.([A-Za-z_]+)", PAGE.read_text(encoding="utf-8")))
    assert named <= set(saetool.__all__)
    assert set(saetool.__all__) - named <= {"Artifact", "__version__"}
