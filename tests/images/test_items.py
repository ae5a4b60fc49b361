"""Whatever holds pictures is a source: torch Datasets, lists, arrays, Hugging Face Datasets, tars, lists of paths."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import saetool
from saetool.errors import RequestError, WorkError
from saetool.images import ImageSettings, open_source
from saetool.images.items import read_item

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 5, 3), dtype=np.uint8)
CLASSES = ["cat", "dog"]


def png(array):
    content = io.BytesIO()
    Image.fromarray(array).save(content, "png")
    return content.getvalue()


class Map(Dataset):
    """A map-style data set; `form` says what its items are."""

    classes = CLASSES

    def __init__(self, form=lambda i: (Image.fromarray(PIXELS[i]), i % 2), n=5):
        self.form, self.n = form, n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if not 0 <= i < self.n:
            raise IndexError(i)
        return self.form(i)


class Stream(IterableDataset):
    def __init__(self, form, n=5):
        self.form, self.n = form, n

    def __iter__(self):
        return map(self.form, range(self.n))


def tensor(i, dtype=torch.uint8):
    pixels = torch.from_numpy(PIXELS[i]).permute(2, 0, 1)
    return pixels if dtype == torch.uint8 else pixels.to(dtype) / 255


PICTURES = {
    "PIL": lambda i: Image.fromarray(PIXELS[i]),
    "array": lambda i: PIXELS[i],
    "array of floats": lambda i: PIXELS[i] / 255,
    "array, channels first": lambda i: PIXELS[i].transpose(2, 0, 1).astype(np.float32) / 255,
    "tensor": tensor,
    "tensor of floats": lambda i: tensor(i, torch.float32),
    "tensor of half floats": lambda i: tensor(i, torch.float16),
    "bytes": lambda i: png(PIXELS[i]),
    "whole numbers": lambda i: PIXELS[i].astype(np.int64),
    "sixteen bits": lambda i: PIXELS[i].astype(np.uint16) * 257,
}


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("holder", ["map", "stream", "list"])
def test_every_kind_of_picture_is_read_pixel_by_pixel(kind, holder):
    form = PICTURES[kind]
    images = {"map": Map(form), "stream": Stream(form), "list": [form(i) for i in range(5)]}[holder]
    source = open_source(images, **({"first": 4} if holder == "stream" else {}))
    assert len(source) == (4 if holder == "stream" else 5)
    for i in (3, 0, 2, 1):
        np.testing.assert_array_equal(np.asarray(source.read(i).image), PIXELS[i])
        assert source.labels(i) == {}
        assert source.digest(i) == source.read(i).digest


LABELED = {
    "a pair": (lambda i: (PIXELS[i], i % 2), {"label": "dog"}, "category"),
    "a pair of tensors": (lambda i: (tensor(i), torch.tensor(i % 2)), {"label": "dog"}, "category"),
    "a pair with a number": (lambda i: (PIXELS[i], i / 2), {"label": 1.5}, "number"),
    "a pair with text": (lambda i: (PIXELS[i], "xyz"[i % 3]), {"label": "x"}, "category"),
    "a pair with a mapping": (lambda i: (PIXELS[i], {"age": float(i), "boxes": [1, 2]}), {"age": 3.0}, "number"),
    "a mapping": (lambda i: {"image": PIXELS[i], "label": i % 2}, {"label": "dog"}, "category"),
    "a mapping with another name": (lambda i: {"scan": PIXELS[i], "side": "left"}, {"side": "left"}, "category"),
    "a mapping of numpy numbers": (lambda i: {"img": PIXELS[i], "x": np.float32(i)}, {"x": 3.0}, "number"),
    "a mapping with nothing said": (
        lambda i: {"img": PIXELS[i], "x": None if i == 3 else "a"},
        {"x": None},
        "category",
    ),
}


@pytest.mark.parametrize("form", LABELED)
def test_labels_of_items(form):
    make, expected, kind = LABELED[form]
    source = open_source(Map(make))
    assert source.labels(3) == expected
    assert [column.kind for column in source.label_columns] == [kind]
    np.testing.assert_array_equal(np.asarray(source.read(3).image), PIXELS[3])


def test_labels_of_an_iterable():
    source = open_source(Stream(lambda i: (PIXELS[i], "xy"[i % 2])), first=5)
    assert [source.labels(i)["label"] for i in range(5)] == list("xyxyx")
    assert [source.path(i) for i in (0, 4)] == ["000000000", "000000004"]


def test_items_that_have_names_keep_them():
    source = open_source(Map(lambda i: {"image": PIXELS[i], "path": f"scans/{i}.png"}))
    assert source.path(2) == "scans/2.png"


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize("gray", [False, True])
def test_arrays_are_images_one_after_another(make, gray):
    pixels = PIXELS[..., 0] if gray else PIXELS
    source = open_source(make(np.ascontiguousarray(pixels)))
    assert len(source) == 5
    np.testing.assert_array_equal(np.asarray(source.read(4).image), pixels[4])
    changed = pixels.copy()
    changed[3, 0, 0] ^= 1  # of an array all of the content is in the listing's digest
    assert open_source(make(np.ascontiguousarray(changed))).listing() != source.listing()


def test_a_tensor_dataset_is_a_source():
    images = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 255
    source = open_source(TensorDataset(images, torch.arange(5) % 2))
    assert [source.labels(i)["label"] for i in range(5)] == ["0", "1", "0", "1", "0"]
    np.testing.assert_array_equal(np.asarray(source.read(1).image), PIXELS[1])


def test_hugging_face_datasets_are_sources_as_they_are():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    rows = {"image": [Image.fromarray(PIXELS[i]) for i in range(5)], "label": [i % 2 for i in range(5)]}
    whole = datasets.Dataset.from_dict(rows, features=features)
    for given, fields in [
        (whole, {}),
        (datasets.DatasetDict(train=whole), {}),
        (whole.to_iterable_dataset(), {"first": 5}),
    ]:
        source = open_source(given, **fields)
        assert [source.labels(i)["label"] for i in range(5)] == [CLASSES[i % 2] for i in range(5)]
        np.testing.assert_array_equal(np.asarray(source.read(3).image), PIXELS[3])
    assert len(open_source(whole, limit=2)) == 2
    with pytest.raises(RequestError, match="has train, not 'test'"):
        open_source(datasets.DatasetDict(train=whole), split="test")


def test_lists_of_paths_keep_their_order(tmp_path):
    names = ["b/2.png", "a/1.png", "c.jpeg"]
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(PIXELS[number]).save(tmp_path / name)
    source = open_source([tmp_path / name for name in names])
    assert [source.path(i) for i in range(3)] == names
    assert [source.labels(i)["class"] for i in range(3)] == ["b", "a", None]
    assert source.root == str(tmp_path)
    np.testing.assert_array_equal(np.asarray(source.read(1).image), PIXELS[1])
    with pytest.raises(RequestError, match="there is no file"):
        open_source([str(tmp_path / "gone.png")])
    with pytest.raises(RequestError, match=r"names 'c\.jpeg' twice"):
        open_source([tmp_path / names[0], tmp_path / names[2], tmp_path / names[2]])


def tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path):
    (tmp_path / "shards").mkdir()
    for shard, places in enumerate([(0, 1, 2), (3, 4)]):
        members = {}
        for i in places:
            facts = {"age": 20.5 + i, "name": f"p{i}", "box": [1, 2]} if i != 1 else {}
            members |= {
                f"s/{i:04d}.cls": str(i % 2).encode(),
                f"s/{i:04d}.png": png(PIXELS[i]),
                f"s/{i:04d}.json": json.dumps(facts).encode(),
                f"s/{i:04d}.seg.png": png(PIXELS[0]),
            }
        tar(tmp_path / "shards" / f"set-{shard:03d}.tar", members)
    return tmp_path / "shards"


@pytest.mark.parametrize("named", ["folder", "pattern", "braces", "list"])
def test_webdataset_tars_are_read_where_they_lie(shards, named):
    given = {
        "folder": str(shards),
        "pattern": str(shards / "set-*.tar"),
        "braces": str(shards / "set-{000..001}.tar"),
        "list": sorted(shards.glob("*.tar")),
    }[named]
    source = open_source(given)
    assert [source.path(i) for i in range(len(source))] == [f"s/{i:04d}.png" for i in range(5)]
    assert source.forkable
    for i in (4, 1, 3):
        np.testing.assert_array_equal(np.asarray(source.read(i).image), PIXELS[i])
    assert source.labels(3) == {"cls": "1", "age": 23.5, "name": "p3"}
    assert source.labels(1) == {"cls": "1", "age": None, "name": None}


def test_one_tar_its_sample_and_its_wanted_labels(shards):
    file = shards / "set-000.tar"
    source = open_source(ImageSettings(source=str(file), first=2, label_columns=["age"]))
    assert [source.path(i) for i in range(2)] == ["s/0000.png", "s/0001.png"]
    assert source.labels(0) == {"age": 20.5}
    with pytest.raises(RequestError, match="has no label 'weight': cls, age, name"):
        open_source(ImageSettings(source=str(file), label_columns=["weight"]))


def test_a_table_labels_the_samples_of_tars_too(shards, tmp_path):
    (tmp_path / "more.csv").write_text("key,side\n0000,left\n0003,right\n")
    source = open_source(shards, labels=str(tmp_path / "more.csv"))
    assert [source.labels(i)["side"] for i in range(5)] == ["left", None, None, "right", None]
    assert source.labels(3)["age"] == 23.5
    only = open_source(shards, labels=str(tmp_path / "more.csv"), label_columns=["side"])
    assert only.labels(3)["side"] == "right"


def test_samples_of_one_name_in_several_tars_are_all_there(shards):
    for shard in (2, 3):
        tar(shards / f"set-{shard:03d}.tar", {"s/0000.png": png(PIXELS[shard])})
    source = open_source(shards)
    again = [f"set-{shard:03d}:s/0000.png" for shard in (2, 3)]
    assert [source.path(i) for i in range(len(source))] == [*(f"s/{i:04d}.png" for i in range(5)), *again]
    for i in (5, 6):
        np.testing.assert_array_equal(np.asarray(source.read(i).image), PIXELS[i - 3])


def test_tars_of_several_folders_and_a_name_twice_in_one_are_refused(shards, tmp_path):
    elsewhere = tar(tmp_path / "set-000.tar", {"0.png": png(PIXELS[0])})
    with pytest.raises(RequestError, match=r"tar files of several folders .*: put them into one"):
        open_source([shards / "set-000.tar", elsewhere])
    with tarfile.open(elsewhere, "w") as archive:
        for stem in ("0", "1", "0", "1", "0"):
            info = tarfile.TarInfo(f"{stem}.png")
            info.size = len(png(PIXELS[0]))
            archive.addfile(info, io.BytesIO(png(PIXELS[0])))
    (shards / "set-001.tar").unlink()
    elsewhere.rename(shards / "set-000.tar")
    with pytest.raises(RequestError, match=r"has two samples called 'set-000:0\.png'"):
        open_source(shards)


def test_a_list_says_its_labels_and_names_whole():
    items = [{"image": PIXELS[i % 5], "path": f"{i}"} | ({"rare": "x"} if i == 3 else {}) for i in range(40)]
    source = open_source(items)
    assert [column.name for column in source.label_columns] == ["rare"]
    assert [source.labels(i)["rare"] for i in (2, 3)] == [None, "x"]
    with pytest.raises(RequestError, match=r"names '5' twice; an image is known by its path"):
        open_source([*items, {"image": PIXELS[0], "path": "5"}])


def test_what_is_done_at_a_picture_that_cannot_be_read_is_said_where_it_is_opened_or_cached(tmp_path):
    items = [Image.fromarray(PIXELS[0]), b"no picture", Image.fromarray(PIXELS[1])]
    backbone = {"name": "pixels", "image_size": 8, "layers": [1]}
    for name, given, keywords in (
        ("a", items, {"on_error": "skip"}),
        ("b", open_source(items, on_error="skip"), {}),
        ("c", open_source(items), {"on_error": "skip"}),
    ):
        made = saetool.cache(backbone, given, out=tmp_path / name, **keywords)
        assert made.content["images"] == 2
    with pytest.raises(WorkError, match="item 1"):
        saetool.cache(backbone, open_source(items), out=tmp_path / "d")


def test_tars_that_cannot_be_read_end_in_a_sentence(shards):
    import gzip

    whole = (shards / "set-000.tar").read_bytes()
    (shards / "zipped.tar").write_bytes(gzip.compress(whole))
    with pytest.raises(RequestError, match=r"zipped\.tar cannot be read as a tar file .* unpacked first"):
        open_source(str(shards / "zipped.tar"))
    with pytest.raises(RequestError, match=r"there is no file .*set-002\.tar"):
        open_source(str(shards / "set-{000..002}.tar"))


def test_a_source_of_ones_own_can_be_sampled():
    own = open_source(Map())
    assert open_source(own) is own
    some = open_source(own, limit=2)
    assert len(some) == 2
    assert some.labels(1) == own.labels(int(some.path(1)))
    assert some.digest(1) == own.digest(int(some.path(1)))


def test_a_limit_balances_the_classes_that_a_data_set_lists():
    data = Map(n=40, form=lambda i: (PIXELS[i % 5], int(i >= 36)))
    data.targets = [int(i >= 36) for i in range(40)]
    source = open_source(data, limit=8)
    assert sorted(source.labels(i)["label"] for i in range(8)) == ["cat"] * 4 + ["dog"] * 4


def test_augmented_pictures_are_refused():
    generator = np.random.default_rng(0)
    with pytest.raises(
        RequestError, match="another picture whenever its first item is read: leave random augmentation"
    ):
        open_source(Map(lambda i: generator.random((4, 4, 3))))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (np.full((4, 4, 3), -2.1), r"float64 values from -2\.1 to -2\.1: .* take normalization out"),
        (np.full((4, 4, 3), 300), "from 300 to 300"),
        (np.full((4, 4, 3), np.nan), "values from nan to nan"),
        (np.zeros((5, 5, 7)), r"has the shape \[5, 5, 7\]"),
        (np.zeros((0, 4, 3)), "has no pixels"),
        (7, "holds no picture but int"),
        ({"a": 1}, "has no picture under a"),
        ({"a": PIXELS[0], "b": PIXELS[1]}, "has several pictures under a, b"),
        (b"nothing", "cannot be read as an image"),
        ("/gone.png", "cannot be read: No such file"),
    ],
)
def test_items_that_are_no_pictures_end_in_a_sentence(item, message):
    with pytest.raises(WorkError, match=message):
        read_item(item, "set, item 3")


def test_a_broken_item_is_one_images_fault(tmp_path):
    def form(i):
        if i == 3:
            raise OSError("the disk is gone")
        return PIXELS[i]

    for source in (open_source(Map(form)), open_source(Stream(lambda i: PIXELS[i] if i != 3 else 7), first=5)):
        with pytest.raises(WorkError, match="item 3"):
            source.read(3)
        np.testing.assert_array_equal(np.asarray(source.read(4).image), PIXELS[4])


@pytest.mark.parametrize(
    ("images", "fields", "message"),
    [
        (Stream(lambda i: PIXELS[i]), {}, r"images\.first: stream does not say how many"),
        (Stream(lambda i: PIXELS[i]), {"limit": 2}, r"images\.limit: takes a sample of all images, and stream is read"),
        ((PIXELS[i] for i in range(5)), {"first": 2}, "can be iterated over once only"),
        (DataLoader(Map()), {}, r"give its data set \(loader\.dataset\)"),
        ([], {}, "holds no pictures"),
        (7, {}, "open_source takes no int: give a folder, a name"),
        ({"a": 1}, {}, r"images\.a: unknown key"),
        (b"picture", {}, "open_source takes no bytes"),
        (Map(), {"limits": 3}, "limits: unknown key"),
    ],
)
def test_what_is_no_source_is_refused_with_the_way_out(images, fields, message):
    with pytest.raises(RequestError, match=message):
        open_source(images, **fields)


@pytest.mark.parametrize("kind", [Map, Stream])
def test_what_items_say_under_names_of_the_stores_own_is_no_label(kind):
    """A detection set's items have an id and a size; a store refuses labels called so."""
    items = kind(lambda i: {"image": PIXELS[i], "id": i, "width": 5, "height": 6, "breed": "ab"[i % 2]})
    source = open_source(items) if kind is Map else open_source(items, first=4)
    assert [column.name for column in source.label_columns] == ["breed"]
    assert source.labels(1) == {"breed": "b"}
