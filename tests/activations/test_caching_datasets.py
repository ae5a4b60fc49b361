"""Caching a Hugging Face dataset from local Parquet or Arrow files, and as a stream that breaks off and resumes."""

import io
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from saetool.activations import ActivationStore, CacheSettings, cache
from saetool.activations.live import Images, LiveStream
from saetool.artifacts import verify
from saetool.errors import WorkError
from saetool.images import ImageSettings, open_source

datasets = pytest.importorskip("datasets")

SETTINGS = CacheSettings(dtype="float32", batch_size=4, shard_mb=1e-6)
ROWS = 23


@pytest.fixture
def parquet(tmp_path):
    """Return a folder of two Parquet files with 23 pictures in two classes."""
    contents = []
    for i in range(ROWS):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 20, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        contents.append(file.getvalue())
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    table = {"image": [{"bytes": c, "path": None} for c in contents], "label": [i % 2 for i in range(ROWS)]}
    whole = datasets.Dataset.from_dict(table, features=features)
    for part, rows in enumerate((range(11), range(11, ROWS))):
        whole.select(rows).to_parquet(str(tmp_path / "data" / f"train-{part}.parquet"))
    return tmp_path / "data", whole


def source_of(path, **fields):
    return open_source(ImageSettings(source=str(path), **fields))


def test_parquet_arrow_and_stream_give_the_same_rows_and_labels(tiny, parquet, tmp_path):
    folder, whole = parquet
    whole.save_to_disk(str(tmp_path / "arrow"))
    sources = {
        "parquet": source_of(folder),
        "arrow": source_of(tmp_path / "arrow"),
        "stream": source_of(folder, streaming=True, first=ROWS),
    }
    stores = {}
    for name, source in sources.items():
        cache(tiny(), source, None, tmp_path / "stores" / name, SETTINGS)
        assert verify(tmp_path / "stores" / name) == []
        stores[name] = ActivationStore.open(tmp_path / "stores" / name)
    first = stores["parquet"]
    assert first.images["label"].to_pylist() == ["cat", "dog"] * 11 + ["cat"]
    assert first.images["path"].to_pylist() == [f"{i:09d}" for i in range(ROWS)]
    for store in stores.values():
        assert store.images.equals(first.images)
        for layer in (1, 3):
            assert store.site(layer).rows(0, ROWS).equal(first.site(layer).rows(0, ROWS))


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_stream_that_breaks_off_resumes_to_the_same_store(tiny, parquet, tmp_path, monkeypatch, on_error):
    from saetool.images.stream import RowStream

    folder, _ = parquet
    expected = cache(tiny(), source_of(folder, streaming=True, first=ROWS), None, tmp_path / "whole", SETTINGS)

    def breaking(rows, start):
        """Yield rows, of which the line gives fifteen."""
        for i, row in enumerate(rows, start):
            if i == 15:
                raise ConnectionError("the line is dead")
            yield row

    begin = RowStream.__init__
    with monkeypatch.context() as patch:
        patch.setattr(
            RowStream, "__init__", lambda self, start, name: begin(self, lambda i: breaking(start(i), i), name)
        )
        source = source_of(folder, streaming=True, first=ROWS)
        with pytest.raises(WorkError, match="broke off at row 15"):
            cache(tiny(), source, None, tmp_path / "broken", SETTINGS, on_error=on_error)
    kept = sorted((tmp_path / "broken.partial/layer-01").glob("*.safetensors"))
    times = [path.stat().st_mtime_ns for path in kept]
    assert kept
    source = source_of(folder, streaming=True, first=ROWS)
    resumed = cache(tiny(), source, None, tmp_path / "broken", SETTINGS, on_error=on_error)
    assert resumed.id == expected.id
    assert [(tmp_path / "broken/layer-01" / path.name).stat().st_mtime_ns for path in kept] == times


def test_live_training_reads_a_stream_once_an_epoch(tiny, parquet, monkeypatch):
    """Slices in another order than the stream's would read it from its first row again and again."""
    monkeypatch.setattr("saetool.images.stream.STREAM_BUFFER", 8)  # more than the images asked for ahead
    source = source_of(parquet[0], streaming=True, first=ROWS)
    read, begun = [], []
    row, start = type(source._rows)._read, source._rows._start
    monkeypatch.setattr(type(source._rows), "_read", lambda self: read.append(1) or row(self))
    monkeypatch.setattr(source._rows, "_start", lambda i: begun.append(i) or start(i))
    backbone = tiny(layers=(3,))
    images = Images(backbone, backbone.sites[0], source, CacheSettings(dtype="float32", batch_size=2))
    stream = LiveStream(images, 16, 6 * images.tokens, seed=0, held_out=0.2)
    epochs = 3
    for _ in islice(stream.batches(), epochs * stream.n_rows // 16):
        pass
    # Threads ask a little out of order where an epoch begins; one epoch more may be begun in the background.
    assert max(begun) < 8
    assert epochs * ROWS <= len(read) <= (epochs + 2) * (ROWS + 8)
