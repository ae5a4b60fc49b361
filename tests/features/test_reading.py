"""The few questions one asks of an index, answered from its files."""

import os
import runpy
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from saetool.errors import RequestError
from saetool.features import Features
from saetool.features.columns import LABELED, TABLES, TENSORS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def features(build_index) -> Features:
    """Six images of 2 × 2 patches, three latents: 0 marks class a, 1 fires everywhere, 2 on one patch of image 4."""
    z = torch.zeros(6, 4, 3)
    z[:3, 1, 0] = torch.tensor([1.0, 3.0, 2.0])
    z[:, :, 1] = 0.5
    z[4, 3, 2] = 9
    images = [{"path": f"{i}.png", "kind": "aaabbb"[i], "size": float(i)} for i in range(6)]
    labels = [{"name": "kind", "kind": "category", "classes": ["a", "b"]}, {"name": "size", "kind": "number"}]
    return Features(build_index(z, images=images, labels=labels, grid=(2, 2)))


def test_top_images_come_with_path_patch_and_heat(features):
    top = features.top(0)
    assert top.column("image") == [1, 2, 0]
    assert top.column("path") == ["1.png", "2.png", "0.png"]
    assert top.column("patch") == [1, 1, 1]
    heat = features.heat(top[1])
    assert heat.shape == (2, 2)
    assert heat[0, 1] == pytest.approx(2, abs=3 / 255)
    assert np.count_nonzero(heat) == 1
    assert features.top(0, 1).column("image") == [1]


def test_what_fires_on_an_image_and_where(features):
    for image in (4, "4.png"):
        firing = features.firing(image)
        assert firing.column("latent") == [2, 1]
        assert firing.column("value") == [9, 0.5]
        assert firing.column("patch") == [3, 0]
        assert firing.column("patches") == [1, 4]


def test_latents_of_a_label_where_training_images_say_nothing_or_the_index_is_older(features):
    """Then all images choose."""
    table, new = features.label_statistics, Features(features.artifact)
    place = table.column_names.index("train_auroc")
    unknown = table.set_column(place, "train_auroc", pa.nulls(len(table), pa.float64()))
    added = ["train_auroc", *(f"held_out_{name}" for name in ("auroc", "low", "high")), "q_value", "p_value"]
    for other in (unknown, table.drop_columns(added)):
        new.__dict__["label_statistics"] = other.take(pa.array(np.arange(len(table))[::-1]))
        values = new.for_label("kind", "b").column("auroc")
        assert values == sorted(values, reverse=True)
        assert values[0] == 2 / 3


def test_latents_of_a_label(features):
    assert features.for_label("kind", "a", 1)[0]["latent"] == 0
    assert features.for_label("kind", "a", 1)[0]["auroc"] == 1
    assert features.for_label("kind").column("class")[:2] == ["a", "b"]
    assert {info["name"]: info["classes"] for info in features.content["labels"]}["size"] == ["≤ 2", "> 2"]
    assert features.latent(0)["kind.best_class"] == "a"
    assert features.latent(0)["size.spearman"] < 0
    assert features.latent(0)["kind.spearman"] is None


def test_similar_latents(features):
    assert features.similar(0, "coactivation").column("latent") == [1]
    assert features.similar(0, "coactivation").column("similarity") == [0.5]
    assert len(features.similar(0)) == 2


def test_histogram_counts_the_firing_tokens(features):
    counts, edges = features.histogram(1)
    assert counts.sum() == 24
    place = int(counts.argmax())
    assert edges[place] < 0.5 <= edges[place + 1]


def test_wrong_questions_are_answered_with_the_right_ones(features):
    for ask, words in [
        (lambda: features.top(3), "from 0 to 2"),
        (lambda: features.firing("x.png"), "no image 'x.png'"),
        (lambda: features.firing(6), "from 0 to 5"),
        (lambda: features.for_label("color"), "Labels: kind, size"),
        (lambda: features.for_label("kind", "c"), "Classes: a, b"),
        (lambda: features.similar(0, "taste"), "decoder or by coactivation"),
        (lambda: features.for_label("kind", 7), "no class 7"),
        (lambda: features.examples(0, "best"), "'best' of examples; there are top, interval"),
        (lambda: features.top(0, "x"), "count: 'x'"),
        (lambda: features.firing(0, -1), "count: -1"),
        (lambda: features.similar(0, count=2.5), "count: 2.5"),
        (lambda: features.for_label("kind", count=True), "count: True"),
        (lambda: features.latent(True), "no latent True"),
        (lambda: features.heat({}), "no heat maps"),
        (lambda: features.heat(None), "None is no example"),
        (lambda: features.firing(True), "no image True"),
    ]:
        with pytest.raises(RequestError, match=words):
            ask()


def test_a_slice_of_rows_is_a_list_of_them(features):
    rows = features.top(0)
    assert rows[:2] == list(rows)[:2]
    assert rows[0] == next(iter(rows))


def test_tables_print_and_escape(features):
    assert "1.png" in repr(features.top(0))
    assert "<td>1.png</td>" in features.top(0)._repr_html_()
    assert "heat " not in repr(features.top(0)).splitlines()[0]
    assert "3 latents" in repr(features)


def test_an_index_has_the_declared_columns_and_tensors_and_no_other(features):
    labeled = [column.name.format(label=label) for label in ("kind", "size") for column in LABELED]
    declared = {name: [column.name for column in columns] for name, columns in TABLES.items()}
    declared["latents.parquet"] += labeled
    declared["images.parquet"] += ["kind", "size"]
    import pyarrow.parquet as parquet
    from safetensors import safe_open

    for name, columns in declared.items():
        schema = parquet.read_schema(features.artifact.file(name))
        assert schema.names == columns
        types = {column.name: column.arrow for column in TABLES[name]}
        assert all(schema.field(column).type == kind for column, kind in types.items())
    found = set()
    for name in ("tensors.safetensors", "patches.safetensors"):
        with safe_open(features.artifact.file(name), "np") as file:
            found |= {(name, tensor) for tensor in file.keys()}  # noqa: SIM118
    assert found == {(file, tensor) for file, tensor, *_ in TENSORS}


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (["--latent", "0"], "2.png"),
        (["--label", "kind=a"], "auroc"),
        (["--similar", "0", "--by", "coactivation"], "similarity"),
        (["--image", "4.png"], "patches"),
    ],
)
def test_browsing_from_a_terminal(features, capsys, monkeypatch, question, answer):
    monkeypatch.setattr("sys.argv", ["browse_features.py", str(features.artifact.path), *question])
    runpy.run_path(str(ROOT / "scripts" / "browse_features.py"), run_name="__main__")
    assert answer in capsys.readouterr().out


def test_what_is_open_stays_what_it_was_when_another_takes_its_place(build_index, tmp_path):
    z = torch.zeros(6, 4, 3)
    z[:3, 1, 0] = torch.tensor([1.0, 3.0, 2.0])
    opened = Features(build_index(z, where=tmp_path / "x", grid=(2, 2)))
    replaced = build_index(z.flip(0), where=tmp_path / "y", grid=(2, 2)).path
    shutil.rmtree(tmp_path / "x/features")
    os.rename(replaced, tmp_path / "x/features")
    assert opened.top(0).column("image") == [1, 2, 0]
    assert opened.firing(1).column("latent") == [0]
    assert opened.latents.num_rows == 3
    assert opened.histogram(0)[0].sum() == 3
    assert Features(tmp_path / "x/features").top(0).column("image") == [4, 3, 5]


def test_a_flipped_bit_in_any_table_is_noticed_before_it_is_read(build_index, tmp_path):
    z = torch.rand(6, 4, 3)
    path = build_index(z, where=tmp_path / "x", grid=(2, 2)).path
    questions = {
        "latents.parquet": lambda f: f.latents,
        "images.parquet": lambda f: f.images,
        "examples.parquet": lambda f: f.top(0),
        "patches.safetensors": lambda f: f.firing(0),
        "tensors.safetensors": lambda f: f.similar(0),
    }
    for name, ask in questions.items():
        whole = (path / name).read_bytes()
        (path / name).write_bytes(whole[:60] + bytes([whole[60] ^ 1]) + whole[61:])
        with pytest.raises(RequestError, match=f"damaged: {name}"):
            ask(Features(path))
        (path / name).write_bytes(whole)
        ask(Features(path))
