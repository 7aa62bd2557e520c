"""Test that the unpickler's shortcuts, which read a whole array call or all fields of an instance, change no result."""

import enum
import io
import itertools
import pickle
import subprocess
import sys

import pytest

from pyray_ser import _pickle, _unpickle
from pyray_ser._unpickle import Unpickler, UnpicklingError, loads

np = pytest.importorskip("numpy")

ARRAYS = [
    np.arange(4.0), np.arange(300, dtype="u2"), np.arange(6, dtype=">i4").reshape(2, 3), np.ones((2, 3, 4), "f4"),
    np.asfortranarray(np.arange(12.0).reshape(3, 4)), np.array(7.5), np.zeros((0, 3)), np.ones((1, 2, 1, 2, 3), "c16"),
    np.array([True, False]), np.arange(70_000, dtype="i1"), np.arange(3, dtype="f2"), np.zeros(2, "c8"),
]  # fmt: skip


def same(one, other, aligned=True):
    return (
        type(one) is type(other)
        and one.dtype == other.dtype
        and one.shape == other.shape
        and (one.strides == other.strides or not one.size)
        and one.flags.c_contiguous == other.flags.c_contiguous
        and one.flags.f_contiguous == other.flags.f_contiguous
        and (not aligned or one.flags.aligned == other.flags.aligned)
        and one.tobytes() == other.tobytes()
    )


def written(value):
    buffers = []
    return _pickle.dumps(value, 5, buffer_callback=buffers.append), buffers


class Overriding(Unpickler):
    """An unpickler with its own `find_class`, which must be called for each name, so no shortcut applies."""

    def find_class(self, module, name):
        return super().find_class(module, name)


def both_ways(stream, buffers):
    return loads(stream, buffers=buffers), pickle.loads(stream, buffers=buffers)


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype.str}{a.shape}")
def test_arrays_are_what_numpy_makes_of_them(array):
    for value in (array, [array, array.copy(), array]):
        stream, buffers = written(value)
        for given in (buffers, tuple(buffers), iter(buffers), [bytes(b.raw()) for b in buffers]):
            given = list(given) if not isinstance(given, (list, tuple)) else given
            ours, theirs = both_ways(stream, given)
            for one, other in zip(
                [ours] if value is array else ours, [theirs] if value is array else theirs, strict=True
            ):
                assert same(one, other)
                assert one.flags.writeable == other.flags.writeable
        again = loads(stream, buffers=iter(buffers))
        assert same(again if value is array else again[0], array)
        # in-band bytes can be at any address, so the array may be unaligned
        inside = _pickle.dumps(value)
        assert same(loads(inside) if value is array else loads(inside)[0], array, aligned=False)


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype.str}{a.shape}")
def test_arrays_of_put_are_the_same(array):
    stream, buffers = _pickle._put([array, array.copy()])
    one, other = _unpickle.loads_in_place(stream, buffers)
    for found in (one, other):
        assert found.dtype == array.dtype and found.shape == array.shape and found.tobytes() == array.tobytes()
        assert not found.flags.writeable
        with pytest.raises(ValueError):
            found.setflags(write=True)
    private = _unpickle.loads_in_place(stream, [bytearray(b) for b in buffers], writable=True)
    assert all(found.flags.writeable for found in private)


def test_memory_is_shared_with_the_buffer():
    buffer = bytearray(32)
    stream, _ = written(np.arange(4.0))
    array = loads(stream, buffers=[pickle.PickleBuffer(buffer)])
    array[1] = 2.5
    assert np.frombuffer(buffer)[1] == 2.5


def test_shared_array_is_one_object():
    array = np.arange(4.0)
    found = loads(*[written([array, [array]])[0]], buffers=written([array, [array]])[1])
    assert found[0] is found[1][0]


def test_buffers_are_taken_in_turn_over_several_loads():
    values = [np.arange(3.0), np.arange(5), np.arange(7.0)]
    buffers, file = [], io.BytesIO()
    for value in values:
        _pickle.dump(value, file, 5, buffer_callback=buffers.append)
    file.seek(0)
    unpickler = Unpickler(file, buffers=buffers)
    for value in values:
        assert same(unpickler.load(), value)


def test_a_list_of_buffers_that_has_been_at_its_end_stays_there():
    stream, buffers = written(np.arange(3.0))
    given = []
    unpickler = Unpickler(io.BytesIO(stream * 2), buffers=given)
    with pytest.raises(UnpicklingError, match="not enough"):
        unpickler.load()
    given += buffers * 2
    with pytest.raises((UnpicklingError, EOFError)):
        unpickler.load()
    # once an iterator of buffers is exhausted, the unpickler asks it for no more
    stream = pickle.dumps([pickle.PickleBuffer(b"a")], 5, buffer_callback=lambda b: None)
    given = [b"x"]
    unpickler = Unpickler(io.BytesIO(stream * 3), buffers=given)
    assert unpickler.load() == [b"x"]
    with pytest.raises(UnpicklingError, match="not enough"):
        unpickler.load()
    given.append(b"y")


@pytest.mark.parametrize(
    "buffers", [[], (), [b"short"], [b"x" * 33], [b"x" * 31], [7], [np.arange(4, dtype="u1")[::2]]]
)
def test_buffers_that_do_not_fit_are_refused_as_numpy_does(buffers):
    stream, _ = written(np.arange(4.0))
    with pytest.raises(Exception) as ours:
        loads(stream, buffers=buffers)
    with pytest.raises(Exception) as theirs:
        pickle.loads(stream, buffers=buffers)
    assert ours.type is theirs.type


@pytest.mark.parametrize("old, new", [
    (b"K\x04\x85", b"K\x05\x85"), (b"K\x04\x85", b"K\x02K\x02\x86"), (b"K\x04\x85", b"K\x04\x86"), (b"K\x04\x85", b")"),
    (b"K\x04\x85", b"J\xff\xff\xff\xff\x85"), (b"K\x04\x85", b"(K\x04t"), (b"K\x04\x85", b"(t"), (b"K\x04\x85", b"K\x04"),
    (b"\x8c\x01C", b"\x8c\x01F"), (b"\x8c\x01C", b"\x8c\x01A"), (b"\x8c\x01C", b"\x8c\x02CC"), (b"\x8c\x01C", b"N"),
    (b"\x8c\x02f8", b"\x8c\x02i8"), (b"\x8c\x02f8", b"\x8c\x02f9"), (b"\x8c\x02f8", b"\x8c\x02i2"), (b"\x8c\x01<", b"\x8c\x01>"),
    (b"\x8c\x01<", b"\x8c\x01|"), (b"\x97", b"N"), (b"\x97", b"\x97\x98"), (b"tR\x94.", b"tR."), (b"tR\x94.", b"tRN."),
    (b"tR\x94.", b"tR"), (b"\x85\x8c\x01C", b"\x85\x94\x8c\x01C"), (b"tb", b"tb\x94"),
])  # fmt: skip
def test_streams_that_differ_a_little_are_read_alike(old, new):
    stream, buffers = written(np.arange(4.0))
    assert stream.count(old) >= 1
    body = stream[11:]
    at = body.rindex(old)
    changed = b"\x80\x05" + body[:at] + new + body[at + len(old) :]

    def outcome(load):
        try:
            return load(changed, buffers=buffers)
        except Exception as error:
            return type(error)

    ours, theirs = outcome(loads), outcome(pickle.loads)
    if isinstance(theirs, np.ndarray):
        assert same(ours, theirs)
    else:
        assert type(ours) is type(theirs) and (ours is theirs or isinstance(theirs, tuple))


def test_names_are_asked_for_in_safe_mode():
    stream, buffers = written(np.arange(4.0))
    function = next(name for name in ("numpy._core.numeric", "numpy.core.numeric") if name.encode() in stream)
    allowed = {f"{function}:_frombuffer", "numpy:dtype"}
    for _ in range(3):
        for allow in (frozenset(allowed), allowed, lambda m, n: f"{m}:{n}" in allowed):
            assert same(loads(stream, buffers=buffers, allow=allow), np.arange(4.0))
        for missing in allowed:
            with pytest.raises(UnpicklingError, match="not allowed"):
                loads(stream, buffers=buffers, allow=frozenset(allowed - {missing}))


def test_keywords_in_any_order_and_nothing_kept():
    stream = pickle.dumps([len, pickle.PickleBuffer(bytearray(b"x"))], 5, buffer_callback=lambda buffer: None)
    given = {
        "buffers": [b"x"],
        "allow": frozenset({"builtins:len"}),
        "encoding": "ASCII",
        "fix_imports": True,
        "errors": None,
    }
    count = sys.getrefcount(given["buffers"])
    for n in range(1, 6):
        for names in itertools.permutations(given, n):
            some = {"".join(name): given[name] for name in names}
            if "buffers" in some:
                assert loads(stream, **some)[0] is len
                for wrong in ({"buffers": ()}, {"allow": frozenset()}, {"allow": ["builtins:max"]}, {"encoding": 1}):
                    with pytest.raises((UnpicklingError, TypeError)):
                        loads(stream, **(some | wrong))
    assert loads(stream, buffers=(b"x",), allow=None)[0] is len
    del some
    left = sys.getrefcount(given["buffers"])
    assert left == count
    with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
        loads(stream, buffers=[b"x"], other=1)


def test_many_sets_of_allowed_names_do_not_mix():
    stream = _pickle.dumps([len, max])
    both, one = frozenset({"builtins:len", "builtins:max"}), frozenset({"builtins:len"})
    for i in range(50):
        assert loads(stream, allow=both) == [len, max]
        assert loads(stream, allow=frozenset({"builtins:len", "builtins:max", f"other:{i}"})) == [len, max]
        with pytest.raises(UnpicklingError, match="builtins:max"):
            loads(stream, allow=one)
        with pytest.raises(UnpicklingError, match="builtins:len"):
            loads(stream, allow=frozenset({f"builtins:len{i}"}))


def test_overridden_find_class_is_asked_for_the_dtype_too():
    stream, buffers = written(np.arange(4.0))
    asked = []

    class Asking(Unpickler):
        def find_class(self, module, name):
            asked.append(name)
            return super().find_class(module, name)

    for _ in range(2):
        asked.clear()
        assert same(Asking(io.BytesIO(stream), buffers=buffers).load(), np.arange(4.0))
        assert asked == ["_frombuffer", "dtype"]


def test_audit_hook_sees_every_name():
    code = """if True:
        import sys, numpy as np
        from pyray_ser import _pickle, _unpickle
        buffers = []
        stream = _pickle.dumps(np.arange(4.0), 5, buffer_callback=buffers.append)
        for _ in range(3): _unpickle.loads(stream, buffers=buffers)
        names = []
        sys.addaudithook(lambda event, args: names.append(args[1]) if event == "pickle.find_class" else None)
        for _ in range(2): _unpickle.loads(stream, buffers=buffers)
        assert names == ["_frombuffer", "dtype"] * 2, names
    """
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- members of enums ---------------------------------------------------------------------------------------------------


class Number(enum.Enum):
    ZERO = 0
    ONE = 1
    TWO = 2
    MANY = 300
    HUGE = 70_000
    TEXT = "one"
    RATIO = 2.5
    LESS = -1


class Alias(enum.IntEnum):
    A = 1
    B = 1
    C = 3


def test_members_by_their_values():
    for members in (list(Number), list(Alias), [Number.ONE] * 3 + [Alias.C]):
        for dumps in (_pickle.dumps, pickle.dumps):
            found = loads(dumps(members, 5))
            assert all(one is other for one, other in zip(found, members, strict=True))


@pytest.mark.parametrize(
    "value", [b"K\x03", b"M\x00\x02", b"J\xff\xff\xff\xff", b"K\xff", b"\x88", b"G?\xf0\0\0\0\0\0\0"]
)
def test_values_that_are_no_small_int_of_a_member_are_read_alike(value):
    module = Number.__module__.encode()
    name = b"\x8c" + bytes([len(module)]) + module + b"\x8c\x06Number\x93\x94"
    stream = b"\x80\x05" + name + b"0h\0" + value + b"\x85R."

    def outcome(load):
        try:
            return load(stream)
        except ValueError as error:
            return str(error)

    assert outcome(loads) == outcome(pickle.loads)


def test_members_that_come_and_go():
    cls = enum.Enum("Passing", "A B", module=__name__)
    globals()["Passing"] = cls
    try:
        stream = _pickle.dumps([cls, cls.A, cls.B])
        assert loads(stream) == [cls, cls.A, cls.B]
        kept = cls._value2member_map_.pop(1)
        try:
            expected = pickle.loads(stream)  # the result depends on the Python release
        except ValueError:
            with pytest.raises(ValueError):
                loads(stream)
        else:
            assert loads(stream) == expected
        cls._value2member_map_[1] = cls.B
        # Python 3.11.0 to 3.11.3 write the names of members into the stream, other versions write their values.
        assert loads(stream) == pickle.loads(stream)
        cls._value2member_map_[1] = kept
        assert loads(stream) == [cls, cls.A, cls.B]
    finally:
        del globals()["Passing"]


# ---- fields of instances ------------------------------------------------------------------------------------------------


class Plain:
    def __init__(self, *values):
        for name, value in zip("abcdefgh", values, strict=False):
            setattr(self, name, value)

    def __eq__(self, other):
        return type(other) is Plain and list(vars(self).items()) == list(vars(other).items())


class Slotted:
    __slots__ = ("a", "b", "c", "d")

    def __init__(self, *values):
        for name, value in zip("abcd", values, strict=False):
            setattr(self, name, value)

    def __eq__(self, other):
        return type(other) is Slotted and all(
            getattr(self, name, NotImplemented) == getattr(other, name, NotImplemented) for name in "abcd"
        )


VALUES = [None, True, False, 0, 255, 256, 65535, 65536, -1, 2**31, 2**70, 1.5, -0.0, "", "x", "text", "é", "\ud800", "x" * 300,
          b"bytes", (), (1,), [1], {"a": 1}, {1}, len, 1j]  # fmt: skip


@pytest.mark.parametrize("cls", [Plain, Slotted])
@pytest.mark.parametrize("dumps", [_pickle.dumps, pickle.dumps], ids=["ours", "theirs"])
def test_every_kind_of_value_in_every_place(cls, dumps):
    rows = [cls(*(VALUES[(i + j * k) % len(VALUES)] for j in range(4))) for k in (1, 3) for i in range(len(VALUES))]
    for _ in range(3):  # the cached plan is empty, then half filled, then complete
        assert loads(dumps(rows, 5)) == rows == pickle.loads(dumps(rows, 5))


@pytest.mark.parametrize("cls", [Plain, Slotted])
def test_instances_with_fewer_more_or_other_fields(cls):
    rows = [cls(*range(n % 5)) for n in range(40)] + [cls(1, 2, 3, 4)]
    assert loads(_pickle.dumps(rows)) == rows
    rows[7].a = rows
    again = loads(_pickle.dumps(rows))
    assert again[7].a is again


def test_a_shared_value_stays_shared():
    text, items = "a shared text", [1]
    rows = [Plain(text, items, i, None) for i in range(20)]
    again = loads(_pickle.dumps(rows))
    assert all(row.a is again[0].a and row.b is again[0].b for row in again)


def test_a_global_as_a_value_is_no_text():
    rows = [Plain(1, max, "builtins", i) for i in range(10)] + [Plain(1, "builtins", "max", min)]
    assert loads(_pickle.dumps(rows)) == rows


@pytest.mark.parametrize("cls", [Plain, Slotted])
def test_every_truncation_is_an_error(cls):
    stream = _pickle.dumps([cls(i, f"n{i}", i / 3, None) for i in range(4)])
    loads(stream)
    body = b"\x80\x05" + stream[11:]
    assert loads(body) == loads(stream)
    for end in range(len(body)):
        with pytest.raises((UnpicklingError, EOFError)):
            loads(body[:end])
