"""Decoding in processes or in threads: the same slices, whoever decodes them; failures that name the image."""

import gc
import multiprocessing
import os
import signal
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from saetool.activations import CacheSettings
from saetool.activations.decoding import _PIECE, Decoder, _begin, _nothing_freed_in_forks, decoding_processes
from saetool.activations.writer import Plan
from saetool.errors import WorkError
from saetool.images import ImageSettings, open_source
from saetool.images.folder import FolderSource
from saetool.images.source import LabelColumn, SourceError

SITE = {"folder": "layer-01", "n_tokens": 16, "d": 12}
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def decoder_of(source, backbone, batch_size=5, on_error="fail", **given):
    plan = Plan(len(source), [SITE], CacheSettings(batch_size=batch_size))
    return Decoder(source, backbone.transform, plan, on_error, **given)


def told(decoder, numbers=None):
    """Return everything that a decoder says of its slices."""
    slices = decoder.slices(range(decoder.plan.n_slices) if numbers is None else numbers)
    return [(s.number, s.pixels.tolist(), s.kept, s.images, s.skipped, s.reasons) for s in slices]


class Watched(FolderSource):
    """Says, as labels, how many threads there are where an image is read."""

    def __init__(self, root):
        super().__init__(root)
        self.label_columns = [LabelColumn(name, "number") for name in ("torch", "system", "pid")]

    def labels(self, i):
        return {"torch": torch.get_num_threads(), "system": len(os.listdir("/proc/self/task")), "pid": os.getpid()}


@pytest.mark.parametrize("batch_size", [5, 2 * _PIECE + 1])
def test_processes_and_threads_decode_the_same_slices(tiny, pictures, batch_size):
    (pictures / "dogs/12.png").write_bytes(b"not a picture")
    source = open_source(ImageSettings(source=str(pictures)))
    given = {"batch_size": batch_size, "on_error": "skip"}
    threads = told(decoder_of(source, tiny(), threads=2, **given))
    assert threads == told(decoder_of(source, tiny(), threads=1, **given))
    assert threads == told(decoder_of(source, tiny(), processes=1, **given))
    assert threads == told(decoder_of(source, tiny(), processes=3, **given))
    assert sum(len(kept) for _, _, kept, *_ in threads) == 22


def test_slices_in_any_order_and_again_come_from_rooms_that_are_used_again(tiny, pictures):
    """More pieces than rooms, and a consumer slower than the processes; a slice may follow itself, as in a dry run."""
    source = open_source(ImageSettings(source=str(pictures)))
    numbers = [3, 0, 4, 4, 4, 1] * 4
    wanted = {number: pixels for number, pixels, *_ in told(decoder_of(source, tiny(), threads=1))}
    seen = []
    for decoded in decoder_of(source, tiny(), processes=2).slices(numbers):
        time.sleep(0.01)
        assert decoded.pixels.tolist() == wanted[decoded.number]
        seen.append(decoded.number)
    assert seen == numbers


def test_rows_of_a_dataset_are_decoded_in_processes_too(tiny, pictures, tmp_path):
    import datasets

    files = sorted(pictures.rglob("*.png"))
    columns = {
        "image": [{"bytes": file.read_bytes(), "path": None} for file in files],
        "label": list(range(len(files))),
    }
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).save_to_disk(tmp_path / "set")
    source = open_source(ImageSettings(source=str(tmp_path / "set")))
    assert source.forkable
    assert told(decoder_of(source, tiny(), processes=2)) == told(decoder_of(source, tiny(), threads=1))


def test_a_decoding_process_uses_one_thread(tiny, pictures):
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        slices = list(decoder_of(Watched(pictures), tiny(), processes=2).slices(range(5)))
    finally:
        torch.set_num_threads(before)
    rows = [row for decoded in slices for row in decoded.images]
    assert len(rows) == 23
    assert {row["torch"] for row in rows} == {1}
    assert max(row["system"] for row in rows) <= 2  # its own, and the one that puts answers into the pipe
    assert os.getpid() not in {row["pid"] for row in rows}


def test_pixels_are_what_the_transform_makes_of_the_picture(tiny, pictures):
    source, backbone = open_source(ImageSettings(source=str(pictures))), tiny()
    for decoded in decoder_of(source, backbone, processes=2).slices(range(5)):
        inputs = backbone.inputs(decoded.pixels)
        for place, row in zip(decoded.kept, decoded.images, strict=True):
            i = [source.path(i) for i in range(len(source))].index(row["path"])
            assert torch.equal(inputs[place], backbone.transform(source.read(i).image))


def test_a_process_says_which_image_cannot_be_read(tiny, pictures):
    (pictures / "dogs/12.png").write_bytes(b"not a picture")
    source = open_source(ImageSettings(source=str(pictures)))
    with pytest.raises(WorkError, match=r"dogs/12\.png cannot be read as an image") as found:
        told(decoder_of(source, tiny(), processes=2))
    assert "Traceback" not in str(found.value)
    assert multiprocessing.active_children() == []  # though the error, and with it its traceback, is still held


def test_a_source_that_is_gone_is_not_skipped_in_a_process(tiny, pictures):
    class Broken(FolderSource):
        def read(self, i):
            raise SourceError("the stream broke off")

    with pytest.raises(SourceError, match="broke off"):
        told(decoder_of(Broken(pictures), tiny(), processes=2, on_error="skip"))


def test_what_the_caller_left_is_never_collected_in_a_process(tiny, pictures, tmp_path):
    """A tensor on a GPU, say, that a child frees ends the child."""

    class Left:
        def __init__(self):
            self.itself = self

        def __del__(self):
            (tmp_path / str(os.getpid())).touch()

    class Collecting(FolderSource):
        def read(self, i):
            gc.collect()
            return super().read(i)

    gc.disable()
    try:
        Left()
        told(decoder_of(Collecting(pictures), tiny(), processes=2))
    finally:
        gc.enable()
    gc.collect()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [str(os.getpid())]


@pytest.mark.slow  # DataLoader looks after its processes every five seconds
def test_a_process_that_dies_ends_the_work_in_a_sentence(tiny, pictures):
    class Deadly(FolderSource):
        def read(self, i):
            if i == 7:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().read(i)

    with pytest.raises(WorkError, match=r"a decoding process has ended .*The same command resumes"):
        told(decoder_of(Deadly(pictures), tiny(), processes=2))


def test_processes_end_with_whoever_asked(tiny, pictures):
    slices = decoder_of(Watched(pictures), tiny(), processes=2).slices(range(5))
    pids = {int(row["pid"]) for decoded in islice(slices, 4) for row in decoded.images}
    slices.close()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow  # DataLoader looks after its processes every five seconds
def test_a_process_that_hangs_does_not_hold_who_leaves(tiny, pictures):
    class Gone(FolderSource):
        def read(self, i):
            if i >= 16:
                time.sleep(10**6)  # as a folder of a server that is not there any more
            return super().read(i)

    slices = decoder_of(Gone(pictures), tiny(), batch_size=8, processes=2).slices(range(3))
    assert next(slices).number == 0
    slices.close()
    assert multiprocessing.active_children() == []


def test_forks_protect_and_leave_alone_what_others_froze(tiny, pictures):
    gc.freeze()
    try:
        before = gc.get_freeze_count()
        told(decoder_of(FolderSource(pictures), tiny(), processes=1))
        assert gc.get_freeze_count() > before / 2  # some of them are gone by themselves
    finally:
        gc.unfreeze()
    with pytest.raises(ZeroDivisionError), _nothing_freed_in_forks():
        raise ZeroDivisionError
    assert gc.get_freeze_count() == 0


def test_a_source_that_stops_in_a_process_is_no_end(tiny, pictures):
    class Stopping(FolderSource):
        def read(self, i):
            if i == 7:
                raise StopIteration
            return super().read(i)

    with pytest.raises(RuntimeError, match="stopped in the middle") as found:
        told(decoder_of(Stopping(pictures), tiny(), processes=2))
    assert multiprocessing.active_children() == [], found  # though the error is still held


def test_a_process_whose_parent_was_killed_before_it_began_ends():
    """It would hold the parent's connections for good, and other processes of the job would wait for those."""
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        here = os.getpid()
        if os.fork() == 0:
            while os.getppid() == here:
                time.sleep(0.005)
            _begin(multiprocessing.get_context("fork").Lock(), here, 0)
            os.write(writing, b"it goes on")
        os._exit(0)
    os.waitpid(parent, 0)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        assert told.read() == b""


def test_decoding_draws_no_random_number_of_the_callers(tiny, pictures):
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    told(decoder_of(open_source(ImageSettings(source=str(pictures))), tiny(), processes=1))
    assert torch.equal(torch.rand(2), wanted)


@pytest.mark.parametrize(("cores", "processes"), [(1, 0), (4, 0), (5, 4), (16, 15), (256, 64)])
def test_processes_decode_where_there_are_more_than_four_cores(pictures, monkeypatch, cores, processes):
    monkeypatch.setattr("saetool.distributed.cores", lambda: cores)
    assert decoding_processes(open_source(ImageSettings(source=str(pictures)))) == processes


def test_sources_that_say_nothing_of_forks_are_read_by_threads(monkeypatch, pictures):
    monkeypatch.setattr("saetool.distributed.cores", lambda: 16)
    assert decoding_processes(open_source(ImageSettings(source=f"file://{pictures}"))) == 0
    assert decoding_processes(object()) == 0


def test_the_job_s_other_processes_share_the_cores(monkeypatch):
    from saetool import distributed

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    assert distributed.cores() == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert distributed.cores() == 2


def test_the_gpu_way_of_normalizing_gives_the_same_numbers(tiny):
    """It looks values up in one table of all channels: here on the CPU."""
    transform = tiny().transform
    values = torch.arange(256, dtype=torch.uint8)[:, None, None].expand(256, 16, 3)
    pixels = torch.stack([values[i * 16 : (i + 1) * 16] for i in range(16)])
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8))
    for given in (pixels, noise):
        assert torch.equal(transform._look_up(given), transform.normalize(given))
    assert transform.normalize(noise).is_contiguous()
    assert transform._look_up(noise).is_contiguous()
