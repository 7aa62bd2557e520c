"""Test that setting the state of one array's dtype does not change other arrays of that dtype."""

import pickle

import isolated
import pytest

np = pytest.importorskip("numpy")

from pyray_ser import _ndarray, _unpickle  # noqa: E402
from pyray_ser.util import SAFE_NUMPY  # noqa: E402

ONLY_DTYPE = frozenset({"numpy:dtype"})
MAKE = b"\x8c\x02f8\x89\x88\x87R"
HEAD = b"\x80\x05\x8c\x05numpy\x8c\x05dtype\x93\x94" + MAKE
END = b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
DTYPE = b"h\0"


def state(order, middle=b"NNN"):
    return b"(K\x03\x8c\x01" + order + middle + END


def stream_of(name):
    name = name.encode()
    return b"\x80\x05\x8c\x05numpy\x8c\x07ndarray\x93(K\x01\x85\x8c" + bytes([len(name)]) + name + b"\x97K\0NtR."


@pytest.mark.parametrize("orders", [b"<", b">", b"<>", b"><", b"<><", b"|<", b"<|"], ids=bytes.decode)
def test_each_state_counts_as_it_does_in_pickle(orders):
    stream = HEAD + b"".join(state(bytes([order])) for order in orders) + b"."
    wanted, ours = pickle.loads(stream), _unpickle.loads(stream, allow=ONLY_DTYPE)
    assert (ours.str, ours.byteorder) == (wanted.str, wanted.byteorder)
    assert ours is not np.dtype(wanted.str) and ours is not _unpickle.loads(stream)
    assert np.dtype("f8").str == "<f8" and np.ones(2).tobytes() == np.ones(2, "<f8").tobytes()


@pytest.mark.parametrize("name", [">f8", "<f8"])
def test_a_second_state_stays_with_the_dtype_that_got_it(name):
    array = np.arange(3.0).astype(name)
    stream, data, old = stream_of(name).replace(b"K\x01\x85", b"K\x03\x85"), array.tobytes(), pickle.dumps(array, 5)
    assert _ndarray.from_stream(stream, data).tolist() == _unpickle.loads(old).tolist() == [0, 1, 2]
    for first, second in (b"><", b"<>"):
        evil = HEAD + state(bytes([first])) + state(bytes([second])) + b"."
        assert _unpickle.loads(evil, allow=SAFE_NUMPY).str == pickle.loads(evil).str
        assert _ndarray.from_stream(stream, data).tolist() == [0, 1, 2]
        assert _ndarray.from_stream(stream, data).dtype.str == name
        assert _unpickle.loads(old).tolist() == [0, 1, 2]


def test_the_dtype_of_a_whole_call_is_its_own():
    # The dtype that a stream passes to the array's constructor is in the memo, so later opcodes can fetch it.
    array = np.arange(3.0).astype(">f8")
    stream = _unpickle_dumps(array)
    first, second = _unpickle.loads(stream), _unpickle.loads(stream)
    assert first.dtype is not second.dtype
    first.dtype.__setstate__((3, "<", None, None, None, -1, -1, 0))
    assert second.tolist() == _unpickle.loads(stream).tolist() == [0, 1, 2]


def _unpickle_dumps(value):
    from pyray_ser import dumps

    return dumps(value)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("|S10", (3, "|", None, None, None, 4096, 1, 0)),
        ("|V10", (3, "|", None, None, None, 4096, 1, 0)),
        ("<U4", (3, "<", None, None, None, 4096, 4, 0)),
        ("<U4", (3, "<", None, None, None, 16, 1, 0)),
        ("<U4", (3, ">", None, None, None, 16, 4, 0)),
        ("|S10", (3, "|", None, None, None, 10, 1, 0x3F)),
        ("<f8", (3, ">", None, None, None, -1, -1, 0)),  # this dtype is a singleton of numpy: the state has no effect
        ("<f8", (3, "<", None, ("a",), {"a": (np.dtype("O"), 0)}, -1, -1, 0x3F)),
        ("|b1", (3, ">", (np.dtype("?"), (1000,)), None, None, -1, -1, 0x3F)),
        (">f8", (3, "<", None, None, None, -1, -1, 0)),
        (">f8", (3, ">", (np.dtype("f8"), (1000,)), None, None, -1, -1, 0)),
        (">f8", (3, ">", None, ("a",), {"a": (np.dtype("O"), 0)}, -1, -1, 0x3F)),
        ("<M8[ns]", (4, "<", None, None, None, -1, -1, 0, ({}, (b"s", 1, 1, 1)))),
        ("<M8[ns]", (4, "<", None, None, None, -1, -1, 0, ({"a": 1}, (b"ns", 1, 1, 1)))),
    ],
    ids=repr,
)
@pytest.mark.parametrize("times", [1, 2])
def test_a_state_given_to_an_arrays_dtype_stays_there(name, given, times):
    dtype = np.dtype(name)
    buffer = bytes(dtype.itemsize)
    stream = stream_of(name)
    for _ in range(times):  # the second read finds the stream in the cache
        array = _ndarray.from_stream(stream, buffer)
    array.dtype.__setstate__(given)
    for _ in range(3):
        fresh = _ndarray.from_stream(stream, buffer)
        assert fresh.dtype == dtype and fresh.dtype.str == name and fresh.dtype.metadata is None
        assert fresh.dtype.alignment == dtype.alignment and fresh.dtype.flags == dtype.flags
        assert fresh.shape == (1,) and fresh.nbytes == len(buffer)


def test_a_hook_may_give_the_kept_dtype_a_state():
    isolated.run("""
        import sys
        import numpy as np
        from pyray_ser import _ndarray
        stream = b"\\x80\\x05\\x8c\\x05numpy\\x8c\\x07ndarray\\x93(K\\x02\\x85\\x8c\\x04|S10\\x97K\\0NtR."
        arrays, armed = [_ndarray.from_stream(stream, bytes(20)) for _ in range(2)], []

        def hook(event, args):
            if event == "pickle.find_class" and armed:
                armed.pop()
                arrays[-1].dtype.__setstate__((3, "|", None, None, None, 4096, 1, 0))

        sys.addaudithook(hook)
        armed.append(1)
        array = _ndarray.from_stream(stream, bytes(20))
        assert not armed and array.dtype.str == "|S10" and array.nbytes == 20
    """)


FORGED = {
    "objects": b"N\x8c\x01a\x85}\x8c\x01a" + DTYPE + MAKE.replace(b"f8", b"O8") + b"K\0\x86s" + END[:10] + b"K\x3ftb.",
    "larger": DTYPE + MAKE + b"M\xe8\x03\x85\x86NNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb.",
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_state_does_not_reach_the_arrays_of_the_store(kind):
    evil = HEAD + state(b">") + b"(K\x03\x8c\x01>" + FORGED[kind]
    isolated.run(f"""
        import pickle
        import numpy as np
        import pyray_ser
        from pyray_ser import _unpickle
        from pyray_ser.util import SAFE_NUMPY
        pyray_ser.init(capacity=4 << 20)
        wanted = np.arange(100.0).astype(">f8")
        ref = pyray_ser.put(wanted)
        assert pyray_ser.get(ref).nbytes == 800
        for allow in (None, SAFE_NUMPY):
            try:
                forged = _unpickle.loads({evil!r}, allow=allow)
            except pickle.UnpicklingError:
                continue
            raise AssertionError(forged)
        for allow in (None, SAFE_NUMPY):
            array = pyray_ser.get(ref, allow=allow)
            assert array.shape == (100,) and array.dtype.names is None and not array.dtype.hasobject
            assert array.tolist() == wanted.tolist()
        pyray_ser.shutdown()
    """)


def test_records_of_python_2_load_with_their_names_as_bytes():
    # NumPy wrote this for np.array([(9e123,)], [("name", float)]) under Python 2; NumPy decodes names that are bytes.
    stream = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1\ntcnumpy\ndtype\n(S'V8'\nI0\nI1\ntR(I3\n"
        b"S'|'\nN(S'name'\nt(dS'name'\n(cnumpy\ndtype\n(S'f8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI0\ntsI8\nI1\nI0\ntb"
        b"I00\nS'O\\x81\\xb7Z\\xaa:\\xabY'\ntb."
    )
    wanted = pickle.loads(stream, encoding="bytes")
    ours = _unpickle.loads(stream, encoding="bytes")
    assert ours.dtype == wanted.dtype == np.dtype([("name", "f8")])
    assert ours.tolist() == wanted.tolist() == [(9e123,)]
    with pytest.raises(pickle.UnpicklingError, match="no known version or byte order"):
        _unpickle.loads(stream, encoding="bytes", allow=SAFE_NUMPY)
    for damaged in (b"(dS'\\xe9'", b"(dS'other'"):
        with pytest.raises(pickle.UnpicklingError, match="NumPy cannot make"):
            _unpickle.loads(stream.replace(b"(dS'name'", damaged), encoding="bytes")


@pytest.mark.parametrize("title", [b"S'title'\n", b"Vtitle\n"], ids=["str", "unicode"])
def test_titles_of_python_2_load_with_their_names_as_bytes(title):
    field = b"(cnumpy\ndtype\n(S'i4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI0\n" + title + b"t"
    stream = (
        b"cnumpy\ndtype\n(S'V4'\nI0\nI1\ntR(I3\nS'|'\nN(S'name'\nt"
        b"(dS'name'\n" + field + b"s" + title + field + b"sI4\nI1\nI16\ntb."
    )
    wanted = pickle.loads(stream, encoding="bytes")
    ours = _unpickle.loads(stream, encoding="bytes")
    assert ours == wanted and ours.names == ("name",) and dict(ours.fields) == dict(wanted.fields)
    assert np.zeros(3, ours)["name"].tolist() == [0, 0, 0]
    again = _unpickle.loads(_unpickle_dumps(ours))
    assert dict(again.fields) == dict(ours.fields)
    assert _unpickle.loads(stream, encoding="latin1").fields["title"] == wanted.fields["name"][:2] + ("title",)


@pytest.mark.parametrize("title", [b"title", "title", 3, ("a", "title")], ids=repr)
def test_titles_of_any_type_load(title):
    wanted = np.dtype({"names": ["a", "b"], "formats": ["i4", "f8"], "titles": [title, None]})
    assert dict(_unpickle.loads(_unpickle_dumps(wanted)).fields) == dict(wanted.fields)
    if isinstance(title, str | bytes):
        assert dict(_unpickle.loads(_unpickle_dumps(wanted), allow=ONLY_DTYPE).fields) == dict(wanted.fields)
    else:
        with pytest.raises(pickle.UnpicklingError, match="neither str nor bytes"):
            _unpickle.loads(_unpickle_dumps(wanted), allow=ONLY_DTYPE)


def test_a_title_that_leads_elsewhere_is_refused():
    wanted = np.dtype({"names": ["a", "b"], "formats": ["i4", "i4"], "titles": ["one", "two"]})
    stream = pickle.dumps(wanted, 2)
    assert _unpickle.loads(stream) == wanted
    # Give the field `a` the title of `b`, and then a title that no field has; only safe mode refuses the second title.
    state = wanted.__reduce__()[2]
    for one, strict_only in (("two", False), ("three", True)):
        fields = {**state[4], "a": (*state[4]["a"][:2], one)}
        if strict_only:
            fields.pop("one")
        forged = pickle.dumps(_Forged(wanted, (*state[:4], fields, *state[5:])), 2)
        with pytest.raises(pickle.UnpicklingError, match="no name of its field"):
            _unpickle.loads(forged, allow=ONLY_DTYPE)
        if strict_only:
            assert _unpickle.loads(forged) == pickle.loads(forged)
        else:
            with pytest.raises(pickle.UnpicklingError, match="no name of its field"):
                _unpickle.loads(forged)


class _Forged:
    def __init__(self, dtype, state):
        self.reduced = (*dtype.__reduce__()[:2], state)

    def __reduce__(self):
        return self.reduced
