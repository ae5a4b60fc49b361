"""Images that change behind a store: named, whatever their size; touched or copied ones are the same."""

import os
import shutil

import pytest
from PIL import Image

from saetool.activations import cache
from saetool.activations.settings import CacheSettings
from saetool.errors import RequestError, WorkError
from saetool.images import ImageSettings
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
