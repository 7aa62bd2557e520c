"""Test what the command line says about an object from its first bytes, and that it runs no code of other processes."""

import collections
import pickle
import random
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from isolated import run

import pyray_ser
from pyray_ser.cli.description import STREAM_MAX, describe, read_form
from pyray_ser.store.foreign import export


class Point:
    """A class of a test, which is pickled by name."""

    def __init__(self):
        self.x = 1


class Wrapped:
    """A class with a long state."""

    def __init__(self, values):
        self.values = values


def described(value, whole=False):
    """Return the description of a value that was put, and those of its buffers."""
    stored = b"".join(map(bytes, export(pyray_ser.put(value))))
    form = read_form(lambda offset, size: stored[offset : offset + size], len(stored), whole)
    return describe(form.stream, [buffer.size for buffer in form.buffers])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.zeros((1000, 8)), "float64[1000, 8]"),
        (np.asfortranarray(np.zeros((3, 4))), "float64[3, 4]"),
        (np.zeros(3), "float64[3]"),
        (np.array(1.5), "float64[]"),
        (np.zeros(3, bool), "bool[3]"),
        (np.zeros(3, np.int8), "int8[3]"),
        (np.zeros(3, ">f8"), ">f8[3]"),
        (np.zeros(3, "M8[ns]"), "datetime64[ns][3]"),
        (np.array(["ab", "c"]), "U2[2]"),
        (np.zeros(100, [("a", "<i4"), ("b", "<f8")]), "record[100]"),
        (np.array([1, "a"], object), "object[2]"),
        (np.ma.masked_array([1.0, 2], [0, 1]), "MaskedArray float64[2]"),
        (np.float32(1), "float32"),
        (None, "None"),
        (True, "bool"),
        (7, "int"),
        (1 << 100, "int"),
        (1.5, "float"),
        ("\xe9" * 10, "str of 10"),
        ("x" * 100_000, "str of 100000 bytes"),
        (b"abc", "bytes of 3"),
        (bytes(5000), "bytes of 5000"),
        (bytearray(5000), "bytearray of 5000"),
        ([], "list of 0"),
        ([1, 2, 3], "list of 3: int"),
        ([1, "a"], "list of 2"),
        ([np.zeros(3)] * 2, "list of 2: float64[3]"),
        ((1, 2.0), "tuple of 2"),
        ({1, 2}, "set of 2: int"),
        (frozenset([1]), "frozenset of 1: int"),
        ({"x": np.zeros(1000), "y": 2}, "dict of 2"),
        ({i: i for i in range(2500)}, "dict of 2500"),
        (len, "len"),
        (collections.deque([1]), "collections.deque"),
        (Point(), f"{__name__}.Point"),
        (Point, f"{__name__}.Point"),
        (lambda x: x, "function <lambda>"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_an_object_is_described(value, text):
    assert described(value, whole=True)[0] == text


def test_values_of_other_packages_are_described():
    pandas, polars, pyarrow = map(pytest.importorskip, ("pandas", "polars", "pyarrow"))
    sparse = pytest.importorskip("scipy.sparse")
    frame = pandas.DataFrame({"a": np.zeros(1000), "b": np.zeros(1000, int), "c": np.zeros(1000)})
    for value, text in (
        (frame, "DataFrame 1000 x 3"),
        (pandas.DataFrame(), "DataFrame 0 x 0"),
        (frame["a"], "Series float64[1000]"),
        (polars.DataFrame({"a": [1.0, 2], "b": [1, 2], "c": [1, 2]}), "polars.DataFrame 2 x 3"),
        (polars.Series("s", [1, 2]), "polars.Series Int64[2]"),
        (pyarrow.table({"a": [1.0, 2]}), "pyarrow.Table 2 x 1"),
        (sparse.csr_matrix((10, 20)), "csr_matrix 10 x 20"),
    ):
        assert described(value)[0] == text


def test_buffers_are_described():
    _, arrays = described({"x": np.zeros((10, 100)), "y": bytes(2000)})
    assert arrays == {0: "float64[10, 100]", 1: "bytes of 2000"}


def test_a_long_stream_is_described_by_its_beginning():
    text, _ = described(list(range(1_000_000)))
    kind, _, number = text.removesuffix("+: int").partition(" of ")
    assert kind == "list" and text.endswith("+: int") and 100 < int(number) < 1_000_000
    assert described({str(i): i for i in range(100_000)})[0].endswith("+")


LONG = [str(i) for i in range(100_000)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"values": np.ones(10), "names": LONG, "left out": 1}, "dict of 2+"),
        ([{"a": 1}, [[LONG]]], "list of 2+"),
        ([{"a": 1}, {"b": {"c": LONG}}], "list of 2+"),
        ([1, [Wrapped(LONG)]], "list of 2+"),
        ({"a": 1, "b": Wrapped(LONG)}, "dict of 2+"),
    ],
)
def test_a_long_stream_counts_the_items_of_the_outermost_container_only(value, text):
    assert described(value)[0].partition(":")[0] == text


def test_describing_runs_no_code_and_imports_nothing():
    run(
        r"""
        import os, sys
        from pyray_ser.cli.description import describe
        before = set(sys.modules)
        for stream, text in (
            (b"cposix\nsystem\n(S'false'\ntR.", None),
            (b"\x80\x05\x8c\x05posix\x8c\x06system\x93\x8c\x07exit 99\x85R.", "posix.system"),
            (b"\x80\x05\x8c\x04this\x8c\x01s\x93.", "this.s"),
            (b"\x80\x05\x8c\x08antigrav\x8c\x03ity\x93)\x81}b.", "antigrav.ity"),
        ):
            assert describe(stream, [])[0] == text or text is None, describe(stream, [])
        assert set(sys.modules) == before
        """
    )


# Opcodes with operands that `describe` looks at.
OPCODES = [
    *(bytes([opcode]) for opcode in b"(otlde\x91u\x90asR\x81\x92b012\x94])}\x8fNQ\x85\x86\x87\x93\x97\x98"),
    *(b"c" + name.replace(":", "\n").encode() + b"\n" for name in (
        "numpy:ndarray", "numpy:dtype", "numpy.core.multiarray:_reconstruct", "numpy.core.multiarray:scalar",
        "pyray_ser.reconstruct:view", "pyray_ser.reconstruct:masked_array", "pyray_ser.reconstruct:polars_frame",
        "pyray_ser.reconstruct.torch:whole", "pandas:DataFrame", "pandas:Series", "pandas:_new_Index",
        "pyarrow.lib:chunked_array", "pyarrow.lib:_reconstruct_table", "copyreg:__newobj__", "array:array",
        "cloudpickle.cloudpickle:_make_function", "cloudpickle.cloudpickle:_make_skeleton_class",
    )),
    b"inumpy\nndarray\n", "g\u00b2\n".encode(), b"g0\n", b"p0\n", b"h\0", b"q\0", b"K\1", b"\x8a\1\xff", b"I1\n",
    b"\x8c\4_mgr", b"\x8c\6_shape", b"\x8c\5start", b"\x8c\1f", b"\x8c\2f8",
]  # fmt: skip


def test_damaged_and_hostile_streams_are_survived():
    good = [pickle.dumps(value, 5) for value in (Point(), {"a": [1, (2, "x")]}, {1, 2}, np.arange(3), len, 1 << 70)]
    good += [pickle.dumps(value, 0) for value in (Point(), {"a": [1, (2, "x"), 1.5]}, 1 << 70, "x\ny")]
    chance = random.Random(1)
    for stream in good:
        for end in range(len(stream)):
            describe(stream[:end], [])
        for _ in range(2000):
            changed = bytearray(stream)
            for _ in range(chance.randint(1, 4)):
                changed[chance.randrange(len(changed))] = chance.randrange(256)
            describe(bytes(changed), [])
    for _ in range(20_000):
        describe(chance.randbytes(chance.randint(1, 60)), [])
    for _ in range(100_000):
        describe(b"".join(chance.choice(OPCODES) for _ in range(chance.randint(1, 30))) + b".", [1, 2, 3])
    # A list that contains itself, a name of a megabyte, and marks and copies without end.
    assert describe(b"\x80\x05]\x94h\x00a.", [])[0].startswith("list of 1")
    text = describe(b"\x80\x05X\x00\x00\x10\x00" + b"n" * (1 << 20) + b"\x8c\x01x\x93.", [])[0]
    assert text is not None and len(text) < 1000
    describe(b"\x80\x05(" * STREAM_MAX, [])
    describe(b"\x80\x05]\x94" + b"h\x00\x85" * 20_000 + b".", [])
    # A call that is its own argument, many calls with many arguments, and many long names.
    call = b"\x80\x05\x8c\x07copyreg\x8c\x0a__newobj__\x93)R\x94h\x00a"
    assert describe(call + b".", [])[0] is not None
    tracemalloc.start()
    describe(b"\x80\x05\x8c\x01a\x94\x8c\x01b\x93\x94(" + b"h\x00" * 15_000 + b"t\x94" + b"h\x01h\x02R" * 6000, [])
    describe(b"\x80\x05X\x00\x75\x00\x00" + b"n" * 0x7500 + b"\x94" + b"h\x00h\x00\x93" * 6000, [])
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
    describe(b"\x80\x05]2" + b"2" * 60_000 + b".", [])


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"PRSO",
        struct.pack("<4sHHQQII", b"PRSX", 1, 0, 100, 10, 0, 0),
        struct.pack("<4sHHQQII", b"PRSO", 2, 0, 100, 10, 0, 0),
        struct.pack("<4sHHQQII", b"PRSO", 1, 0, 99, 10, 0, 0),
        struct.pack("<4sHHQQII", b"PRSO", 1, 0, 100, 1 << 63, 0, 0),
        struct.pack("<4sHHQQII", b"PRSO", 1, 0, 100, 10, 1 << 31, 0),
    ],
)
def test_bytes_that_are_not_an_object_are_not_described(head):
    data = head.ljust(100 if head else 0, b"\0")
    assert read_form(lambda offset, size: data[offset : offset + size], 100) is None


def test_the_tool_needs_no_package_of_the_objects():
    """The reader does not import the packages whose objects it describes."""
    code = (
        "import pyray_ser.cli.objects, sys; print({'pandas', 'polars', 'pyarrow', 'torch', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
