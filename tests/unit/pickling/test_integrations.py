"""Test that reducers of `put` restore values exactly and keep all large data outside of the stream."""

import array
import builtins
import ctypes
import io
import pickle
import sys

import numpy as np
import pytest
from inband import engine, load, put  # noqa: F401

import pyray_ser
from pyray_ser import reconstruct
from pyray_ser.inspection.debug_pickler import Pickler
from pyray_ser.pickling import reducers

SMALL = 4096  # maximum size of a stream in bytes, without the data


def round_trip(value, out_of_band=None):
    """Return the loaded value, after checking how many bytes were stored outside the stream."""
    stream, buffers = put(value)
    moved = sum(buffer.nbytes for buffer in buffers)
    if out_of_band is not None:
        assert moved == out_of_band
        assert len(stream) <= SMALL, len(stream)
    return load(stream, buffers)


def same_array(a, b):
    assert type(a) is type(b)
    assert a.dtype == b.dtype and a.dtype.type is b.dtype.type
    assert a.shape == b.shape
    assert a.dtype.byteorder == b.dtype.byteorder
    if a.dtype.kind in "fcmM":
        assert np.array_equal(a.astype(a.dtype.newbyteorder("=")), b.astype(b.dtype.newbyteorder("=")), equal_nan=True)
    else:
        assert (np.asarray(a) == np.asarray(b)).all()


# ---- numpy ---------------------------------------------------------------------------------------

BASE = np.arange(24_000.0).reshape(20, 30, 40)
RECORD = np.zeros(2000, [("a", "<i4"), ("b", ">f8"), ("c", "S5"), ("d", "<i2", (2, 3))])
RECORD["a"] = np.arange(2000)
RECORD["d"] = np.arange(12_000).reshape(2000, 2, 3)

ARRAYS = {
    "plain": BASE,
    "fortran": np.asfortranarray(BASE),
    "transposed": BASE.transpose(2, 0, 1),
    "strided": BASE[::2, 1:20, ::3],
    "reversed": BASE[::-1, :, ::-1],
    "column": BASE.reshape(600, 40)[:, :10],
    "big-endian": BASE.astype(">f8"),
    "big-endian strided": BASE.astype(">i4")[:, ::2],
    "bool": BASE % 2 == 0,
    "complex": BASE + 1j,
    "half": BASE.astype("f2"),
    "long double": BASE.astype("g"),
    "text": BASE.astype("U9"),
    "text strided": BASE.astype("U9")[::2],
    "bytes": BASE.astype("S9"),
    "datetime64": np.arange("2000-01-01", "2020-01-01", dtype="M8[D]"),
    "datetime64 strided": np.arange("2000-01-01", "2020-01-01", dtype="M8[D]")[::3],
    "datetime64 with NaT": np.array(["NaT", "2020-01-01"] * 500, "M8[ns]"),
    "timedelta64": np.arange(5000).astype("m8[25us]"),
    "void": np.frombuffer(bytes(range(250)) * 40, "V10"),
    "structured": RECORD,
    "structured strided": RECORD[::3],
    "structured field": RECORD["d"],
    "aligned": RECORD.astype(np.dtype([("x", "i1"), ("y", "f8")], align=True).fields and
                             np.dtype([("a", "i1"), ("b", "f8"), ("c", "S5"), ("d", "i2", (2, 3))], align=True)),
    "recarray": RECORD.view(np.recarray),
    "recarray strided": RECORD.view(np.recarray)[::2],
    "matrix": np.matrix(BASE.reshape(600, 40)),
    "matrix transposed": np.matrix(BASE.reshape(600, 40)).T,
}  # fmt: skip


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays(kind):
    value = ARRAYS[kind]
    back = round_trip(value, value.nbytes)
    same_array(value, back)
    assert not back.flags.writeable
    with pytest.raises(ValueError):
        back.flags.writeable = True
    if value.flags.f_contiguous:
        assert back.flags.f_contiguous


@pytest.mark.parametrize(
    "value",
    [
        np.broadcast_to(np.float64(3), (1000, 1000)),
        np.broadcast_to(np.arange(500.0), (1000, 500)),
        np.broadcast_to(np.arange(500.0)[:, None], (500, 300)),
        np.broadcast_to(RECORD[:300], (50, 300)),
        np.broadcast_to(np.array("2020", "M8[D]"), (400, 400)),
    ],
    ids=["scalar", "row", "column", "records", "datetime"],
)
def test_broadcast_travels_as_its_base(value):
    stream, buffers = put(value)
    base = value[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in value.strides)]
    assert len(stream) + sum(buffer.nbytes for buffer in buffers) < base.nbytes + 1500
    back = load(stream, buffers)
    same_array(value, back)
    assert [s == 0 for s in back.strides] == [s == 0 for s in value.strides]


@pytest.mark.parametrize("shape", [(), (0,), (0, 5), (5, 0, 3), (1,), (1, 1)])
@pytest.mark.parametrize("dtype", ["f8", ">i4", "M8[s]", [("a", "i4"), ("b", "S3")]])
def test_degenerate_shapes(shape, dtype):
    value = np.zeros(shape, dtype)
    same_array(value, round_trip(value))


def test_dtype_metadata_and_nested_records():
    dtype = np.dtype([("p", [("x", "f4"), ("y", "f4")]), ("n", "U3")])
    value = np.zeros(1000, dtype)
    value["p"]["x"] = 7
    same_array(value, round_trip(value, value.nbytes))


def test_object_arrays_keep_identity():
    shared = ["s"]
    value = np.array([shared, shared, None], object)
    back = round_trip(value)
    assert back[0] is back[1] and back[2] is None


MASKED = {
    "masked": np.ma.MaskedArray(BASE, BASE % 3 == 0),
    "no mask": np.ma.MaskedArray(BASE),
    "fill value": np.ma.MaskedArray(BASE, BASE > 5, fill_value=-1),
    "hard mask": np.ma.MaskedArray(BASE, BASE > 5, hard_mask=True),
    "strided": np.ma.MaskedArray(BASE, BASE > 5)[::2],
    "records": np.ma.MaskedArray(RECORD, fill_value=None),
    "datetime": np.ma.MaskedArray(ARRAYS["datetime64"], ARRAYS["datetime64"].astype(int) % 2 == 0),
}


@pytest.mark.parametrize("kind", MASKED)
def test_masked_arrays(kind):
    value = MASKED[kind]
    mask_bytes = 0 if value._mask is np.ma.nomask else value._mask.nbytes
    back = round_trip(value, value.data.nbytes + mask_bytes)
    assert type(back) is np.ma.MaskedArray
    same_array(value.data, back.data)
    assert (back.mask == value.mask).all()
    assert (back._mask is np.ma.nomask) == (value._mask is np.ma.nomask)
    assert back.hardmask == value.hardmask
    assert repr(back.fill_value) == repr(value.fill_value)
    assert (back._fill_value is None) == (value._fill_value is None)


def test_masked_constant_stays_itself():
    assert round_trip(np.ma.masked) is np.ma.masked


class TestStringDType:
    pytestmark = pytest.mark.skipif(
        not hasattr(np, "dtypes") or not hasattr(np.dtypes, "StringDType"), reason="numpy 2"
    )
    ITEMS = ("a", "", "ä漢😀", "x" * 1000, "\0b\0", "fifteen bytes..", "sixteen bytes...")

    @staticmethod
    def same(back, value):
        assert type(back) is np.ndarray and back.dtype == value.dtype and back.shape == value.shape
        assert getattr(back.dtype, "coerce", None) == getattr(value.dtype, "coerce", None)
        assert back.flags.f_contiguous == value.flags.f_contiguous or not value.flags.forc
        for a, b in zip(back.ravel().tolist(), value.ravel().tolist(), strict=True):
            assert type(a) is type(b) and (a == b or (a != a and b != b)), (a, b)

    @pytest.mark.parametrize(
        "options",
        [{}, {"coerce": False}, {"na_object": None}, {"na_object": float("nan")}, {"na_object": "missing"},
         {"na_object": None, "coerce": False}],
        ids=str,
    )  # fmt: skip
    def test_every_dtype(self, options):
        dtype = np.dtypes.StringDType(**options)
        items = list(self.ITEMS) * 100
        if options.get("na_object", "") != "":
            items[3::7] = [options["na_object"]] * len(items[3::7])
        value = np.array(items, dtype).reshape(50, -1)
        stream, buffers = put(value)
        assert len(stream) < SMALL
        # The buffers hold UTF-8 text, two bytes for each length and one byte that marks a missing value, but no Python
        # strings.
        assert sum(map(len, map(bytes, buffers))) < 110_000
        self.same(load(stream, buffers), value)
        self.same(round_trip(value[:0], 0), value[:0])
        self.same(pickle.loads(stream, buffers=buffers), value)

    @pytest.mark.parametrize(
        "view",
        [lambda a: a[::2], lambda a: a[::-1, 1:3], lambda a: a.T, lambda a: a[:, :0], lambda a: a[3, 2], lambda a: a[7:8, 5],
         lambda a: a[3:4, 2].reshape(()), lambda a: np.broadcast_to(a[0], (9, 7)), lambda a: a.reshape(10, 5, 2, 7)],
        ids=list("abcdefghi"),
    )  # fmt: skip
    def test_every_order(self, view):
        value = view(np.array(list(self.ITEMS) * 100, np.dtypes.StringDType()).reshape(100, 7))
        if type(value) is str:
            assert load(*put(value)) == value
        else:
            self.same(load(*put(value)), value)

    def test_lengths_of_four_bytes(self):
        value = np.array(["y" * 70_000, "z"], np.dtypes.StringDType())
        self.same(load(*put(value)), value)

    def test_in_a_store_it_is_a_copy_of_the_readers_own(self):
        value = np.array(list(self.ITEMS) * 1000, np.dtypes.StringDType())
        back = pyray_ser.get(pyray_ser.put(value))
        self.same(back, value)
        back[0] = "changed"
        self.same(pyray_ser.get(pyray_ser.put(value)), value)

    @pytest.mark.parametrize(
        "text, lengths, width, missing, says",
        [
            (b"abc", b"\1\3", 1, None, "exceed"),
            (b"abc", b"\xff" * 16, 8, None, "exceed"),
            (b"abc", b"\1", 1, None, "as many"),
            (b"abc", b"\1\1\1", 1, None, "as many"),
            (b"abc", b"\1\1\1", 2, None, "1, 2, 4 or 8"),
            (b"abc", b"\1\1\1", 3, None, "1, 2, 4 or 8"),
            (b"abc", b"\1\1", 1, b"\1", "as many"),
            (b"abc", b"\1\1", 1, b"\1\0", "no missing"),
            (b"\xc3\xa4", b"\1\1", 1, None, "UTF-8"),
            (b"\xff", b"\1\0", 1, None, "UTF-8"),
            (b"\xed\xa0\x80", b"\3\0", 1, None, "UTF-8"),
            (b"\xc0\x80", b"\2\0", 1, None, "UTF-8"),
            (b"\xf4\x90\x80\x80", b"\4\0", 1, None, "UTF-8"),
            (b"12345678\xe6\xbc", b"\x0a\0", 1, None, "UTF-8"),
        ],
    )
    def test_what_a_stream_says_is_checked(self, text, lengths, width, missing, says):
        with pytest.raises(ValueError, match=says):
            reconstruct.strings((2,), np.dtypes.StringDType(), text, lengths, width, missing, "C")

    def test_utf8_is_judged_as_python_does(self):
        rng = np.random.default_rng(5)
        alphabet = [bytes([value]) for value in b"a\x80\xbf\xc2\xe0\xa0\xed\x9f\xef\xf0\x90\xf4\x8f\xf5"]
        accepted = 0
        for _ in range(4000):
            text = b"".join(alphabet[i] for i in rng.integers(0, len(alphabet), rng.integers(1, 6)))
            text = b"x" * int(rng.integers(0, 9)) + text
            try:
                expected = text.decode()
            except UnicodeDecodeError:
                with pytest.raises(ValueError):
                    reconstruct.strings((), np.dtypes.StringDType(), text, bytes([len(text)]), 1, None, "C")
            else:
                accepted += 1
                assert (
                    reconstruct.strings((), np.dtypes.StringDType(), text, bytes([len(text)]), 1, None, "C")[()]
                    == expected
                )
        assert accepted > 100

    def test_other_arrays_are_refused(self):
        from pyray_ser import _ndarray

        for other in (np.zeros(3), [1], None):
            with pytest.raises(TypeError):
                _ndarray.strings_out(other)
            with pytest.raises(TypeError):
                _ndarray.strings_in(other, b"", b"", 1)


def test_memmap(tmp_path):
    value = np.memmap(tmp_path / "m", "f8", "w+", shape=(1000, 3))
    value[:] = 3
    back = round_trip(value, value.nbytes)
    same_array(value, back)
    same_array(value[::2], round_trip(value[::2]))


def test_subclasses_of_users_are_left_to_themselves():
    class Mine(np.ndarray):
        pass

    reducers.find(np.ndarray)
    assert reducers.find(Mine) is None


@pytest.mark.parametrize(
    "value",
    [np.float64(1.5), np.int8(3), np.complex64(1j), np.datetime64("2020-01-01"), np.str_("a"), np.bool_(True),
     np.longdouble(1) / 3, RECORD[3], np.void(b"abc")],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_scalars(value):
    back = round_trip(value)
    assert type(back) is type(value) and back == value and back.dtype == value.dtype


@pytest.mark.parametrize("bits", ["PCG64", "MT19937", "Philox", "SFC64"])
def test_random_generators_go_on_where_they_were(bits):
    generator = np.random.Generator(getattr(np.random, bits)(5))
    generator.random(7)
    assert (round_trip(generator).random(100) == generator.random(100)).all()


def test_legacy_random_state():
    state = np.random.RandomState(5)
    state.normal()
    assert (round_trip(state).normal(size=10) == state.normal(size=10)).all()


def test_same_array_twice_is_one_array():
    value = np.arange(1000.0)[::2]
    back = round_trip([value, value])
    assert back[0] is back[1]


# ---- the standard library ------------------------------------------------------------------------


@pytest.mark.parametrize("code", "bBhHiIlLqQfd")
def test_array_array(code):
    value = array.array(code, range(100)) * 50
    back = round_trip(value, len(value) * value.itemsize)
    assert type(back) is array.array and back.typecode == code and back == value
    back.append(1)


def test_array_array_of_text_and_empty():
    for value in (array.array("u", "äöü" * 1000), array.array("i")):
        back = round_trip(value)
        assert back == value and back.typecode == value.typecode


@pytest.mark.parametrize(
    "value",
    [
        memoryview(bytes(5000)),
        memoryview(bytearray(5000)),
        memoryview(bytes(range(250)) * 20)[::2],
        memoryview(bytes(range(250)) * 20)[::-1],
        memoryview(array.array("d", range(1000))),
        memoryview(array.array("i", range(1000)))[::3],
        memoryview(bytes(6000)).cast("B", (20, 300)),
        memoryview(bytes(6000)).cast("i", (15, 100)),
        memoryview(np.arange(6000.0).reshape(20, 300)),
        memoryview(np.arange(6000.0).reshape(20, 300).T),
        memoryview(np.arange(3000, dtype=">i4")),
        memoryview(RECORD),
        memoryview(np.array(5.0)),
        memoryview(b""),
        memoryview(np.zeros((0, 5))),
        memoryview(bytes(10)),
        memoryview(np.arange(5, dtype="f2")),
        memoryview(b"").cast("i"),
        memoryview(np.zeros(3, dtype=[("a", "i4"), ("b", "f8")])),
        memoryview(np.ones(3, complex)),
    ],
    ids=lambda view: f"{view.format}{view.shape}",
)
def test_memoryview(value):
    backs = [round_trip(value, value.nbytes if value.nbytes > 1024 else None)]
    backs += [pyray_ser.get(pyray_ser.put(value)), pyray_ser.get(pyray_ser.put([value]))[0]]
    for back in backs:
        assert type(back) is memoryview
        assert (back.format, back.shape, back.ndim) == (value.format, value.shape, value.ndim)
        assert back.tobytes() == value.tobytes()


def test_memoryviews_of_one_buffer():
    value = memoryview(bytes(5000))
    back = round_trip([value, value])
    assert back[0] is back[1]


def test_bytesio_keeps_position():
    value = io.BytesIO(bytes(5000))
    value.seek(1234)
    back = round_trip(value)
    assert back.getvalue() == value.getvalue() and back.tell() == 1234


class Point(ctypes.Structure):
    _fields_ = (("x", ctypes.c_double), ("y", ctypes.c_int32 * 200))


class Either(ctypes.Union):
    _fields_ = (("raw", ctypes.c_uint8 * 2000), ("points", Point))


class WithAddress(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p),)


def test_ctypes_arrays():
    for cls in (ctypes.c_double * 1000, ctypes.c_char * 3000, (ctypes.c_int16 * 20) * 60, Point * 5):
        value = cls()
        ctypes.memset(value, 0x41, ctypes.sizeof(value))
        back = round_trip(value, ctypes.sizeof(value))
        assert type(back) is cls
        assert bytes(back) == bytes(value)
        ctypes.memset(back, 0, 1)  # this write is allowed, because `back` has its own memory


def test_ctypes_arrays_over_arrays():
    value = np.ctypeslib.as_ctypes(np.arange(5000.0))
    stream, buffers = put(value)
    back = load(stream, buffers)
    assert type(back) is type(value) and list(back) == list(value) and list(back.__dict__) == list(value.__dict__)


def test_ctypes_structures():
    value = Point(1.5)
    value.y[3] = 7
    value.note = "kept"
    back = round_trip([value, Either()])
    assert (back[0].x, back[0].y[3], back[0].note) == (1.5, 7, "kept")
    assert bytes(back[1]) == bytes(2000)
    _, buffers = put(Either())
    assert sum(buffer.nbytes for buffer in buffers) == 2000


def test_ctypes_with_addresses_are_refused_as_before():
    for value in (WithAddress(b"x"), (WithAddress * 3)(), (ctypes.c_void_p * 500)()):
        with pytest.raises(ValueError, match="pointers"):
            put(value)


# ---- the machinery -------------------------------------------------------------------------------


def test_dumps_is_not_affected():
    value = np.arange(0, 2000).astype("M8[s]")
    file = io.BytesIO()
    Pickler(file).dump(value)
    assert b"pyray_ser" not in file.getvalue()
    assert len(file.getvalue()) > value.nbytes


def test_arrays_of_plain_dtypes_are_read_without_us():
    for kind in ("strided", "big-endian", "datetime64", "structured"):
        stream, _ = put(ARRAYS[kind])
        assert b"pyray_ser" not in stream


def test_libraries_are_not_imported_for_their_reducers():
    import subprocess

    code = """
import sys
from pyray_ser.pickling import reducers
for value in (1, "x", [], object(), print, sys):
    reducers.meet(type(value))
assert not {"numpy", "pandas", "pyarrow", "polars", "ctypes", "array"} & set(sys.modules), "imported"
"""
    import os

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_class_that_is_met_inside_the_import_of_its_reducers_has_none_yet(monkeypatch):
    pandas = pytest.importorskip("pandas")
    monkeypatch.setattr(reducers, "_installed", reducers._installed - {"pandas"})
    monkeypatch.delitem(sys.modules, "pyray_ser.pickling.reducers.pandas", raising=False)
    real, found = builtins.__import__, []

    def importing(name, *args, **kwargs):
        if name == "pandas.arrays" and not found:  # a finalizer may call `find` here, too
            found.append("inside")
            found.append(reducers.find(pandas.Series))
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)
    assert reducers.find(pandas.Series) is None
    assert found == ["inside", None]
    assert "pandas" in reducers._installed
