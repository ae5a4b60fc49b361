"""Sources by name: registered here, offered by a package, or registered by a module that an environment names."""

import sys

import numpy as np
import pytest
import torch

import saetool
from saetool.activations import ActivationStore, CacheSettings
from saetool.errors import RequestError
from saetool.images import ImageSettings, open_cached, open_source, registry

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 12, 12), dtype=np.uint8)
SMALL = CacheSettings(batch_size=4, dtype="float32")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """Registrations end with the test."""
    monkeypatch.setattr(registry, "_made", {})
    for name in ("known", "places"):
        monkeypatch.setattr(registry.SOURCES, name, {})


def pairs():
    return [(pixels, "even" if i % 2 == 0 else "odd") for i, pixels in enumerate(PIXELS)]


def test_a_registered_name_is_a_source_for_settings_and_config():
    made = []

    @saetool.register_source("mine")
    def mine():
        made.append(1)
        return pairs()

    assert mine() is not None
    source = open_source(ImageSettings(source="mine", limit=4))
    assert (source.name, len(source)) == ("mine", 4)
    assert sorted(source.labels(i)["label"] for i in range(4)) == ["even", "even", "odd", "odd"]
    open_source("mine")
    assert len(made) == 2  # once by this test: a function is called once, when the images are first needed


@pytest.mark.parametrize("given", ["array", "list of paths", "folder", "data set", "source"])
def test_what_open_source_takes_can_be_registered(given, tmp_path):
    from PIL import Image

    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    saetool.register_source(
        "mine",
        {
            "array": PIXELS,
            "list of paths": sorted(tmp_path.iterdir()),
            "folder": tmp_path,
            "data set": torch.utils.data.TensorDataset(torch.from_numpy(PIXELS)),
            "source": open_source(PIXELS),
        }[given],
    )
    source = open_source("mine")
    assert (source.name, len(source)) == ("mine", 8)
    np.testing.assert_array_equal(np.asarray(source.read(5).image), PIXELS[5])


def test_a_folder_may_be_registered_by_its_own_name(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    Image.fromarray(PIXELS[0]).save(tmp_path / "mine" / "0.png")
    saetool.register_source("mine", "mine")
    assert open_source("mine").path(0) == "0.png"


def test_a_store_of_a_registered_source_is_opened_again_by_its_name(tmp_path):
    saetool.register_source("mine", pairs)
    backbone = saetool.load_backbone(saetool.vision.BackboneSettings(name="pixels/gray", image_size=12, layers=[1]))
    for number, images in enumerate((ImageSettings(source="mine"), open_source("mine"))):
        store = saetool.cache(backbone, images, None, tmp_path / str(number), SMALL)
        again = open_cached(store)
        assert [again.path(i) for i in range(8)] == ActivationStore(store).images["path"].to_pylist()
        np.testing.assert_array_equal(np.asarray(again.read(2).image), PIXELS[2])
    registry.SOURCES.known.clear()
    registry._made.clear()
    with pytest.raises(RequestError, match=r"'mine' was registered by the module .*test_registry, .* SAETOOL_SOURCES="):
        open_cached(store)


def test_a_folders_store_is_opened_where_it_was_though_its_name_is_registered_now(tmp_path):
    from PIL import Image

    (tmp_path / "mine").mkdir()
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / "mine" / f"{i}.png")
    backbone = saetool.load_backbone({"name": "pixels/gray", "image_size": 12, "layers": [1]})
    store = saetool.cache(backbone, open_source(tmp_path / "mine"), None, tmp_path / "store", SMALL)
    assert store.content["source"]["source"] == "mine"
    saetool.register_source("mine", PIXELS[:2])
    assert [open_cached(store).path(i) for i in (0, 7)] == ["0.png", "7.png"]


def test_a_module_that_the_environment_lists_is_imported_for_an_unknown_name(tmp_path, monkeypatch):
    (tmp_path / "pictures_of_mine.py").write_text(
        "import numpy, saetool\nsaetool.register_source('theirs', numpy.zeros((3, 4, 4), 'uint8'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RequestError, match="there is no theirs"):
        open_source("theirs")
    monkeypatch.setenv("SAETOOL_SOURCES", "pictures_of_mine")
    assert len(open_source("theirs")) == 3
    monkeypatch.setenv("SAETOOL_SOURCES", "no_such_module")
    with pytest.raises(RequestError, match="SAETOOL_SOURCES: no_such_module failed: ModuleNotFoundError"):
        open_source("others")


def test_the_entry_point_of_an_installed_package_is_a_name(tmp_path, monkeypatch):
    (tmp_path / "shipped.py").write_text("import numpy\ndef pictures():\n    return numpy.zeros((3, 4, 4), 'uint8')\n")
    facts = tmp_path / "shipped-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: shipped\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[saetool.sources]\nshipped-set = shipped:pictures\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert len(open_source("shipped-set")) == 3
    assert registry.registered_in("shipped-set") == "shipped"


@pytest.mark.parametrize("name", ["elpv", "hf", "folder", "a/b", "", "1st", 7, "a b"])
def test_names_that_mean_something_else_are_refused(name):
    with pytest.raises(RequestError, match="cannot name a source"):
        saetool.register_source(name, PIXELS)


def test_a_function_that_fails_or_returns_nothing_is_said():
    saetool.register_source("broken", lambda: 1 / 0)
    with pytest.raises(RequestError, match=r"images\.source: broken failed: ZeroDivisionError: division by zero"):
        open_source("broken")
    saetool.register_source("empty", lambda: None)
    with pytest.raises(RequestError, match="registered as 'empty' returns nothing"):
        open_source("empty")


def test_nothing_that_stands_in_an_artifact_is_imported(monkeypatch):
    """A name in a store is a name: a module's path in its place opens nothing."""
    monkeypatch.delitem(sys.modules, "antigravity", raising=False)
    for name in ("antigravity:geohash", "antigravity.geohash", "antigravity"):
        with pytest.raises(RequestError, match="there is no antigravity"):
            open_source(name)
    assert "antigravity" not in sys.modules
