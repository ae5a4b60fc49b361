"""A folder behind an fsspec address is the folder: order, labels, digests, listing, damage."""

import fsspec
import pytest
from PIL import Image

from saetool.errors import RequestError, WorkError
from saetool.images import ImageSettings, open_source

NAMES = ["dog/1.png", "cat/deep/é.png", "cat/a-1.PNG", "cat/.hidden.png", ".thumbs/2.png", "cat/notes.txt", "b.png"]


@pytest.fixture
def local(tmp_path):
    folder = tmp_path / "pictures"
    for i, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4 + i, 5), (i, 20 * i, 7)).save(folder / name, format="PNG")
    return folder


@pytest.fixture
def memory(local):
    """The same folder in memory://."""
    files = fsspec.filesystem("memory")
    for name in NAMES:
        files.pipe_file(f"/bucket/pictures/{name}", (local / name).read_bytes())
    yield "memory://bucket/pictures"
    files.rm("/bucket", recursive=True)


def opened(address, **fields):
    return open_source(ImageSettings(source=str(address), **fields))


@pytest.mark.parametrize("address", ["memory://bucket/pictures", "memory://bucket/pictures/", "file://{local}"])
def test_an_address_gives_what_the_folder_gives(address, local, memory):
    here, there = opened(local), opened(address.format(local=local))
    assert len(there) == 4
    assert there.listing() == here.listing()
    assert there.label_columns == here.label_columns
    for i in range(len(here)):
        assert (there.path(i), there.size_hint(i), there.labels(i)) == (here.path(i), here.size_hint(i), here.labels(i))
        assert there.read(i).digest == here.read(i).digest
        assert there.read(i).image.tobytes() == here.read(i).image.tobytes()
    assert there.name == here.name
    assert len(opened(memory, limit=2)) == 2


def test_moved_data_may_be_at_an_address(local, memory):
    source = open_source(ImageSettings(source=str(local)), root=memory)
    assert source.root == "memory:///bucket/pictures"
    assert source.listing() == opened(local).listing()


def test_a_damaged_or_vanished_file_is_named_with_its_address(memory):
    files, source = fsspec.filesystem("memory"), opened(memory)
    files.pipe_file("/bucket/pictures/b.png", b"no image")
    with pytest.raises(WorkError, match=r"memory:///bucket/pictures/b\.png.*on_error=skip"):
        source.read(0)
    files.rm_file("/bucket/pictures/b.png")
    with pytest.raises(WorkError, match=r"memory:///bucket/pictures/b\.png cannot be read"):
        source.read(0)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("memory://bucket/nothing", "no image files below memory://"),
        ("file:///nowhere/at/all", "file:///nowhere"),
        ("strange://bucket/x", "strange://bucket/x cannot be opened"),
    ],
)
def test_an_address_without_images_is_refused(address, message):
    with pytest.raises(RequestError, match=message):
        opened(address)


class Bare(fsspec.AbstractFileSystem):
    """A driver that can list one folder at a time, as those of SFTP and SMB do."""

    protocol = "bare"
    shut = False

    def ls(self, path, detail=True, **_):
        path = self._strip_protocol(path).strip("/")
        if path == "root":
            return [{"name": f"root/{name}", "type": "directory", "size": 0} for name in ("open", "shut")]
        if self.shut and path == "root/shut":
            raise PermissionError(13, "Permission denied", path)
        return [{"name": f"{path}/a.png", "type": "file", "size": 3}]


def test_a_folder_of_any_driver_that_cannot_be_listed_is_named(monkeypatch):
    fsspec.register_implementation("bare", Bare, clobber=True)
    source = open_source("bare://root")
    assert [source.path(i) for i in range(len(source))] == ["open/a.png", "shut/a.png"]
    monkeypatch.setattr(Bare, "shut", True)
    with pytest.raises(RequestError, match=r"cannot be listed: .*Permission denied"):
        open_source("bare://root")
