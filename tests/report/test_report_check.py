"""The check finds every way in which a site can be broken."""

import shutil

import pytest

from saetool.errors import RequestError
from saetool.report import check

PAGE = "index.html"


@pytest.fixture
def copy(site, tmp_path):
    return shutil.copytree(site.path, tmp_path / "copy")


def edit(path, old, new):
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")


@pytest.mark.parametrize(
    ("name", "old", "new", "finding"),
    [
        (PAGE, "<main", '<script src="https://cdn.example/x.js"></script><main', "address elsewhere"),
        (PAGE, "<main", '<img src="//example.org/x.png"><main', "address elsewhere"),
        (PAGE, "<main", "<script>alert(1)</script><main", "inline <script>"),
        (PAGE, "<main", '<p onclick="x()">a</p><main', "inline handler"),
        (PAGE, "<main", '<p style="color:red">a</p><main', "inline handler or style"),
        (PAGE, "<main", "<style>p{}</style><main", "inline <style>"),
        (PAGE, "<main", '<a href="gone.html">x</a><main', "broken link: gone.html"),
        (PAGE, "script-src &#39;self&#39;", "script-src *", "content security policy"),
        ("assets/core.js", '"use strict";', 'fetch("x");', "fetch"),
        ("assets/core.js", '"use strict";', "eval('x');", "evaluated text"),
        ("assets/site.css", ":root", '@import "x.css"; :root', "an import"),
        ("assets/site.css", ":root", "p { background: url(http://x.example/a) } :root", "address elsewhere"),
        ("data/table.js", "saetool.define", "alert(1);saetool.define", "unreadable chunk"),
        ("data/latents/0.js", '"latents/0"', '"latents/1"', "holds the chunk"),
    ],
)
def test_what_is_wrong_is_found(copy, name, old, new, finding):
    edit(copy / name, old, new)
    assert any(finding in problem and problem.startswith(name) for problem in check(copy)), check(copy)


@pytest.mark.parametrize(
    "name", ["latents/1", "glimpses/0", "images/0", "patches/5", "table", "first", "labels", "catalog", "weights"]
)
def test_a_missing_part_is_found(copy, name):
    (copy / "data" / f"{name}.js").unlink()
    assert any(f"data/{name}.js" in problem for problem in check(copy))


def test_a_missing_thumbnail_is_found(copy):
    (copy / "thumbs/0/3.webp").unlink()
    assert any("thumbs/0/3.webp" in problem for problem in check(copy))


def test_a_page_without_its_curves_or_figures_is_found(copy):
    (copy / "data/curves.js").unlink()
    edit(copy / PAGE, '<section id="training"', '<div id="figures"></div><section id="training"')
    assert {f"{PAGE}: shows data/{name}.js, which is missing" for name in ("curves", "figures")} <= set(check(copy))


def test_the_bound_of_the_site_itself_is_kept(copy):
    edit(copy / "manifest.json", '"max_mb": 500.0', '"max_mb": 0.01')
    assert any("more than report.max_mb = 0.01" in problem for problem in check(copy)), check(copy)


NAMES = ["index.html", "assets/core.js", "data/site.js", "data/table.js", "data/latents/0.js", "thumbs/0/3.webp"]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_was_cut_is_found(copy, name):
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[: len(data) // 2])
    assert any(problem.startswith(f"{name}: has ") for problem in check(copy)), check(copy)


@pytest.mark.parametrize("name", ["data/site.js", "data/table.js", "data/latents/0.js"])
def test_damaged_data_are_a_finding(copy, name):
    data = (copy / name).read_bytes()
    place = data.rindex(b'"') - 40
    other = b"A" if data[place : place + 1] != b"A" else b"B"
    (copy / name).write_bytes(data[:place] + other + data[place + 1 :])
    assert any(problem.startswith(f"{name}: unreadable chunk") for problem in check(copy)), check(copy)


def test_bytes_that_are_no_text_are_a_finding(copy):
    for name in ("index.html", "assets/core.js"):
        (copy / name).write_bytes(b"\xff\xfe" * 100)
    assert {problem.split(":")[0] for problem in check(copy)} >= {"index.html", "assets/core.js"}


@pytest.mark.parametrize("text", ["", "[]", '{"config": {}}', "\x00"])
def test_a_damaged_manifest_is_said(copy, text):
    (copy / "manifest.json").write_text(text)
    with pytest.raises(RequestError, match=r"manifest\.json: not the manifest of a report"):
        check(copy)


def test_size_is_bounded(copy):
    assert any("more than 0.01 MB" in problem for problem in check(copy, max_mb=0.01))


def test_what_is_no_site_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"index\.html"):
        check(tmp_path)
