"""The overview shows every finished run below a folder."""

import pytest

from saetool.artifacts import Stage, run_stage
from saetool.errors import RequestError
from saetool.report import check, write_overview
from saetool.report.chunks import unpack


def make(place, fvu, l0, share=0.1, **settings):
    content = {
        "settings": {"kind": "sparse", "activation": {"kind": "topk"}, **settings},
        "final": {"fvu": fvu, "l0": l0, "dead_share": 0.01},
        "site": {"label": "layer 10 of 12 (blocks.9)"},
        "d_in": 4,
        "held_out": {"share": share, "seed": 0},
        "n_latents": 8,
        "tokens": 100,
    }
    run_stage(Stage("autoencoder", {"fvu": fvu}, lambda partial: content), place / "autoencoder")


def rows(page):
    return unpack((page.parent / "data/runs.js").read_bytes())[2]["runs"]


def test_runs_and_members_of_sweeps_are_listed_with_their_reports(tmp_path):
    make(tmp_path / "plain", 0.2, 10.0)
    make(tmp_path / "sweep" / "lr=1e-3,k=3 #<b>", 0.1, 20.0)
    report = tmp_path / "sweep" / "lr=1e-3,k=3 #<b>" / "report"
    report.mkdir()
    (report / "index.html").write_text("x")
    page = write_overview(tmp_path)
    assert [(row["name"], row["fvu"]) for row in rows(page)] == [("plain", 0.2), ("sweep/lr=1e-3,k=3 #<b>", 0.1)]
    assert rows(page)[0]["link"] is None
    assert check(page.parent) == []
    assert "&lt;b&gt;" in page.read_text()


def test_runs_that_compare_share_a_letter(tmp_path):
    for name, share in [("a", 0.1), ("b", 0.2), ("c", 0.1)]:
        make(tmp_path / name, 0.2, 10.0, share)
    page = write_overview(tmp_path)
    assert [row["group"] for row in rows(page)] == ["A", "B", "A"]
    assert "Across letters they do not" in page.read_text()


def test_a_sweep_has_its_own_plane(tmp_path):
    make(tmp_path / "many" / "k=3", 0.1, 3.0)
    (tmp_path / "many" / "k=3" / "report").mkdir()
    (tmp_path / "many" / "k=3" / "report" / "index.html").write_text("x")
    numbers = {"fvu_interval": [0.05, 0.2], "fvu": 0.1, "frontier": True}
    points = [
        {"name": "k=3", "kind": "autoencoder", "l0": 3.0, **numbers},
        {"name": "PCA (k=3)", "kind": "baseline", "l0": 4.0, **numbers},
    ]

    def build(partial):
        partial.write_json("sweep.json", {"points": points})
        return {}

    run_stage(Stage("sweep", {}, build), tmp_path / "many" / "sweep")
    page = write_overview(tmp_path)
    (sweep,) = unpack((page.parent / "data/runs.js").read_bytes())[2]["sweeps"]
    assert sweep["name"] == "many"
    assert sweep["points"] == [{**points[0], "link": "../many/k%3D3/report/index.html"}, {**points[1], "link": None}]
    assert "Sweep many" in page.read_text()
    assert check(page.parent) == []


def test_writing_it_again_replaces_it(tmp_path):
    make(tmp_path / "one", 0.2, 10.0)
    write_overview(tmp_path)
    make(tmp_path / "two", 0.3, None)
    assert [row["name"] for row in rows(write_overview(tmp_path))] == ["one", "two"]


def test_a_folder_of_that_name_that_is_something_else_is_kept(tmp_path):
    make(tmp_path / "one", 0.2, 10.0)
    (tmp_path / "overview").mkdir()
    (tmp_path / "overview" / "mine.txt").write_text("x")
    with pytest.raises(RequestError, match="not an overview"):
        write_overview(tmp_path)
    assert (tmp_path / "overview" / "mine.txt").exists()


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(RequestError, match="no finished run"):
        write_overview(tmp_path)


def test_a_damaged_run_is_left_out_and_named(tmp_path, capsys):
    for name in ("whole", "damaged"):
        make(tmp_path / name, 0.2, 10.0)
    (tmp_path / "damaged/autoencoder/manifest.json").write_text("{")
    assert [row["name"] for row in rows(write_overview(tmp_path))] == ["whole"]
    assert "damaged/autoencoder: left out. " in " ".join(capsys.readouterr().err.split())
