"""Test that paths into object arrays and pandas frames look like the indexing that users write."""

import threading

import numpy as np
import pytest

import pyray_ser
from pyray_ser.inspection import inspect_size

lock = threading.Lock()


def paths(value):
    """Return the paths of the lock in `value` according to `put`, `dumps` and the inspector."""
    with pytest.raises(TypeError) as caught:
        pyray_ser.put(value)
    said = str(caught.value).partition(" (at ")[2].removesuffix(")")
    with pytest.raises(TypeError) as caught:
        pyray_ser.dumps(value)
    (note,) = caught.value.__notes__
    _, failures = pyray_ser.util.inspect_serializability(value, print_file=open("/dev/null", "w"))
    (failure,) = failures
    assert note == f"at {said} of the object being pickled" and failure.path == said
    return said


@pytest.mark.parametrize(
    ("array", "path"),
    [
        (np.array([1, lock, 3], dtype=object), "[1]"),
        (np.array([[1, 2], [lock, 3]], dtype=object), "[1, 0]"),
        (np.asfortranarray(np.array([[1, 2, 0], [4, lock, 3]], dtype=object)), "[1, 1]"),
        (np.array([[[1, 2], [3, 4]], [[5, 6], [lock, 8]]], dtype=object), "[1, 1, 0]"),
        (np.array(lock, dtype=object), "[]"),
    ],
)
def test_an_item_of_an_object_array_is_named_by_its_index(array, path):
    assert paths(array) == path
    assert paths({"a": array}) == f"['a']{path}"


def test_an_item_inside_an_item_of_an_object_array():
    array = np.empty(3, dtype=object)
    array[2] = {"k": [lock]}
    assert paths([array]) == "[0][2]['k'][0]"


@pytest.fixture
def pandas():
    return pytest.importorskip("pandas")


def test_a_cell_of_a_frame_is_named_by_its_column(pandas):
    assert paths(pandas.DataFrame({"n": [1, 2], "handle": [None, lock]})) == "['handle'][1]"
    frame = pandas.DataFrame({"a": [None, 1], "n": [1, 2], "b": [lock, 2], "c": [{}, 3]}, dtype=object)
    assert paths(frame) == "['b'][0]"
    assert paths({"frames": [frame.assign(x=1.5)]}) == "['frames'][0]['b'][0]"
    assert paths(pandas.DataFrame([[1, {"k": lock}]], columns=[10, 20])) == "[20][0]['k']"


def test_an_item_of_a_series_is_named_by_its_position(pandas):
    assert paths(pandas.Series([1, lock])) == "[1]"
    assert paths([pandas.Series([lock, 2], index=["x", "y"])]) == "[0][0]"


def test_what_hangs_at_a_frame_besides_its_columns(pandas):
    frame = pandas.DataFrame({"n": [1]})
    frame.attrs["source"] = lock
    assert paths(frame).endswith("['source']")
    assert paths(pandas.DataFrame({"n": [1, 2]}, index=pandas.Index([lock, 2], dtype=object))) == ".index[0]"


def test_columns_are_named_where_bytes_are(pandas):
    frame = pandas.DataFrame({name: np.arange(10_000.0) + i for i, name in enumerate("abc")})
    frame["text"] = pandas.Series(["x" * 2000] * 3 + [None] * 9997, dtype=object)
    sizes = inspect_size(frame.copy(), "frame")
    for name in "abc":
        assert sizes[f"frame['{name}']"].zero_copy == pytest.approx(80_000, rel=0.01)
    assert sizes["frame['text']"].total > 2000 and "_mgr" not in str(sizes)
    assert sizes.zero_copy == pytest.approx(240_000, rel=0.01)


def test_a_frame_of_very_many_columns_lists_some(pandas):
    frame = pandas.DataFrame(np.zeros((200, 1000)))
    sizes = inspect_size(frame)
    assert len(sizes.root.children) <= 256 and sizes.root.others >= 700
    assert sizes.zero_copy == frame.size * 8
