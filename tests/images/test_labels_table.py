"""Labels of a folder from a CSV or Parquet file that names the images."""

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from saetool.errors import RequestError
from saetool.images import ImageSettings, open_source

NAMES = ["a/1.png", "a/2.png", "b/3.png", "b/deep/4.png"]


@pytest.fixture
def images(tmp_path):
    for number, name in enumerate(NAMES):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / "images" / name)
    return tmp_path / "images"


def labeled(images, text, suffix=".csv", **fields):
    table = images.parent / f"labels{suffix}"
    table.write_text(text) if isinstance(text, str) else parquet.write_table(pa.table(text), table)
    return open_source(ImageSettings(source=str(images), labels=str(table), **fields))


def all_labels(source):
    return [source.labels(i) for i in range(len(source))]


@pytest.mark.parametrize(
    "names", [NAMES, ["1.png", "2.png", "3.png", "4.png"], ["a/1", "a/2", "b/3", "b/deep/4"], ["1", "2", "3", "4"]]
)
def test_rows_name_images_by_path_or_name_with_or_without_ending(images, names):
    rows = "".join(f"{age},{name},{kind}\n" for age, name, kind in zip([31.5, 40, "", 7], names, "xyxy", strict=True))
    source = labeled(images, "age,file,kind\n" + rows)
    assert [(c.name, c.kind, c.classes) for c in source.label_columns] == [
        ("class", "category", ["a", "b"]),
        ("age", "number", None),
        ("kind", "category", ["x", "y"]),
    ]
    assert all_labels(source) == [
        {"class": "a", "age": 31.5, "kind": "x"},
        {"class": "a", "age": 40.0, "kind": "y"},
        {"class": "b", "age": None, "kind": "x"},
        {"class": "b", "age": 7.0, "kind": "y"},
    ]


@pytest.mark.parametrize("column", ["id", "Image_ID", "file"])
def test_names_that_look_like_numbers_keep_their_zeros(tmp_path, column):
    for name in ("0007.png", "07.png", "7.png"):
        Image.new("L", (2, 2)).save(tmp_path / name)
    (tmp_path / "table.csv").write_text(f"{column},side\n7,c\n0007,a\n07,b\n")
    source = open_source(str(tmp_path), labels=str(tmp_path / "table.csv"))
    assert [source.labels(i)["side"] for i in range(3)] == ["a", "b", "c"]


def test_cells_and_rows_may_be_missing(images, capsys):
    source = labeled(images, "path;kind;score\nb/3.png;;0.5\na/1.png;left;\n./elsewhere.png;right;1.5\n")
    assert [labels["kind"] for labels in all_labels(source)] == ["left", None, None, None]
    assert [labels["score"] for labels in all_labels(source)] == [None, None, 0.5, None]
    assert "2 of 4 images have no row" in " ".join(capsys.readouterr().err.split())


def test_a_parquet_table_has_types_of_its_own(images):
    table = {"name": NAMES, "sick": [True, False, None, True], "grade": [3, 1, 2, None], "dose": [0.5, 1.5, 2.5, None]}
    source = labeled(images, table, ".parquet")
    assert {c.name: (c.kind, c.classes) for c in source.label_columns} == {
        "class": ("category", ["a", "b"]),
        "sick": ("category", ["no", "yes"]),
        "grade": ("category", ["1", "2", "3"]),
        "dose": ("number", None),
    }
    assert all_labels(source)[3] == {"class": "b", "sick": "yes", "grade": None, "dose": None}


def test_a_tables_own_class_replaces_the_folders(images):
    source = labeled(images, "file_name,class\n1.png,ant\n2.png,bee\n3.png,ant\n4.png,bee\n")
    assert [labels["class"] for labels in all_labels(source)] == ["ant", "bee", "ant", "bee"]


def test_a_sample_keeps_its_own_labels(images):
    rows = "".join(f"{name},k{number}\n" for number, name in enumerate(NAMES))
    for seed in range(5):
        source = labeled(images, "file,kind\n" + rows, limit=2, seed=seed)
        assert [source.labels(i)["kind"] for i in range(2)] == [f"k{NAMES.index(source.path(i))}" for i in range(2)]


def test_wanted_columns_are_taken_as_they_are(images):
    rows = "".join(f"{name},{number},{number}\n" for number, name in enumerate(NAMES))
    source = labeled(images, "file,one,two\n" + rows, label_columns=["two"])
    assert [c.name for c in source.label_columns] == ["class", "two"]
    with pytest.raises(RequestError, match="has no column 'three': file, one, two"):
        labeled(images, "file,one,two\n" + rows, label_columns=["three"])


def test_numbers_of_many_values_are_numbers_and_free_text_is_no_label(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for number in range(50):
        Image.new("L", (2, 2), number).save(tmp_path / "images" / f"{number}.png")
    rows = "".join(f"{n}.png,{n % 30},{n % 3},said {n}\n" for n in range(50))
    source = labeled(tmp_path / "images", "file,age,grade,caption\n" + rows)
    assert {c.name: c.kind for c in source.label_columns} == {"age": "number", "grade": "category"}
    assert "caption are no labels (free text" in " ".join(capsys.readouterr().err.split())


def test_a_cell_is_what_its_file_says(images, capsys):
    """Whole numbers that a float merges, codes with zeros before them, a word for nothing, other encodings."""
    ids = [1234567890123456000 + n for n in range(3)] + [10**20]
    codes, countries, dates = ["01", "1", "02", "1"], ["DE", "NA", "DE", "café"], ["2024-01-01"] * 3 + ["2024-02-01"]
    oks, numbers = ["True", "false", "", "true"], ["1e3", ".5", "NA", "7"]
    rows = [("file", "patient", "code", "land", "day", "ok", "x")]
    rows += zip(NAMES, ids, codes, countries, dates, oks, numbers, strict=True)
    text = "".join("\t".join(map(str, row)) + "\n" for row in rows)
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (images.parent / "t.csv").write_bytes(text.encode(encoding))
        source = open_source(ImageSettings(source=str(images), labels=str(images.parent / "t.csv")))
        found = {name: [labels[name] for labels in all_labels(source)] for name in source.labels(0)}
        assert found["patient"] == [str(number) for number in ids]
        assert found["code"] == codes
        assert found["land"] == ["DE", None, "DE", "café"]
        assert (found["day"], found["ok"]) == (dates, ["yes", "no", None, "yes"])
        assert found["x"] == [1000.0, 0.5, None, 7.0]
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("1 cells of land say NA and are no label") == 3
    assert "cells of x" not in said


def test_numbers_that_a_float_merges_are_classes_in_a_parquet_table_too(images):
    numbers = [2**60 + n for n in range(4)]
    source = labeled(images, {"name": NAMES, "patient": numbers, "picture": [b""] * 4}, ".parquet")
    assert [labels["patient"] for labels in all_labels(source)] == [str(number) for number in numbers]
    assert [c.name for c in source.label_columns] == ["class", "patient"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,kind,kind\n1.png,1,2\n", "two columns of .* are called 'kind'"),
        ("file,kind\nx.png,1\n", r"no row of .*labels\.csv names an image: its first cell is 'x\.png', an image is"),
        ("file,kind\n1.png,1\na/1.png,2\n", "several rows of .* name 'a/1.png'"),
        ("file,kind\n1.png\n", "cannot be read as a table"),
        ("", "cannot be read as a table"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_in_a_sentence(images, text, message):
    with pytest.raises(RequestError, match=message):
        labeled(images, text)


def test_a_table_of_another_encoding_is_refused_in_a_sentence(images):
    (images.parent / "labels.csv").write_bytes("file,kind\n1.png,café\n".encode("latin-1"))
    with pytest.raises(RequestError, match=r"labels\.csv is not UTF-8 text: save it as UTF-8"):
        open_source(str(images), labels=str(images.parent / "labels.csv"))


def test_a_missing_table_and_a_source_without_names_are_refused(images):
    with pytest.raises(RequestError, match="there is no file"):
        open_source(ImageSettings(source=str(images), labels=str(images / "none.csv")))
    with pytest.raises(RequestError, match="joins files by their names, which digits does not have"):
        open_source(ImageSettings(source="digits", labels="labels.csv"))


def test_what_a_table_says_is_identity_and_where_it_lies_is_not(images):
    table = images.parent / "labels.csv"
    table.write_text("file,kind\n1.png,x\n")
    elsewhere = table.rename(table.with_name("moved.csv"))
    table.write_text("file,kind\n1.png,x\n")
    first, second = (ImageSettings(source=str(images), labels=str(file)).content() for file in (table, elsewhere))
    assert first == second
    table.write_text("file,kind\n1.png,y\n")
    assert ImageSettings(source=str(images), labels=str(table)).content() != first


def test_what_is_not_asked_for_is_no_part_of_the_identity():
    assert set(ImageSettings().content()) == {
        *("source", "limit", "split", "subset", "streaming", "image_column", "label_columns"),
    }
    assert ImageSettings(limit=3).content()["seed"] == 0
