"""Curves take what the log holds."""

import json

from saetool.report.curves import MAX_POINTS, read_curves


def _write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_training_and_held_out_lines_of_the_trainer(tmp_path):
    lines = [
        {
            "split": "train",
            "step": 1,
            "tokens": 10,
            "lr": 0.1,
            "rate": 5e4,
            "loss": 3.0,
            "parts": {"l1": 1.0},
            "fvu": 0.5,
        },
        {"split": "held_out", "step": 1, "tokens": 10, "rows": 7, "fvu": 0.6, "l0": 12.0, "dead_share": 0.25},
        {
            "split": "train",
            "step": 2,
            "tokens": 20,
            "loss": None,
            "parts": {"l1": 0.5},
            "fvu": 0.4,
            "metrics": {"l0": 9.0},
        },
    ]
    charts = {chart["title"]: chart for chart in read_curves(_write(tmp_path / "m.jsonl", lines))}
    loss = {one["name"]: (one["x"], one["y"]) for one in charts["Loss"]["series"]}
    assert loss == {"loss": ([10.0], [3.0]), "l1": ([10.0, 20.0], [1.0, 0.5])}
    fvu = {one["name"]: one for one in charts["Fraction of variance unexplained"]["series"]}
    assert fvu["fvu"]["y"] == [0.5, 0.4]
    assert fvu["held-out fvu"]["y"] == [0.6]
    assert fvu["held-out fvu"]["held_out"]
    assert [one["name"] for one in charts["Dead latents"]["series"]] == ["held-out dead share"]
    assert charts["Loss"]["clock"] == "tokens"


def test_long_logs_are_thinned_and_keep_their_end(tmp_path):
    lines = [{"split": "train", "step": i, "loss": float(i)} for i in range(5_001)]
    (chart,) = read_curves(_write(tmp_path / "m.jsonl", lines))
    (series,) = chart["series"]
    assert len(series["x"]) <= MAX_POINTS
    assert (series["x"][-1], series["y"][-1]) == (5_000.0, 5_000.0)
    assert chart["clock"] == "step"


def test_an_empty_log_has_no_charts(tmp_path):
    assert read_curves(_write(tmp_path / "m.jsonl", [])) == []
