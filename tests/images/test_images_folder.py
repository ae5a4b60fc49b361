"""Folders of images: order, labels, links, every kind of file, damage."""

import io
import os
import struct
import threading
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from saetool.artifacts import digest_bytes
from saetool.errors import RequestError, WorkError
from saetool.images import ImageSettings, open_source


def put(path, color=(10, 200, 30), size=(12, 8), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)
    return path


def folder(root, **fields):
    return open_source(ImageSettings(source=str(root), **fields))


def test_paths_are_sorted_by_their_utf8_bytes(tmp_path):
    names = ["b.png", "B.png", "a/z.png", "a.png", "é.png", "a-1.png", "Z/ä.jpg", "10.png", "9.png"]
    for name in names:
        put(tmp_path / name)
    source = folder(tmp_path)
    assert [source.path(i) for i in range(len(source))] == sorted(names, key=lambda name: name.encode())
    flat = put(tmp_path / "flat" / "x.png").parent
    put(flat / "y.png")
    assert [folder(flat, first=1).path(i) for i in range(len(folder(flat, first=1)))] == ["x.png"]


def test_first_folders_are_classes(tmp_path):
    for name in ["dog/1.png", "cat/deep/2.png", "cat/3.png"]:
        put(tmp_path / name)
    source = folder(tmp_path)
    assert [(column.name, column.kind, column.classes) for column in source.label_columns] == [
        ("class", "category", ["cat", "dog"])
    ]
    assert {source.path(i): source.labels(i)["class"] for i in range(3)} == {
        "cat/3.png": "cat",
        "cat/deep/2.png": "cat",
        "dog/1.png": "dog",
    }
    assert folder(tmp_path, limit=1).label_columns == source.label_columns


@pytest.mark.parametrize("names", [["1.png", "2.png"], ["photos/1.png", "photos/2.png"]])
def test_a_flat_folder_has_no_labels(names, tmp_path):
    for name in names:
        put(tmp_path / name)
    source = folder(tmp_path)
    assert source.label_columns == []
    assert source.labels(0) == {}


def test_folders_above_the_classes_are_passed_over(tmp_path):
    for name in ["data/train/x/1.png", "data/train/y/2.png"]:
        put(tmp_path / name)
    assert folder(tmp_path).labels(1) == {"class": "y"}


def test_a_file_beside_the_class_folders_has_no_class(tmp_path):
    for name in ["x/1.png", "y/3.png", "2.png"]:
        put(tmp_path / name)
    source = folder(tmp_path)
    assert [source.labels(i)["class"] for i in range(3)] == [None, "x", "y"]


def test_a_file_above_the_class_folders_is_no_class(tmp_path):
    for name in ["data/x/1.png", "data/y/3.png", "cover.png"]:
        put(tmp_path / name)
    source = folder(tmp_path)
    assert {source.path(i): source.labels(i)["class"] for i in range(3)} == {
        "cover.png": None,
        "data/x/1.png": "x",
        "data/y/3.png": "y",
    }


def test_a_lone_folder_beside_a_stray_file_is_no_class(tmp_path):
    for name in ["photos/1.png", "photos/2.png", "cover.png"]:
        put(tmp_path / name)
    assert folder(tmp_path).label_columns == []


@pytest.mark.parametrize("splits", [("train", "val"), ("Training", "test"), ("train2017", "val2017")])
def test_folders_of_splits_hold_the_classes_and_are_none(splits, tmp_path):
    for split in splits:
        for name in ("cat", "dog"):
            put(tmp_path / split / name / "1.png")
    assert folder(tmp_path).label_columns[0].classes == ["cat", "dog"]
    flat = tmp_path / "flat"
    for split in splits:
        put(flat / split / "1.png")
    assert folder(flat).label_columns == []


def test_a_limit_takes_as_many_of_each_class_as_can_be(tmp_path):
    for name in ("ant", "bee", "cow"):
        for i in range(2 if name == "bee" else 5):
            put(tmp_path / name / f"{i}.png")
    source = folder(tmp_path, limit=7)
    counts = Counter(source.labels(i)["class"] for i in range(7))
    assert len(source) == 7
    assert counts["bee"] == 2
    assert sorted([counts["ant"], counts["cow"]]) == [2, 3]
    paths = [source.path(i) for i in range(7)]
    assert paths == sorted(paths)
    others = {tuple(folder(tmp_path, limit=7, seed=seed).path(i) for i in range(7)) for seed in range(8)}
    assert len(others) > 1
    assert [folder(tmp_path, first=7).path(i) for i in range(7)] == [
        *(f"ant/{i}.png" for i in range(5)),
        *(f"bee/{i}.png" for i in range(2)),
    ]


def test_files_left_out_are_counted_by_their_ending(tmp_path, capsys):
    for name in ("a.jfif", "b.jpe", "c.JPG"):
        put(tmp_path / name, format="JPEG")
    for name in ("d.heic", "e.HEIC", "f.jxl", "sub/g.jxl", "notes.txt", "h.jxl", "README", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert len(folder(tmp_path)) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "7 files are not of a kind that is read and are left out (.jxl 3, .heic 2, " in said


@pytest.mark.parametrize("kind", ["folder", "address", "dataset"])
def test_a_folder_that_cannot_be_listed_is_named(kind, tmp_path, monkeypatch):
    put(tmp_path / "open" / "1.png")
    put(tmp_path / "shut" / "2.png")
    if kind == "dataset":
        (tmp_path / "open" / "1.parquet").write_bytes(b"PAR1")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(RequestError, match=r"cannot be listed.*Permission denied"):
        folder(f"file://{tmp_path}" if kind == "address" else tmp_path)


def test_a_root_that_cannot_be_entered_is_named(tmp_path, monkeypatch):
    from pathlib import Path

    def refuse(path, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(RequestError, match=r"images\.source: .*Permission denied"):
        open_source(str(tmp_path / "shut"))


def test_times_tell_files_apart_that_sizes_do_not(tmp_path):
    file = put(tmp_path / "a.bmp")
    os.utime(file, ns=(5, 5))
    before = folder(tmp_path)
    put(file, (1, 2, 3))
    after = folder(tmp_path)
    assert before.listing() == after.listing()
    assert before.times() != after.times()
    assert after.digest(0) == after.read(0).digest == digest_bytes(file.read_bytes())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("kind", ["folder", "address"])
def test_pipes_and_devices_are_not_read(kind, tmp_path):
    put(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.png").symlink_to("/dev/zero")
    source = folder(f"file://{tmp_path}" if kind == "address" else tmp_path)
    for i in (1, 2):
        with pytest.raises(WorkError, match="is no regular file"):
            source.read(i)


def test_a_format_that_runs_a_program_is_no_picture(tmp_path, monkeypatch):
    import subprocess

    ran = []
    monkeypatch.setattr(subprocess, "check_call", lambda *args, **_: ran.append(args))
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(WorkError, match="no kind of image that is known"):
        folder(tmp_path).read(0)
    assert not ran


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    Image.new("L", (20_000, 9_000)).save(tmp_path / "a.png")
    with pytest.raises(WorkError, match=r"more pixels than 178,956,970, .* raise images\.max_pixels"):
        folder(tmp_path).read(0)
    put(tmp_path / "a.png", size=(40, 30))
    assert folder(tmp_path, max_pixels=1200).read(0).width == 40
    with pytest.raises(WorkError, match=r"more pixels than 1,199, .*\(1200 here\)"):
        folder(tmp_path, max_pixels=1199).read(0)


@pytest.mark.slow
def test_max_pixels_lifts_the_limit(tmp_path):
    Image.new("L", (20_000, 9_000)).save(tmp_path / "a.png")
    assert folder(tmp_path, max_pixels=None).read(0).width == 20_000


def test_only_the_orientation_is_read_of_the_metadata(tmp_path):
    # Orientation 6; then a resolution, which is a ratio, written as text: Pillow cannot write it again.
    orientation = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    resolution = struct.pack("<HHI4s", 0x011A, 2, 4, b"72x\0")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + orientation + resolution + bytes(4)
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    picture = folder(tmp_path).read(0)
    assert (picture.width, picture.height) == (20, 30)


def test_long_text_in_a_png_is_passed_over(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    for name, compressed in (("a.png", True), ("b.png", False)):
        info = PngInfo()
        info.add_text("prompt", "x" * 3_000_000, zip=compressed)
        info.add_itxt("more", "y" * 2_000_000, zip=compressed)
        put(tmp_path / name, pnginfo=info)
    source = folder(tmp_path)
    assert [source.read(i).image.getpixel((0, 0)) for i in range(2)] == [(10, 200, 30)] * 2
    assert source.read(0).digest == digest_bytes((tmp_path / "a.png").read_bytes())


def test_links_are_followed_but_not_in_circles(tmp_path):
    real = put(tmp_path / "elsewhere" / "1.png").parent
    root = tmp_path / "root"
    put(root / "sub" / "2.png")
    (root / "linked").symlink_to(real)
    (root / "sub" / "up").symlink_to(root)
    (root / "dangling.png").symlink_to(tmp_path / "nothing.png")
    source = folder(root)
    assert [source.path(i) for i in range(len(source))] == ["dangling.png", "linked/1.png", "sub/2.png"]
    assert source.read(1).width == 12
    with pytest.raises(WorkError, match=r"dangling\.png cannot be read"):
        source.read(0)


def test_other_files_and_hidden_ones_are_left_alone(tmp_path):
    put(tmp_path / "a.PNG")
    put(tmp_path / ".hidden.png")
    put(tmp_path / ".git" / "b.png")
    (tmp_path / "notes.txt").write_text("no image")
    assert len(folder(tmp_path)) == 1


def test_the_listing_depends_on_paths_and_sizes_only(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        put(root / "a.png")
    assert folder(one).listing() == folder(two).listing()
    os.utime(two / "a.png", (0, 0))
    assert folder(one).listing() == folder(two).listing()
    put(two / "b.png")
    assert folder(one).listing() != folder(two).listing()
    assert folder(two, first=1).listing() == folder(one).listing()


def test_moved_data_are_found_by_their_root(tmp_path):
    put(tmp_path / "new" / "a.png")
    settings = ImageSettings(source=str(tmp_path / "old"))
    with pytest.raises(RequestError, match="there is no"):
        open_source(settings)
    assert open_source(settings, root=str(tmp_path / "new")).path(0) == "a.png"


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(RequestError, match="no image files below"):
        folder(tmp_path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, tmp_path):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    picture = folder(tmp_path).read(0)
    turned = orientation >= 5
    assert (picture.width, picture.height) == picture.image.size == ((16, 32) if turned else (32, 16))
    corners = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}
    right, low = corners[orientation]
    assert picture.image.getpixel((right * (picture.width - 1), low * (picture.height - 1))) == (255, 255, 255)
    assert (
        sum(
            picture.image.getpixel((x, y)) == (255, 255, 255)
            for x in (0, -1 % picture.width)
            for y in (0, -1 % picture.height)
        )
        == 1
    )


GRADIENT = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
KINDS = {
    "gray.png": (Image.fromarray((GRADIENT // 257).astype(np.uint8)), GRADIENT // 257),
    "sixteen.png": (Image.fromarray(GRADIENT), GRADIENT // 257),
    "sixteen.tif": (Image.fromarray(GRADIENT), GRADIENT // 257),
    "bilevel.png": (Image.fromarray(GRADIENT > 30000), np.where(GRADIENT > 30000, 255, 0)),
}


@pytest.mark.parametrize("name", KINDS)
def test_gray_images_of_any_depth(name, tmp_path):
    image, expected = KINDS[name]
    image.save(tmp_path / name)
    picture = folder(tmp_path).read(0).image
    assert (np.asarray(picture.convert("RGB")) == expected[..., None]).all()
    assert picture.mode == ("L" if name != "bilevel.png" else "RGB")


def test_palette_cmyk_and_animation(tmp_path):
    color = (200, 30, 60)
    Image.new("RGB", (6, 6), color).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    Image.new("CMYK", (6, 6), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    frames = [Image.new("RGB", (6, 6), shade) for shade in (color, (0, 0, 255))]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    source = folder(tmp_path)
    seen = {source.path(i): source.read(i).image for i in range(len(source))}
    assert all(image.mode == "RGB" for image in seen.values())
    for name in ("palette.png", "moving.gif", "moving.webp"):
        assert seen[name].getpixel((3, 3)) == pytest.approx(color, abs=2)
    assert seen["cmyk.jpg"].getpixel((3, 3)) == pytest.approx((255, 0, 0), abs=3)


def test_transparency_shows_white_not_what_is_hidden_below(tmp_path):
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 255, 255))
    image.putpixel((1, 0), (0, 0, 0, 128))
    image.save(tmp_path / "a.png")
    seen = folder(tmp_path).read(0).image
    assert seen.getpixel((3, 3)) == (255, 255, 255)
    assert seen.getpixel((0, 0)) == (0, 0, 255)
    assert seen.getpixel((1, 0)) == pytest.approx((127, 127, 127), abs=1)


def test_the_digest_is_of_the_files_bytes(tmp_path):
    file = put(tmp_path / "a.png")
    put(tmp_path / "b.png")
    source = folder(tmp_path)
    assert source.read(0).digest == source.read(1).digest == digest_bytes(file.read_bytes())
    assert source.size_hint(0) == file.stat().st_size


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "header"])
def test_a_corrupt_image_is_named(damage, tmp_path):
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(content, "png")
    whole = content.getvalue()
    broken = {"text": b"this is a text file", "empty": b"", "cut": whole[: len(whole) // 2], "header": whole[:30]}
    (tmp_path / "bad.png").write_bytes(broken[damage])
    with pytest.raises(WorkError, match=r"bad\.png .*images\.on_error=skip") as raised:
        folder(tmp_path).read(0)
    assert "0x" not in str(raised.value)  # no object in memory is named


def test_a_name_that_no_table_can_hold_is_refused_when_listing(tmp_path):
    put(tmp_path / "a.png")
    try:
        os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    except OSError:
        pytest.skip("this file system knows no such names")
    with pytest.raises(RequestError, match=r"caf\\udce9\.png is not UTF-8"):
        folder(tmp_path)


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(WorkError, match=r"a\.tif: floating-point pixels"):
        folder(tmp_path).read(0)


def test_a_file_that_vanishes_is_named(tmp_path):
    file = put(tmp_path / "a.png")
    source = folder(tmp_path)
    file.unlink()
    with pytest.raises(WorkError, match=r"a\.png cannot be read"):
        source.read(0)


def test_threads_read_the_same_pictures(tmp_path):
    for i in range(12):
        put(tmp_path / f"{i:02d}.png", (i, 2 * i, 3 * i))
    source = folder(tmp_path)
    expected = [source.read(i).image.tobytes() for i in range(12)]
    seen = [{} for _ in range(4)]

    def work(place):
        for i in range(12):
            seen[place][i] = source.read(i).image.tobytes()

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all([found[i] for i in range(12)] == expected for found in seen)


def test_whatever_is_wrong_with_a_file_is_one_kind_of_error():
    import random

    from saetool.images.picture import read_picture

    draw, kinds = random.Random(0), []
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))
    for kind in ("png", "jpeg", "gif", "tiff", "webp", "bmp", "jpeg2000", "ppm", "tga"):
        content = io.BytesIO()
        noise.save(content, kind)
        kinds.append(content.getvalue())
    refused = 0
    for _ in range(1500):
        content = bytearray(draw.choice(kinds))
        for _ in range(draw.choice([1, 2, 5, 20])):
            content[draw.randrange(min(len(content), draw.choice([40, 200, 10**9])))] = draw.randrange(256)
        try:
            read_picture(bytes(content[: draw.choice([len(content), 300])]), "x", 10**7)
        except WorkError:
            refused += 1
    assert refused > 300
