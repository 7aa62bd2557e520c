"""Define an array of each kind, by name, and a function that asserts that two arrays are the same."""

from __future__ import annotations

import numpy as np

POINT = np.dtype([("x", "<f8"), ("n", "<i4"), ("name", "S5")])
NESTED = np.dtype([("at", POINT), ("when", "<M8[ns]"), ("grid", "<f4", (2, 3))], align=True)


class Tagged(np.ndarray):
    """A subclass with additional state, modelled on the example in the numpy manual."""

    def __new__(cls, values, tag=None):
        made = np.asarray(values).view(cls)
        made.tag = tag
        return made

    def __array_finalize__(self, origin):
        self.tag = getattr(origin, "tag", None)

    def __reduce__(self):
        make, arguments, state = super().__reduce__()
        return make, arguments, (*state, self.tag)

    def __setstate__(self, state):
        self.tag = state[-1]
        super().__setstate__(state[:-1])


def _grid(*shape, dtype="<f8"):
    count = int(np.prod(shape))
    return (np.arange(count) % 120).astype(dtype).reshape(shape)


def _overlapping():
    return np.lib.stride_tricks.sliding_window_view(np.arange(20.0), 6)


def _records():
    made = np.zeros(7, POINT)
    made["x"] = np.arange(7) / 3
    made["n"] = range(7)
    made["name"] = [b"a", b"bb", b"", b"dddd", b"eeeee", b"\0x", b"z"]
    return made


def _nested():
    made = np.zeros((3, 2), NESTED)
    made["at"]["x"] = 1.5
    made["when"] = np.datetime64("2024-02-29T12:00:00.000000007")
    made["grid"] = np.arange(6).reshape(2, 3)
    return made


# Arrays without Python objects: `get` must return each of them as a read-only array over memory of the store.
PLAIN = {
    "float64": lambda: _grid(10),
    "one element": lambda: np.array([3.25]),
    "0-d": lambda: np.array(2.5),
    "0-d bool": lambda: np.array(True),
    "empty": lambda: np.zeros(0),
    "empty 2-d": lambda: np.zeros((0, 3)),
    "empty 3-d": lambda: np.zeros((4, 0, 2), "<i2"),
    "empty Fortran": lambda: np.zeros((3, 0, 2), order="F"),
    "C 2-d": lambda: _grid(5, 7),
    "C 5-d": lambda: _grid(2, 3, 4, 5, 6),
    "32-d": lambda: np.ones((1,) * 32),
    "Fortran": lambda: np.asfortranarray(_grid(5, 7)),
    "Fortran large": lambda: np.asfortranarray(_grid(300, 200)),
    "transposed 3-d": lambda: _grid(3, 4, 5).transpose(1, 2, 0),
    "transposed large": lambda: _grid(100, 300).T,
    "strided": lambda: _grid(20)[::2],
    "strided 2-d": lambda: _grid(10, 10)[1:9:3, ::2],
    "strided large": lambda: _grid(400, 400)[:, :100],
    "strided, above the small classes": lambda: _grid(400, 600)[::2, 1::2],
    "reversed": lambda: _grid(12)[::-1],
    "reversed large": lambda: _grid(30000)[::-1],
    "broadcast": lambda: np.broadcast_to(_grid(3), (4, 3)),
    "broadcast scalar": lambda: np.broadcast_to(np.float64(7), (1000, 1000)),
    "broadcast column": lambda: np.broadcast_to(_grid(5, 1), (5, 4)),
    "broadcast and strided": lambda: np.broadcast_to(_grid(40)[::4], (3, 10)),
    "overlapping windows": _overlapping,
    "big-endian": lambda: _grid(9, dtype=">i4"),
    "big-endian float": lambda: _grid(3, 3, dtype=">f8"),
    "bool": lambda: _grid(9) > 4,
    "int8": lambda: _grid(9, dtype="i1"),
    "uint64": lambda: np.array([0, 2**64 - 1], "u8"),
    "float16": lambda: _grid(9, dtype="f2"),
    "float32": lambda: _grid(9, dtype="f4"),
    "longdouble": lambda: _grid(9).astype(np.longdouble),
    "complex64": lambda: _grid(9).astype("c8") * 1j,
    "complex128": lambda: _grid(9).astype("c16") * (1 + 2j),
    "special floats": lambda: np.array([np.nan, -0.0, np.inf, -np.inf, 5e-324]),
    "bytes strings": lambda: np.array([b"a", b"", b"abc\0d"]),
    "str": lambda: np.array(["a", "", "\u00e4\U0001f600xyz"]),
    "big-endian str": lambda: np.array(["ab", "c"]).astype(">U2"),
    "void": lambda: np.frombuffer(b"abcdefghi", "V3"),
    "datetime": lambda: np.array(["2024-02-29", "NaT", "1969-12-31"], "<M8[D]"),
    "datetime ns": lambda: np.array(["2024-02-29T12:34:56.123456789"], "<M8[ns]"),
    "datetime of 25 minutes": lambda: np.arange(5).astype("<M8[25m]"),
    "big-endian datetime": lambda: np.array(["2024-02-29"], ">M8[s]"),
    "timedelta": lambda: np.arange(-3, 3).astype("<m8[us]"),
    "datetime strided": lambda: np.arange(10).astype("<M8[s]")[::3],
    "structured": _records,
    "structured one": lambda: _records()[2:3],
    "structured 0-d": lambda: np.array((1.0, 2, b"x"), POINT),
    "structured nested": _nested,
    "structured strided": lambda: np.concatenate([_records()] * 40)[::3],
    "structured Fortran": lambda: np.asfortranarray(_nested()),
    "structured field": lambda: _records()["x"],
    "structured packed fields": lambda: _records()[["x", "name"]],
    "read-only": lambda: _readonly(_grid(10)),
    "read-only large": lambda: _readonly(_grid(50, 100)),
    "1 KiB less one": lambda: np.arange(1023, dtype="u1"),
    "1 KiB": lambda: np.arange(1024, dtype="u1"),
    "64 KiB": lambda: _grid(8192),
    "256 KiB": lambda: _grid(32768),
    "1 MiB and a bit": lambda: _grid(131072 + 3),
    "unaligned": lambda: np.frombuffer(b"x" + _grid(9).tobytes(), "<f8", offset=1),
    "dtype with metadata": lambda: np.zeros(3, np.dtype("<i4", metadata={"unit": "m"})),
}

# Arrays that contain Python objects, and subclasses: their own reducers restore them exactly.
OTHER = {
    "object": lambda: np.array([1, "a", None, [2]], dtype=object),
    "object 2-d Fortran": lambda: np.asfortranarray(np.array([[1, "b"], [None, 2.5]], dtype=object)),
    "object 0-d": lambda: np.array({"a": 1}, dtype=object),
    "object empty": lambda: np.array([], dtype=object),
    "structured with object": lambda: np.array([(1, "x"), (2, None)], [("a", "i4"), ("b", "O")]),
    "recarray": lambda: _records().view(np.recarray),
    "matrix": lambda: np.asmatrix(_grid(3, 4)),
    "masked": lambda: np.ma.masked_greater(_grid(9), 5),
    "masked structured": lambda: np.ma.array(_records(), mask=[(i % 2, 0, 1) for i in range(7)]),
    "chararray": lambda: np.array(["a ", "bc"]).view(np.char.chararray),
    "memmap-like subclass": lambda: _grid(20).view(np.memmap),
    "subclass with state": lambda: Tagged(_grid(6), tag="six"),
    "no bytes per element": lambda: np.zeros(3, "V0"),
    "no bytes per string": lambda: np.zeros(3, "S0"),
}
if hasattr(np.dtypes, "StringDType"):
    OTHER["StringDType"] = lambda: np.array(
        ["a", "", "long enough not to be kept inside the element"], np.dtypes.StringDType()
    )


def _readonly(array):
    array.flags.writeable = False
    return array


def assert_same(got, expected):
    """Assert that two arrays have the same type, dtype, shape and order, and the same bits in every element."""
    assert type(got) is type(expected)
    if isinstance(expected, np.ma.MaskedArray):
        assert_same(got.data, expected.data)
        assert_same(np.ma.getmaskarray(got), np.ma.getmaskarray(expected))
        assert got.fill_value == expected.fill_value
        return
    assert got.dtype == expected.dtype
    assert got.dtype.byteorder == expected.dtype.byteorder
    assert got.dtype.metadata == expected.dtype.metadata
    assert got.shape == expected.shape
    if expected.flags.c_contiguous or expected.flags.f_contiguous:
        assert got.flags.c_contiguous == expected.flags.c_contiguous
        assert got.flags.f_contiguous == expected.flags.f_contiguous
    if expected.dtype.names:
        # Padding between fields is not part of a value: a copy may change it.
        for name in expected.dtype.names:
            assert got[name].tolist() == expected[name].tolist()
    elif expected.dtype.hasobject or expected.dtype.char == "T":
        assert got.tolist() == expected.tolist()
    elif expected.dtype.char in "gG":
        # The padding of a long double is not part of its value.
        np.testing.assert_array_equal(got, expected)
    else:
        assert got.tobytes() == expected.tobytes()
    assert getattr(got, "tag", None) == getattr(expected, "tag", None)


def in_store(array, store_bytes) -> bool:
    """Return whether the array's memory lies within a view of the store."""
    low, high = np.lib.array_utils.byte_bounds(array) if hasattr(np.lib, "array_utils") else np.byte_bounds(array)
    start, stop = store_bytes
    return start <= low and high <= stop
