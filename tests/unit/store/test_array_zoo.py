"""Test that every kind of array is restored exactly, alone and inside other values, in both modes."""

import pickle

import numpy as np
import pytest
import zoo

import pyray_ser

ALL = {**zoo.PLAIN, **zoo.OTHER}


@pytest.mark.parametrize("name", ALL)
def test_alone(name):
    array = ALL[name]()
    zoo.assert_same(pyray_ser.get(pyray_ser.put(array)), array)


@pytest.mark.parametrize("name", ALL)
def test_nested(name):
    array = ALL[name]()
    got = pyray_ser.get(pyray_ser.put({"a": [array, 1], "same": array}))
    zoo.assert_same(got["a"][0], array)
    assert got["same"] is got["a"][0]


@pytest.mark.parametrize("name", ALL)
def test_serialized(name):
    array = ALL[name]()
    zoo.assert_same(pyray_ser.deserialize(pyray_ser.serialize(array)), array)
    zoo.assert_same(pyray_ser.loads_frames(pyray_ser.dumps_frames([array]))[0], array)


@pytest.mark.parametrize("name", zoo.PLAIN)
@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: [a]], ids=["alone", "nested"])
def test_cannot_be_made_writable(name, wrap):
    got = pyray_ser.get(pyray_ser.put(wrap(zoo.PLAIN[name]())))
    got = got[0] if isinstance(got, list) else got
    assert not got.flags.writeable
    with pytest.raises(ValueError):
        got.setflags(write=True)
    if got.size:
        with pytest.raises(ValueError, match="read-only"):
            got[(0,) * got.ndim] = got[(0,) * got.ndim]


@pytest.mark.parametrize("name", zoo.PLAIN)
@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: [a]], ids=["alone", "nested"])
def test_mode_c_is_writable_and_private(name, wrap):
    array = zoo.PLAIN[name]()
    ref = pyray_ser.put(wrap(array))
    copy = pyray_ser.get(ref, mmap_mode="c")
    copy = copy[0] if isinstance(copy, list) else copy
    zoo.assert_same(copy, array)
    if array.flags.writeable:
        assert copy.flags.writeable
        copy[...] = np.zeros((), copy.dtype)
        assert (copy == np.zeros((), copy.dtype)).all()
    again = pyray_ser.get(ref)
    zoo.assert_same(again[0] if isinstance(again, list) else again, array)


@pytest.mark.parametrize("name", zoo.PLAIN)
def test_lies_in_the_store(name):
    array = zoo.PLAIN[name]()
    ref = pyray_ser.put(array)
    got = pyray_ser.get(ref)
    if got.nbytes == 0:
        return
    view = pyray_ser.get_buffer(ref)
    if isinstance(view, list):
        if len(view) == 1:  # the array is in the stream: it is below 1 KiB, and no short name describes its dtype
            assert got.nbytes < 1024
            return
        view = view[1]
    start = np.frombuffer(view, "u1").ctypes.data
    assert zoo.in_store(got, (start, start + view.nbytes))


@pytest.mark.parametrize("name", zoo.PLAIN)
def test_stream_is_plain_pickle(name):
    array = zoo.PLAIN[name]()
    stream, *buffers = pyray_ser.dumps_frames(array)[1:]
    zoo.assert_same(pickle.loads(stream, buffers=buffers), array)


def test_broadcast_travels_as_its_base():
    ref = pyray_ser.put(np.broadcast_to(np.float64(7), (1000, 1000)))
    assert ref.size < 500
    assert pyray_ser.get(ref).strides == (0, 0)


def test_views_of_one_base_are_stored_once():
    base = np.arange(100_000.0)
    ref = pyray_ser.put([base, base[10:], base[:-10].reshape(-1, 10), base[500:700]])
    assert ref.size < base.nbytes * 1.01 + 4096
    whole, tail, head, middle = pyray_ser.get(ref)
    assert np.shares_memory(whole, tail) and np.shares_memory(whole, head) and np.shares_memory(whole, middle)
    for got, expected in (
        (whole, base),
        (tail, base[10:]),
        (head, base[:-10].reshape(-1, 10)),
        (middle, base[500:700]),
    ):
        zoo.assert_same(got, expected)


def test_overlapping_views_without_their_base_are_stored_once():
    base = np.arange(100_000.0)
    ref = pyray_ser.put((base[:60_000], base[40_000:]))
    assert ref.size < base.nbytes * 1.01 + 4096
    first, second = pyray_ser.get(ref)
    assert (first == base[:60_000]).all() and (second == base[40_000:]).all()
    assert np.shares_memory(first, second)


def test_alignment():
    small, large = np.arange(2000, dtype="u1"), np.arange(300_000, dtype="u1")
    for got in pyray_ser.get(pyray_ser.put([small, large, small[1:].copy()])):
        assert got.ctypes.data % (4096 if got.nbytes >= 256 * 1024 else 64) == 0
    assert pyray_ser.get(pyray_ser.put(large)).ctypes.data % 4096 == 0


def test_put_copies():
    array = np.arange(10.0)
    ref = pyray_ser.put(array)
    array[:] = -1
    assert (pyray_ser.get(ref) == np.arange(10.0)).all()


def test_get_makes_a_new_array_each_time():
    ref = pyray_ser.put(np.arange(10.0))
    first, second = pyray_ser.get(ref), pyray_ser.get(ref)
    assert first is not second
    assert first.ctypes.data == second.ctypes.data
