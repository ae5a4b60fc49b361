"""What a caching job says it waited for is what it waited for."""

import threading
import time

import pytest

from saetool.activations import CacheSettings, cache, waits
from saetool.activations.waits import Waits
from saetool.activations.writer import StoreWriter
from saetool.images import ImageSettings, open_source
from saetool.progress import bar


def slowly(items, seconds):
    for item in items:
        time.sleep(seconds)
        yield item


def test_waiting_for_pictures_counts_as_decoding():
    noted = Waits()
    assert list(noted.decoded(slowly(range(5), 0.02))) == [0, 1, 2, 3, 4]
    assert noted.shares()["decode"] > 0.9
    assert noted.shares()["disk"] == 0


def test_working_on_pictures_counts_as_the_model_s():
    noted = Waits()
    for _ in noted.decoded(range(5)):
        time.sleep(0.02)
    assert noted.shares()["forward"] > 0.9
    assert noted.words().startswith("time: decode ")


def test_waiting_behind_the_model_counts_as_the_disk_s_only_while_the_disk_is_waited_for():
    noted = Waits()
    with noted.behind():  # the model is not done yet
        time.sleep(0.05)
    assert noted.shares()["disk"] == 0
    begun, ended = threading.Event(), threading.Event()

    def write():
        with noted.disk():
            begun.set()
            ended.wait()

    thread = threading.Thread(target=write)
    thread.start()
    begun.wait()
    with noted.behind():
        time.sleep(0.05)
    ended.set()
    thread.join()
    assert 0.3 < noted.shares()["disk"] < 0.7


def test_a_slow_disk_is_what_a_job_says_it_waits_for(tiny, pictures, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("saetool.activations.caching.Waits", lambda: seen.append(Waits()) or seen[-1])
    write = StoreWriter.write_shard
    source = open_source(ImageSettings(source=str(pictures)))
    settings = CacheSettings(batch_size=2, shard_mb=1e-6)
    cache(tiny(), source, [1], tmp_path / "fast", settings)

    def slowed(self, *given):
        time.sleep(0.4)
        write(self, *given)

    monkeypatch.setattr(StoreWriter, "write_shard", slowed)
    cache(tiny(), source, [1], tmp_path / "slow", settings)
    fast, slow = seen
    assert slow.for_disk > 0.2
    assert slow.shares()["disk"] > fast.shares()["disk"]


@pytest.mark.parametrize(("decode", "said"), [(0.9, True), (0.2, False)])
def test_advice_is_given_where_decoding_was_the_limit(monkeypatch, capsys, decode, said):
    monkeypatch.setattr(waits, "_WORTH_SAYING", 0.0)
    noted = Waits()
    noted.started -= 100
    noted.for_decoding = decode * 100
    noted.advise("4 decoding threads")
    assert ("decoding is the limit: for 90%" in capsys.readouterr().err) == said


def test_short_work_is_not_worth_advice(capsys):
    noted = Waits()
    list(noted.decoded(slowly(range(2), 0.01)))
    noted.advise("4 decoding threads")
    assert capsys.readouterr().err == ""


def test_a_remark_stands_in_the_line_of_progress(capsys, monkeypatch):
    monkeypatch.setattr("saetool.progress.SECONDS_BETWEEN_LINES", 0.0)
    with bar("caching", 4, "images", remark=lambda: "time: decode 3%") as advance:
        advance(2)
    with bar("caching", 4, "images") as advance:
        advance(2)
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("s left; time: decode 3%")
    assert second.endswith("s left")
