"""Test that our pickler yields the same buffers of arrays as `pickle`: PickleBuffer objects of the same views."""

import ctypes
import gc
import pickle
import weakref

import numpy as np
import pytest
import zoo

from pyray_ser import _pickle, _unpickle

NUMBERS = {
    f"{letter}{shape}{order}": lambda letter=letter, shape=shape, order=order: (
        np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(letter, order=order)
    )
    for letter in "?bBhHiIlLqQefdgFDG"
    for shape, order in [
        ((), "C"),
        ((0,), "C"),
        ((1,), "C"),
        ((5,), "C"),
        ((2, 3), "C"),
        ((2, 3, 4), "F"),
        ((0, 3), "F"),
    ]
}
ODD = {
    "one of every second": lambda: np.arange(10.0)[::2][:1],
    "unaligned": lambda: np.frombuffer(bytearray(17), "u1")[1:].view("f8"),
    "backwards order": lambda: np.arange(3.0).astype(">f8"),
    "read-only": lambda: _frozen(np.arange(6).reshape(2, 3)),
    "warns on write": lambda: np.broadcast_arrays(np.arange(3.0), np.ones((1, 3)))[0],
    "32 axes": lambda: np.ones((1,) * 31 + (2,)),
}
ALL = {**NUMBERS, **ODD, **zoo.PLAIN}

SIMPLE, WRITABLE, FORMAT, ND, STRIDES = 0, 1, 4, 8, 0x18
C, F, ANY, INDIRECT = 0x38, 0x58, 0x98, 0x118
REQUESTS = {
    base | extra
    for base in (SIMPLE, ND, STRIDES, C, F, ANY, INDIRECT)
    for extra in (0, WRITABLE, FORMAT, WRITABLE | FORMAT)
}


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # this test triggers the warnings on purpose


class Buffer(ctypes.Structure):
    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.POINTER(ctypes.c_ssize_t)),
        ("strides", ctypes.POINTER(ctypes.c_ssize_t)),
        ("suboffsets", ctypes.POINTER(ctypes.c_ssize_t)),
        ("internal", ctypes.c_void_p),
    ]


get_buffer, release_buffer = ctypes.pythonapi.PyObject_GetBuffer, ctypes.pythonapi.PyBuffer_Release
get_buffer.argtypes, release_buffer.argtypes = (
    [ctypes.py_object, ctypes.POINTER(Buffer), ctypes.c_int],
    [ctypes.c_void_p],
)


def _frozen(array):
    array.flags.writeable = False
    return array


def answer(exporter, flags):
    """Return all fields of the buffer that a request with these flags returns, or "refused"."""
    view = Buffer()
    try:
        get_buffer(exporter, ctypes.byref(view), flags)
    except (BufferError, ValueError):
        return "refused"
    fields = [view.buf, view.len, view.itemsize, view.readonly, view.ndim, view.format, bool(view.suboffsets)]
    fields += [field[: view.ndim] if field else None for field in (view.shape, view.strides)]
    release_buffer(ctypes.addressof(view))
    return fields


def buffers_of(dumps, obj):
    taken = []
    stream = dumps(obj, 5, buffer_callback=taken.append)
    return taken, stream


def seen(buffer):
    view = memoryview(buffer)
    return (
        *(view.format, view.itemsize, view.ndim, view.shape, view.strides, view.readonly, view.nbytes),
        *(view.c_contiguous, view.f_contiguous, view.tobytes(), buffer.raw().tobytes(), buffer.raw().readonly),
    )


@pytest.mark.parametrize("name", ALL)
def test_views_are_those_of_pickle(name):
    array = ALL[name]()
    ours, theirs = buffers_of(_pickle.dumps, array)[0], buffers_of(pickle.dumps, array)[0]
    assert [type(buffer) for buffer in ours] == [pickle.PickleBuffer] * len(theirs)
    assert [seen(buffer) for buffer in ours] == [seen(buffer) for buffer in theirs]


@pytest.mark.parametrize("name", ALL)
def test_each_request_is_answered_as_by_pickle(name):
    def answers(dumps, flags):
        array = ALL[name]()  # created for each request, because a request may change it
        got = [answer(buffer, flags) for buffer in buffers_of(dumps, array)[0]]
        start = array.__array_interface__["data"][0]
        return [fields if fields == "refused" else [fields[0] - start, *fields[1:]] for fields in got]

    for flags in REQUESTS:
        assert answers(_pickle.dumps, flags) == answers(pickle.dumps, flags), flags


def test_the_format_of_most_arrays_is_not_asked_of_numpy():
    (buffer,), _ = buffers_of(_pickle.dumps, np.ones(3))
    exporter = memoryview(buffer).obj
    assert type(exporter).__name__ == "ArrayBuffer" and exporter.array.tolist() == [1, 1, 1]
    with pytest.raises(TypeError, match="cannot create"):
        type(exporter)()


@pytest.mark.parametrize("shape", [(6,), (2, 3)], ids=str)
@pytest.mark.parametrize("order", "CF")
def test_an_array_changed_since_is_asked_itself(shape, order):
    def reshaped(array):
        array.shape = (3, 2)

    def other_dtype(array):
        array.dtype = "i8"

    def other_sign(array):
        array.dtype = ">f8"

    def frozen(array):
        array.flags.writeable = False

    for change in (reshaped, other_dtype, other_sign, frozen):
        array = np.arange(6.0).reshape(shape, order=order)
        ours, theirs = buffers_of(_pickle.dumps, array)[0], buffers_of(pickle.dumps, array)[0]
        old = memoryview(ours[0])
        before = old.tobytes()
        try:
            change(array)
        except AttributeError:  # this change is not possible without a copy
            continue
        for flags in REQUESTS:
            assert answer(ours[0], flags) == answer(theirs[0], flags), (change.__name__, flags)
        assert old.tobytes() == before and old.shape in (shape, shape[::-1])


def test_a_buffer_holds_its_array_and_no_more():
    array = np.arange(5.0)
    alive = weakref.ref(array)
    (buffer,), stream = buffers_of(_pickle.dumps, array)
    view = memoryview(buffer)
    del array
    assert alive() is not None and pickle.loads(stream, buffers=[buffer]).tolist() == [0, 1, 2, 3, 4]
    buffer.release()
    assert view.tolist() == [0, 1, 2, 3, 4]
    gc.disable()
    try:
        del buffer, view
        assert alive() is None
    finally:
        gc.enable()


def test_what_is_read_over_it_is_the_array_s_memory():
    array = np.arange(5.0)
    buffers, stream = buffers_of(_pickle.dumps, array)
    for loads in (pickle.loads, _unpickle.loads):
        again = loads(stream, buffers=buffers)
        again[0] = 7
        assert array[0] == 7 and again.flags.writeable
        array[0] = 0


@pytest.mark.parametrize("letter", "?bBhHiIlLqQefdgFDG")
def test_a_dtype_given_a_state_is_written_with_it(letter):
    plain = np.ones(2, letter)
    first = _pickle.dumps(plain, 5)
    own = np.dtype(letter, copy=True)
    array = np.ndarray(2, own, bytearray(2 * own.itemsize))
    assert array.dtype is own
    assert pickle.loads(_pickle.dumps(array, 5)).dtype.metadata is None
    _, order, *rest = own.__reduce__()[2]
    own.__setstate__((4, order, *rest, {"unit": "m"}))
    assert pickle.loads(_pickle.dumps(array, 5)).dtype.metadata == {"unit": "m"}
    assert _pickle.dumps(plain, 5) == first
