"""What a caching job says it waited for is what it waited for."""

import time
from types import SimpleNamespace

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


def test_waiting_behind_the_model_counts_as_the_model_s_and_the_disk_alone_as_nobody_s():
    noted = Waits()
    with noted.behind():  # the model is not done yet
        time.sleep(0.05)
    assert noted.shares()["disk"] == 0
    with noted.disk():  # nobody waits for it
        time.sleep(0.05)
    assert noted.shares()["disk"] == 0


@pytest.mark.parametrize("first", ["the disk", "waiting"])
def test_the_disk_s_part_is_counted_whichever_began_first(monkeypatch, first):
    now = [100.0]
    monkeypatch.setattr("saetool.activations.waits.time", SimpleNamespace(monotonic=lambda: now[0]))
    noted = Waits()
    disk, behind = noted.disk(), noted.behind()
    for context in (disk, behind) if first == "the disk" else (behind, disk):
        context.__enter__()
        now[0] += 1.0  # one of the two alone
    now[0] += 2.0  # both
    for context in (behind, disk) if first == "the disk" else (disk, behind):
        context.__exit__(None, None, None)
        now[0] += 4.0  # the other alone
    assert noted.for_disk == 3.0


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
