"""Chunks carry arrays and texts unchanged, and no text can leave its string."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from saetool.report.chunks import DTYPES, bitmap, pack, smallest_unsigned, unpack


@given(st.text(), st.lists(st.sampled_from(DTYPES), max_size=5), st.data())
def test_round_trip(text, dtypes, data):
    arrays = {
        f"a{i}": np.array(data.draw(st.lists(st.integers(0, 100), max_size=9)), dtype) for i, dtype in enumerate(dtypes)
    }
    name, found, values = unpack(pack("block/1", arrays, {"text": text, text: [text]}))
    assert name == "block/1"
    assert values["text"] == text or text == "text"
    assert found.keys() == arrays.keys()
    for key, array in arrays.items():
        assert found[key].dtype == array.dtype
        assert found[key].tolist() == array.tolist()


@given(st.text())
def test_no_text_ends_a_script(text):
    script = pack("x", {}, {"t": f"</script>{text}<!--\u2028"})
    assert script.isascii()
    assert b"<" not in script
    assert script.count(b"\n") == 1


def test_arrays_are_aligned():
    script = pack("x", {"a": np.ones(3, np.uint8), "b": np.ones(1, np.float64), "c": np.ones(3, np.int16)})
    header = script.decode().split("{", 1)[1]
    assert header.index('"b"') < header.index('"c"') < header.index('"a"')


def test_what_is_no_chunk_is_refused():
    good = pack("x", {"a": np.arange(4, dtype=np.int32)})
    for bad in (b"alert(1);\n", good + b"alert(1);\n", good.replace(b",4]", b",5]"), good.replace(b"int32", b"object")):
        with pytest.raises(ValueError, match=r".+"):
            unpack(bad)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="int64"):
        pack("x", {"a": np.arange(3)})


@pytest.mark.parametrize(("largest", "bits"), [(0, 8), (255, 8), (256, 16), (65_535, 16), (65_536, 32)])
def test_smallest_unsigned(largest, bits):
    assert smallest_unsigned(largest) == np.dtype(f"uint{bits}")


def test_bitmap_has_the_first_member_lowest():
    assert bitmap(np.array([1, 0, 0, 0, 0, 0, 0, 0, 0, 1], bool)).tolist() == [1, 2]
