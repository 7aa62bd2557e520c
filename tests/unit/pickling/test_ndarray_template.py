"""Test that `pickle` and our unpickler load the same array from a stream, and load no array from a hostile stream."""

import pickle
import pickletools
import struct
import sys

import pytest

np = pytest.importorskip("numpy")

from pyray_ser import _ndarray  # noqa: E402

RECORD = np.dtype((np.record, [("a", "i4"), ("b", "f8")]))


def _zoo():
    base = np.arange(24, dtype="f8")
    cube = base.reshape(2, 3, 4)
    yield "0-d", np.array(3.5)
    yield "empty", np.empty((0,))
    yield "empty-3d", np.empty((3, 0, 2), "i4")
    yield "empty-fortran", np.empty((3, 0, 2), "i4", order="F")
    yield "1-d", base
    yield "c-order", cube
    yield "fortran", np.asfortranarray(cube)
    yield "permuted", cube.transpose(1, 0, 2)
    yield "strided", base[::2]
    yield "columns", cube[:, :, :2]
    yield "reversed", base[::-1]
    yield "broadcast", np.broadcast_to(base[:4], (1000, 4))
    yield "broadcast-scalar", np.broadcast_to(np.float32(1.5), (5, 6))
    yield "broadcast-strided", np.broadcast_to(base[::2], (7, 12))
    yield "broadcast-column", np.broadcast_to(base[:5].reshape(5, 1), (5, 9))
    yield "windows", np.lib.stride_tricks.sliding_window_view(base, 5)
    yield "windows-strided", np.lib.stride_tricks.sliding_window_view(base[::2], 5)
    yield "length-one-axis", base[3:4][:, None][::-1]
    yield "32 axes", np.ones((1,) * 32)
    yield "unaligned", np.frombuffer(b"x" + bytes(range(80)), "u1")[1:].view("f8")
    yield "read-only", np.frombuffer(bytes(16), "i4")
    yield "long", np.zeros(70_000, "u1")
    for name in "? b B h H i I l L q Q e f d g F D G S5 U3 V7 M8[ns] M8[25s] m8[D] M8 m8 M8[Y]".split():
        dtype = np.dtype(name)
        raw = bytes(range(48 * dtype.itemsize % 256, 0, -1)) * (2 * dtype.itemsize + 1)
        if dtype.kind in "?bU":
            raw = bytes(len(raw))
        array = np.frombuffer(raw[: 6 * dtype.itemsize], dtype).copy()
        yield f"native {name}", array
        yield f"swapped {name}", array.astype(dtype.newbyteorder())


ZOO = list(_zoo())


def _same(a, b):
    assert type(a) is type(b) is np.ndarray
    assert a.dtype == b.dtype and a.dtype.str == b.dtype.str and a.shape == b.shape
    assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("array", [pytest.param(a, id=n) for n, a in ZOO])
class TestZoo:
    def test_plain_pickle_reads_what_is_written(self, array):
        stream, data = _ndarray.template_put(array)
        pickletools.dis(stream, out=open("/dev/null", "w"))
        _same(pickle.loads(stream, buffers=[bytearray(data)]), array)

    def test_writability_of_the_original_is_kept_by_plain_pickle(self, array):
        stream, data = _ndarray.template_put(array)
        assert pickle.loads(stream, buffers=[bytearray(data)]).flags.writeable == array.flags.writeable

    def test_round_trip(self, array):
        stream, data = _ndarray.template_put(array)
        again = _ndarray.from_stream(stream, data)
        _same(again, array)
        assert again.flags.f_contiguous == array.flags.f_contiguous or not array.flags.forc

    def test_agrees_with_plain_pickle_in_layout(self, array):
        stream, data = _ndarray.template_put(array)
        ours, plain = _ndarray.from_stream(stream, data), pickle.loads(stream, buffers=[data])
        assert ours.strides == plain.strides
        assert ours.flags.c_contiguous == plain.flags.c_contiguous
        assert ours.flags.f_contiguous == plain.flags.f_contiguous

    def test_result_is_read_only_for_good(self, array):
        stream, data = _ndarray.template_put(array)
        again = _ndarray.from_stream(stream, data)
        assert not again.flags.writeable and not again.flags.owndata
        with pytest.raises(ValueError, match="WRITEABLE"):
            again.setflags(write=True)

    def test_every_truncation_is_refused(self, array):
        stream, data = _ndarray.template_put(array)
        for end in range(len(stream)):
            assert _ndarray.from_stream(stream[:end], data) is None
        assert _ndarray.from_stream(stream + b".", data) is None

    def test_buffer_one_byte_short_is_refused(self, array):
        stream, data = _ndarray.template_put(array)
        if data:
            assert _ndarray.from_stream(stream, data[:-1]) is None
        _same(_ndarray.from_stream(stream, data + b"\0"), array)

    def test_no_byte_of_the_stream_can_be_changed_into_a_crash(self, array):
        stream, data = _ndarray.template_put(array)
        for at in range(len(stream)):
            for value in (0, 1, 0x28, 0x29, 0x4E, 0x7F, 0x80, 0x8A, 0xFF):
                changed = bytearray(stream)
                changed[at] = value
                try:
                    again = _ndarray.from_stream(changed, data)
                except (ValueError, MemoryError):
                    continue
                if again is not None and again.nbytes < 1 << 20:
                    again.tobytes()


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("fortran", 192),
        ("permuted", 192),
        ("strided", 96),
        ("reversed", 192),
        ("columns", 96),
        ("broadcast", 32),
        ("broadcast-scalar", 4),
        ("broadcast-strided", 96),
        ("broadcast-column", 40),
        ("windows", 192),
    ],
)
def test_only_the_bytes_that_are_shown_are_stored(name, stored):
    assert len(_ndarray.template_put(dict(ZOO)[name])[1]) == stored


def test_hidden_bytes_are_not_stored():
    secret = np.frombuffer(bytearray(b"SECRET" * 100), "u1")
    for view in (
        secret[::6],
        np.lib.stride_tricks.as_strided(secret, (50, 3), (12, 0)),
        np.lib.stride_tricks.as_strided(secret, (40, 2), (12, 12)),
        np.lib.stride_tricks.as_strided(secret, (90, 2, 2), (6, 6, 0)),
    ):
        assert set(_ndarray.template_put(view)[1]) == set(b"S")


class Sub(np.ndarray):
    pass


@pytest.mark.parametrize(
    "other",
    [
        np.array([None]),
        np.zeros(2, "i4,f8"),
        np.zeros(2, RECORD),
        np.zeros(2, np.dtype((np.record, 8))),
        np.zeros(2, [("a", "S0"), ("b", "i4")])["a"],
        np.zeros(2, np.dtype("f8", metadata={"a": 1})),
        np.zeros(2).view(Sub),
        np.ma.array([1, 2]),
        np.float64(2),
        memoryview(b"x"),
        None,
        [1],
        *([np.array(["a"], np.dtypes.StringDType())] if hasattr(np.dtypes, "StringDType") else []),
        *([np.zeros((1,) * 40)] if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else []),
    ],
    ids=lambda o: f"{type(o).__name__}-{getattr(o, 'dtype', '')}",
)
def test_others_have_no_template(other):
    assert _ndarray.template_put(other) is None


def _stream(shape, dtype, strides=None, tail=b"tR."):
    def ints(values):
        return (
            b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", v) for v in values) + b"t"
            if len(values) > 3
            else (
                b"".join(b"\x8a\x08" + struct.pack("<q", v) for v in values)
                + [b")", b"\x85", b"\x86", b"\x87"][len(values)]
            )
        )

    return (
        b"\x80\x05\x8c\x05numpy\x8c\x07ndarray\x93("
        + ints(shape)
        + b"\x8c"
        + bytes([len(dtype)])
        + dtype
        + b"\x97K\0"
        + (b"N" if strides is None else ints(strides))
        + tail
    )


def test_hand_made_stream_is_read():
    _same(
        _ndarray.from_stream(_stream((2, 2), b"<i4"), bytes(range(16))),
        np.frombuffer(bytes(range(16)), "<i4").reshape(2, 2),
    )


@pytest.mark.parametrize(
    "stream",
    [
        _stream((2,), b"O"),
        _stream((2,), b"|O8"),
        _stream((2,), b"i4,i4"),
        _stream((2,), b"(2,)i4"),
        _stream((2,), b"i4"),
        _stream((2,), b"|S0"),
        _stream((2,), b"|V0"),
        _stream((2,), b""),
        _stream((2,), b"\xff\xfe"),
        _stream((2,), b"|V9223372036854775807"),
        _stream((-1,), b"<i4"),
        _stream((2**62,), b"<i4"),
        _stream((2**62, 2**62), b"<i4"),
        _stream((2, 2), b"<i4", (8,)),
        _stream((2, 2), b"<i4", (-8, 4)),
        _stream((2, 2), b"<i4", (2**62, 4)),
        _stream((3,), b"<i4", (-(2**63),)),
        _stream((2**40, 2**40), b"<i4", (0, 0)),
        _stream((5,), b"<i4"),
        _stream((4,), b"<i4", tail=b"t)R."),
        b"",
        b"\x80\x05N.",
    ],
    ids=repr,
)
def test_what_does_not_fit_is_left_to_the_general_unpickler(stream):
    assert _ndarray.from_stream(stream, bytes(16)) is None


def test_many_dtype_names_do_not_confuse_the_cache():
    for size in list(range(1, 300)) * 2:
        array = np.zeros(2, f"S{size}")
        _same(_ndarray.from_stream(*_ndarray.template_put(array)), array)


def test_many_kinds_of_arrays_do_not_confuse_what_is_kept_about_streams():
    # There are more streams than the cache has entries. The test reads each stream after other streams have replaced
    # its entry, and then immediately once more.
    kinds = [
        np.arange(n * m, dtype=dtype).reshape(n, m) for n in range(1, 8) for m in (1, 2, 300) for dtype in ("f8", ">i2")
    ]
    kinds += [np.asfortranarray(array) for array in kinds] + [array[:, 0] for array in kinds]
    for array in kinds * 2:
        stream, data = _ndarray.template_put(array)
        first, second = _ndarray.from_stream(stream, data), _ndarray.from_stream(stream, data)
        assert first is not second
        _same(first, array)
        _same(second, array)
        assert second.flags.forc == array.flags.forc or not array.flags.forc


def test_a_stream_met_before_is_checked_against_each_buffer():
    stream, data = _ndarray.template_put(np.arange(6, dtype="i4"))
    _same(_ndarray.from_stream(stream, data), np.arange(6, dtype="i4"))
    assert _ndarray.from_stream(stream, data[:-1]) is None
    assert _ndarray.from_stream(stream, b"") is None
    longer = _ndarray.from_stream(stream, data + bytes(8))
    assert longer.nbytes == 24
    shifted = memoryview(bytes(64))[1:25]
    aligned = _ndarray.from_stream(stream, shifted).flags.aligned
    assert aligned == (np.frombuffer(shifted, "i4").ctypes.data % 4 == 0)
    assert not aligned or not _ndarray.from_stream(stream, memoryview(bytes(64))[2:26]).flags.aligned


def test_one_byte_makes_another_stream():
    array = np.arange(40.0).reshape(8, 5)
    stream, data = _ndarray.template_put(array)
    for at in range(len(stream)):
        for value in (stream[at] ^ 1, stream[at] ^ 0x80, 0, 0xFF):
            _same(_ndarray.from_stream(stream, data), array)
            changed = stream[:at] + bytes([value]) + stream[at + 1 :]
            ours = _ndarray.from_stream(changed, data)
            if ours is not None:
                _same(ours, pickle.loads(changed, buffers=[data]))


def test_base_is_the_owner_and_nothing_leaks():
    data = bytearray(800)
    stream, _ = _ndarray.template_put(np.zeros(100))
    array = _ndarray.from_stream(stream, data, writable=True)
    array[0] = 7
    assert data[:8] == struct.pack("<d", 7)
    assert isinstance(array.base, memoryview)
    with pytest.raises(BufferError):
        data.clear()
    del array
    data.clear()


def test_references_are_balanced():
    array = np.arange(12.0).reshape(3, 4)[:, ::2]
    stream, data = _ndarray.template_put(array)
    _ndarray.from_stream(stream, data)  # from now on, the cache entry of the stream has a reference to the dtype
    before = sys.getrefcount(array), sys.getrefcount(array.dtype), sys.getrefcount(data)
    for _ in range(100):
        _ndarray.template_put(array)
        _ndarray.from_stream(stream, data)
        _ndarray.from_stream(stream, data[:4])
    assert (sys.getrefcount(array), sys.getrefcount(array.dtype), sys.getrefcount(data)) == before


def test_audit_event_is_fired():
    events = []

    def hook(event, args):
        if event == "pickle.find_class" and watching:
            events.append(args)

    watching = True
    sys.addaudithook(hook)
    for _ in range(3):
        _ndarray.from_stream(*_ndarray.template_put(np.zeros(3)))
    watching = False
    assert events == [("numpy", "ndarray")] * 3


def test_a_hook_may_read_arrays_and_refuse_them():
    wanted = np.arange(7.0)
    stream, data = _ndarray.template_put(wanted)
    others = [_ndarray.template_put(np.zeros(n, f"S{m}")) for n in range(1, 20) for m in range(1, 20)]
    todo = []

    def hook(event, args):
        if event == "pickle.find_class" and todo:
            todo.pop()()

    def read_others():
        for other in others:
            _ndarray.from_stream(*other)

    sys.addaudithook(hook)
    for _ in range(3):
        todo.append(read_others)
        _same(_ndarray.from_stream(stream, data), wanted)
        _same(_ndarray.from_stream(stream, data), wanted)
    todo.append(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _ndarray.from_stream(stream, data)
    _same(_ndarray.from_stream(stream, data), wanted)
