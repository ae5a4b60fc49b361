"""Images that change behind a store: named, whatever their size; touched or copied ones are the same."""

import io
import os
import shutil
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from saetool.activations import cache
from saetool.activations.settings import CacheSettings
from saetool.errors import RequestError, WorkError
from saetool.images import ImageSettings, open_source
from saetool.images.folder import FolderSource
from saetool.vision import BackboneSettings

BACKBONE = BackboneSettings(name="timm/test_vit", layers=[1], pretrained=False, precision="fp32")
SETTINGS = CacheSettings(batch_size=2, shard_mb=0.01)


def put(root, count=6, shade=0):
    root.mkdir(exist_ok=True)
    for i in range(count):
        Image.new("RGB", (16, 16), (40 * i, shade, 0)).save(root / f"{i}.bmp")
    return root


def store(root, out, **options):
    return cache(BACKBONE, ImageSettings(source=str(root)), None, out, SETTINGS, **options)


def test_a_replaced_file_of_equal_size_is_named(tmp_path):
    root = put(tmp_path / "images")
    first = store(root, tmp_path / "store")
    Image.new("RGB", (16, 16), (9, 9, 9)).save(root / "3.bmp")
    with pytest.raises(RequestError, match=r"the image '3\.bmp' is not the one that was cached.*--force"):
        store(root, tmp_path / "store")
    assert store(root, tmp_path / "store", force=True).id != first.id


def test_a_file_that_cannot_be_read_any_more_is_named(tmp_path, monkeypatch):
    root = put(tmp_path / "images")
    store(root, tmp_path / "store")
    os.utime(root / "3.bmp", (1, 1))

    def refuse(source, i):
        raise WorkError(f"{source.path(i)} cannot be read: it is gone")

    monkeypatch.setattr(FolderSource, "digest", refuse)
    with pytest.raises(RequestError, match=r"0\.bmp cannot be read: it is gone.*--force"):
        store(root, tmp_path / "store")


def test_touched_and_copied_files_are_the_same(tmp_path, capsys):
    root = put(tmp_path / "images")
    first = store(root, tmp_path / "store")
    for i, file in enumerate(root.iterdir()):
        os.utime(file, (i, i))
    assert store(root, tmp_path / "store").id == first.id
    assert "comparing their contents" in " ".join(capsys.readouterr().err.split())
    shutil.copytree(root, tmp_path / "moved", copy_function=shutil.copy)
    assert store(tmp_path / "moved", tmp_path / "store").id == first.id


def labeled_tar(path, word, images=12):
    with tarfile.open(path, "w") as tar:
        for i in range(images):
            picture = io.BytesIO()
            Image.new("RGB", (16, 16), (20 * i, 0, 0)).save(picture, "png")
            for ending, data in (("cls", word(i).encode()), ("png", picture.getvalue())):
                entry = tarfile.TarInfo(f"{i:04d}.{ending}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
    return path


def labeled_rows(path, word, images=12):
    rows = [{"image": {"bytes": png(i), "path": None}, "label": word(i)} for i in range(images)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def png(i):
    picture = io.BytesIO()
    Image.new("RGB", (16, 16), (20 * i, 0, 0)).save(picture, "png")
    return picture.getvalue()


@pytest.mark.parametrize(("make", "name"), [(labeled_tar, "a.tar"), (labeled_rows, "a.parquet")])
def test_corrected_labels_are_not_taken_for_the_cached_ones(tmp_path, make, name):
    """Labels inside the data: the pictures are the same, and so is every size."""
    images = make(tmp_path / name, lambda i: "ab"[i % 2])
    first = store(images, tmp_path / "store")
    assert store(images, tmp_path / "store").id == first.id
    make(images, lambda i: "ba"[i % 2])
    with pytest.raises(RequestError, match=r"the images have other labels than those that were cached.*--force"):
        store(images, tmp_path / "store")
    again = store(images, tmp_path / "store", force=True)
    column = "cls" if name == "a.tar" else "label"
    assert again.read_table("images.parquet")[column].to_pylist() == ["b", "a"] * 6


def test_a_table_of_labels_that_an_opened_source_has_counts_too(tmp_path):
    root, table = put(tmp_path / "images"), tmp_path / "labels.csv"
    for text, refused in (("x", False), ("x", False), ("y", True)):
        table.write_text("file,kind\n" + "".join(f"{i}.bmp,{text}\n" for i in range(6)))
        source = open_source(str(root), labels=str(table))
        if refused:
            with pytest.raises(RequestError, match="other labels"):
                cache(BACKBONE, source, None, tmp_path / "store", SETTINGS)
        else:
            cache(BACKBONE, source, None, tmp_path / "store", SETTINGS)


def test_labels_corrected_while_the_work_stood_still_are_not_mixed(tmp_path, monkeypatch):
    images = labeled_tar(tmp_path / "a.tar", lambda i: "old")
    read = FolderSource.read

    def broken(source, i):
        if i == 9:
            raise WorkError("gone")
        return read(source, i)

    with monkeypatch.context() as patch:
        patch.setattr(FolderSource, "read", broken)
        patch.setattr("saetool.activations.caching.decoding_processes", lambda source: 0)
        with pytest.raises(WorkError, match="gone"):
            store(images, tmp_path / "store")
    labeled_tar(images, lambda i: "new")
    with pytest.raises(RequestError, match=r"store\.partial: the images have other labels.*--force"):
        store(images, tmp_path / "store")


def test_another_picture_or_label_in_a_list_is_another_store(tmp_path):
    pictures = [Image.new("RGB", (16, 16), (5 * i, 0, 0)) for i in range(40)]
    items = [{"image": picture, "label": "ab"[i % 2]} for i, picture in enumerate(pictures)]
    first = cache(BACKBONE, items, None, tmp_path / "store", SETTINGS)
    assert cache(BACKBONE, list(items), None, tmp_path / "store", SETTINGS).id == first.id
    for other in ({"image": Image.new("RGB", (16, 16), (7, 7, 7)), "label": "b"}, items[3] | {"label": "a"}):
        with pytest.raises(RequestError, match="already holds something else"):
            cache(BACKBONE, [*items[:3], other, *items[4:]], None, tmp_path / "store", SETTINGS)


def test_a_file_replaced_while_the_work_stood_still_is_named(tmp_path):
    root = put(tmp_path / "images")
    (root / "5.bmp").write_bytes(b"BM, and no more")
    with pytest.raises(WorkError, match=r"5\.bmp"):
        store(root, tmp_path / "store")
    Image.new("RGB", (16, 16), (9, 9, 9)).save(root / "0.bmp")
    with pytest.raises(RequestError, match=r"the image '0\.bmp' is not the one"):
        store(root, tmp_path / "store", on_error="skip")


def test_other_lists_of_files_are_told_apart_by_how_many_they_are(tmp_path):
    root = put(tmp_path / "images")
    store(root, tmp_path / "store")
    put(root, 7)
    with pytest.raises(RequestError, match=r"images: 6 → 7 images"):
        store(root, tmp_path / "store")
    (root / "6.bmp").unlink()
    (root / "5.bmp").rename(root / "9.bmp")
    with pytest.raises(RequestError, match=r"images: 6 images there and asked, of other names or sizes"):
        store(root, tmp_path / "store")


def test_what_is_no_source_and_no_backbone_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(RequestError, match=r"list, item 0 holds no picture but int: give a PIL image"):
        cache(BACKBONE, [1, 2], None, tmp_path / "store")
    with pytest.raises(RequestError, match="open_source takes no int: give a folder"):
        cache(BACKBONE, 7, None, tmp_path / "store")
    with pytest.raises(RequestError, match="cache takes no int as backbone: give a name"):
        cache(7, str(put(tmp_path / "images")), [1], tmp_path / "store")


@pytest.mark.parametrize(
    ("kind", "value", "message"), [("category", 3, "are text; 3 is not"), ("category", "cow", "none of its classes")]
)
def test_labels_of_a_source_of_ones_own_are_checked_before_the_work_is_lost(kind, value, message, tmp_path):
    from saetool.images import LabelColumn, open_source

    source = open_source(ImageSettings(source=str(put(tmp_path / "images"))))
    source.label_columns = [LabelColumn("kind", kind, ["cat", "dog"])]
    source.labels = lambda i: {"kind": value}
    with pytest.raises(RequestError, match=rf"0\.bmp: kind is .*{message}"):
        cache(BACKBONE, source, [1], tmp_path / "store", SETTINGS)


def test_labels_that_are_no_number_and_immense_values_do_not_end_in_a_crash(tmp_path):
    import torch

    from saetool.images import LabelColumn, open_source
    from saetool.vision import wrap

    source = open_source(ImageSettings(source=str(put(tmp_path / "images"))))
    source.label_columns = [LabelColumn("weight", "number")]
    source.labels = lambda i: {"weight": [1.5, float("nan"), float("inf")][i % 3]}
    made = cache(BACKBONE, source, [1], tmp_path / "store", SETTINGS)
    import pyarrow.parquet as parquet

    assert parquet.read_table(made.file("images.parquet"))["weight"].to_pylist() == [1.5, None, None] * 2

    class Immense(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.tok = torch.nn.Identity()

        def forward(self, images):
            return self.tok(images.flatten(2).transpose(1, 2) * 1e19)

    with pytest.raises(WorkError, match=r"0\.bmp: the values at tok are not all finite and below 1e\+17"):
        cache(wrap(Immense(), ["tok"], "all", image_size=8), source, ["tok"], tmp_path / "immense", SETTINGS)
