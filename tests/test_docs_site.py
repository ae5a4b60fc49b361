"""The documentation builds strictly, without a network: no broken link, no undefined name; its quickstart runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="needs mkdocs-material (pip install 'saetool[docs]')")
    pytest.importorskip("mkdocstrings", reason="needs mkdocstrings (pip install 'saetool[docs]')")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    api = (tmp_path / "api/index.html").read_text()
    for name in ("cache", "train", "index", "evaluate", "report", "Features", "intervene", "import_autoencoder"):
        assert f".{name}" in api
    pages = "".join(page.read_text() for page in tmp_path.rglob("*.html"))
    assert not re.search(r'<(script|link|img)[^>]+(src|href)="https?://(?!saetool)', pages)


def test_every_page_of_the_documentation_is_in_its_navigation():
    listed = re.findall(r": ([a-z_]+\.md)", (ROOT / "mkdocs.yml").read_text())
    assert sorted(listed) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


def test_readme_fits_on_a_page_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_quickstart_runs(tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/index.md").read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "docs/index.md", "exec"), {})
    assert "held_out_auroc" in capsys.readouterr().out
