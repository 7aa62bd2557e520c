"""Load streams that an attacker who knows our source code would write against ``allow=``.

Each attack ends with an exception or a harmless value. None runs code that was not allowed, changes an object that the
stream did not create, or makes NumPy read memory outside of the array. docs/how-to/safe-loading.md has a table of the
guarantees of safe mode.
"""

import codecs
import collections
import copyreg
import datetime
import decimal
import enum
import fractions
import gc
import io
import pickle
import struct
import sys
import types

import isolated
import pytest

import pyray_ser
from pyray_ser import Unpickler, deserialize, dumps, loads, loads_frames
from pyray_ser._unpickle import UnpicklingError
from pyray_ser.util import SAFE_NUMPY

PROTO = b"\x80\x05"


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


def name(module, qualname):
    return text(module) + text(qualname) + b"\x93"


def stream(*parts):
    return PROTO + b"".join(parts) + b"."


def number(value):
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def bytes_(value):
    return b"B" + struct.pack("<I", len(value)) + value


class Config:
    level = 1


@pytest.fixture
def app(monkeypatch):
    """Return a module with objects that an application might allow by name."""
    module = types.ModuleType("attacked_app")
    role = enum.Enum("Role", {"GUEST": 1, "ADMIN": 2}, module="attacked_app")
    config = type("Config", (), {"__module__": "attacked_app"})
    module.Role, module.Config = role, config
    module.CONFIG = config()
    module.CONFIG.level = 1
    module.DEFAULTS = {"debug": False}
    module.USERS = ["alice"]
    module.GROUP = {"staff"}
    module.BUFFER = bytearray(b"abc")
    module.COUNTS = collections.Counter(a=1)
    module.get_config = lambda: module.CONFIG
    module.same = lambda value: value
    monkeypatch.setitem(sys.modules, "attacked_app", module)
    return module


def state_of(app):
    return (
        app.Role.GUEST.value,
        app.Role.GUEST.name,
        dict(vars(app.CONFIG)),
        dict(app.DEFAULTS),
        list(app.USERS),
        set(app.GROUP),
        bytes(app.BUFFER),
        dict(app.COUNTS),
        sorted(key for key in vars(app.Config) if not key.startswith("__")),
    )


LEVEL = b"}" + text("level") + b"K\x09sb"
CHANGES = {
    "BUILD on a member of an Enum by call": name("attacked_app", "Role")
    + b"K\x01\x85R}"
    + text("_value_")
    + b"K\x02sb",
    "BUILD on a member by REDUCE with a tuple": name("attacked_app", "Role")
    + b"(K\x01tR}"
    + text("_value_")
    + b"K\x02sb",
    "BUILD on a member by NEWOBJ": name("attacked_app", "Role") + b"K\x01\x85\x81}" + text("_value_") + b"K\x02sb",
    "BUILD on a member by NEWOBJ_EX": name("attacked_app", "Role") + b"K\x01\x85}\x92}" + text("_value_") + b"K\x02sb",
    "BUILD on a member by OBJ": b"(" + name("attacked_app", "Role") + b"K\x01o}" + text("_value_") + b"K\x02sb",
    "BUILD on a member by INST": b"(K\x01iattacked_app\nRole\n}" + text("_value_") + b"K\x02sb",
    "BUILD on a member by name": name("attacked_app", "Role.GUEST") + b"}" + text("_value_") + b"K\x02sb",
    "BUILD with slots on a member": name("attacked_app", "Role.GUEST") + b"N}" + text("_value_") + b"K\x02s\x86b",
    "BUILD on an instance": name("attacked_app", "CONFIG") + LEVEL,
    "BUILD on an instance from the memo": name("attacked_app", "CONFIG") + b"\x940h\0" + LEVEL,
    "BUILD on a copy by DUP": name("attacked_app", "CONFIG") + b"2" + LEVEL,
    "BUILD on what a function returns": name("attacked_app", "get_config") + b")R" + LEVEL,
    "BUILD on what a function hands through": name("attacked_app", "same")
    + name("attacked_app", "CONFIG")
    + b"\x85R"
    + LEVEL,
    "BUILD on a class": name("attacked_app", "Config") + LEVEL,
    "BUILD on a function": name("attacked_app", "get_config") + LEVEL,
    "SETITEM on a dict": name("attacked_app", "DEFAULTS") + text("debug") + b"\x88s",
    "SETITEMS on a dict": name("attacked_app", "DEFAULTS") + b"(" + text("debug") + b"\x88u",
    "SETITEM on a Counter": name("attacked_app", "COUNTS") + text("a") + b"K\x09s",
    "SETITEM on a bytearray": name("attacked_app", "BUFFER") + b"K\0K\x09s",
    "APPEND to a list": name("attacked_app", "USERS") + text("mallory") + b"a",
    "APPENDS to a list": name("attacked_app", "USERS") + b"(" + text("mallory") + b"e",
    "APPEND to a bytearray": name("attacked_app", "BUFFER") + b"K\x09a",
    "ADDITEMS to a set": name("attacked_app", "GROUP") + b"(" + text("mallory") + b"\x90",
    "BUILD through a second name": name("attacked_app", "same")
    + name("attacked_app", "CONFIG")
    + b"\x85\x94R0h\0"
    + LEVEL,
}
ALL = frozenset(
    f"attacked_app:{each}"
    for each in "Role Role.GUEST CONFIG Config get_config same DEFAULTS COUNTS BUFFER USERS GROUP".split()
)


@pytest.mark.parametrize("attack", CHANGES)
@pytest.mark.parametrize("allow", [ALL, lambda module, qualname: True], ids=["set", "predicate"])
def test_named_objects_cannot_be_changed(app, attack, allow):
    before = state_of(app)
    data = stream(CHANGES[attack])
    for read in (
        lambda: loads(data, allow=allow),
        lambda: Unpickler(io.BytesIO(data), allow=allow).load(),
        lambda: type("Sub", (Unpickler,), {})(io.BytesIO(data), allow=allow).load(),
    ):
        with pytest.raises((UnpicklingError, AttributeError, TypeError)):
            read()
        assert state_of(app) == before


def test_a_persistent_object_and_a_given_buffer_cannot_be_changed(app):
    reader = Unpickler(io.BytesIO(stream(text("pid"), b"Q", LEVEL)), allow=frozenset())
    reader.persistent_load = lambda pid: app.CONFIG
    with pytest.raises(UnpicklingError, match="cannot be changed"):
        reader.load()
    buffer = bytearray(b"abc")
    with pytest.raises(UnpicklingError, match="cannot be changed"):
        loads(stream(b"\x97K\0K\x09s"), buffers=[buffer], allow=frozenset())
    assert app.CONFIG.level == 1 and buffer == b"abc"
    reader = Unpickler(io.BytesIO(stream(b"h\0", LEVEL)), allow=frozenset())
    reader.memo = {0: app.CONFIG}
    with pytest.raises(UnpicklingError, match="cannot be changed"):
        reader.load()


def test_what_the_stream_made_can_be_filled(app):
    value = app.Config()
    value.level, value.more = 3, [1, {"a": {2}}, collections.OrderedDict(x=collections.deque([1]))]
    allow = {
        "attacked_app:Config",
        "collections:OrderedDict",
        "collections:deque",
        "collections:Counter",
        "builtins:set",
    }
    for protocol in range(6):
        got = loads(
            pickle.dumps([value, value, collections.Counter("aab")], protocol),
            allow=allow | {"copyreg:_reconstructor", "builtins:object"},
        )
        assert got[0] is got[1] and got[0].level == 3 and got[0].more == value.more and got[2] == {"a": 2, "b": 1}


REFUSED = {
    "dotted name through an allowed prefix": (name("attacked_app", "CONFIG.level"), {"attacked_app:CONFIG"}),
    "dotted module": (name("attacked_app.CONFIG", "level"), {"attacked_app:CONFIG"}),
    "dunder of an allowed class": (name("attacked_app", "Config.__init__.__globals__"), {"attacked_app:Config"}),
    "subclasses of an allowed class": (name("attacked_app", "Config.__subclasses__"), {"attacked_app:Config"}),
    "colon in the module": (name("a:b", "c"), {"a:b:c"}),
    "colon in the name": (name("a", "b:c"), {"a:b"}),
    "empty name": (name("attacked_app", ""), {"attacked_app:CONFIG"}),
    "getattr": (
        name("builtins", "getattr") + name("attacked_app", "Config") + text("__subclasses__") + b"\x86R",
        {"attacked_app:Config"},
    ),
    "Python 2's name of a forbidden one": (b"\x80\x02c__builtin__\neval\n", {"__builtin__:eval"}),
    "Python 2's name of reduce": (b"\x80\x02c__builtin__\nreduce\n", {"__builtin__:reduce"}),
    "INST": (b"(ios\nsystem\n", {"attacked_app:CONFIG"}),
    "OBJ": (b"(cos\nsystem\n" + text("true") + b"o", {"attacked_app:CONFIG"}),
    "protocol 0 GLOBAL": (b"cos\nsystem\n", {"attacked_app:CONFIG"}),
    "surrogates": (name("attacked_app", "CONFIG")[:-1] + b"\x8c\x03\xed\xa0\x80\x93", {"attacked_app:CONFIG"}),
    "copyreg": (name("copyreg", "__newobj_ex__"), {"attacked_app:CONFIG"}),
    "the unpickler's own function": (
        name("pyray_ser._unpickle", "loads") + bytes_(b"cos\ngetpid\n)R.") + b"\x85R",
        {"attacked_app:CONFIG"},
    ),
}


@pytest.mark.parametrize("attack", REFUSED)
def test_names_that_are_not_allowed_are_refused(app, attack):
    body, allow = REFUSED[attack]
    data = body + b"." if body[:1] == b"\x80" else stream(body)
    with pytest.raises(UnpicklingError):
        loads(data, allow=allow)


def test_extension_codes_are_names(app):
    copyreg.add_extension("posix", "getpid", 0x7FFFFFF0)
    copyreg.add_extension("attacked_app", "CONFIG", 0x7FFFFFF1)
    try:
        code = b"\x84" + struct.pack("<i", 0x7FFFFFF0)
        loads(stream(code))  # this load puts the object into copyreg's cache
        with pytest.raises(UnpicklingError, match="not allowed"):
            loads(stream(code), allow=ALL)
        with pytest.raises(UnpicklingError, match="cannot be changed"):
            loads(stream(b"\x84" + struct.pack("<i", 0x7FFFFFF1), LEVEL), allow=ALL)
    finally:
        copyreg.remove_extension("posix", "getpid", 0x7FFFFFF0)
        copyreg.remove_extension("attacked_app", "CONFIG", 0x7FFFFFF1)
        copyreg._extension_cache.pop(0x7FFFFFF0, None)
        copyreg._extension_cache.pop(0x7FFFFFF1, None)
    assert app.CONFIG.level == 1


# ---- streams inside the stream ------------------------------------------------------------------------------------------------


def nested(inner, *buffers):
    return name("pyray_ser.reconstruct", "load_stream") + b"(" + bytes_(inner) + b"".join(buffers) + b"tR"


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_a_stream_inside_the_stream_has_the_same_restrictions(app, depth):
    good, evil = stream(name("attacked_app", "Config")), stream(name("posix", "getpid") + b")R")
    change = stream(CHANGES["BUILD on an instance"])
    for _ in range(depth):
        good, evil, change = (stream(nested(data)) for data in (good, evil, change))
    for allow in (ALL, ALL | {"pyray_ser.reconstruct:load_stream"}, lambda module, _: module != "posix"):
        assert loads(good, allow=allow) is app.Config
        for data in (evil, change):
            with pytest.raises(UnpicklingError):
                loads(data, allow=allow)
    assert app.CONFIG.level == 1
    assert loads(stream(nested(stream(b"\x97"), b"\x97")), buffers=[b"abc"], allow=frozenset()) == b"abc"


def test_the_function_that_loads_nested_streams_keeps_its_restrictions_outside():
    load_stream = loads(stream(name("pyray_ser.reconstruct", "load_stream")), allow=frozenset())
    with pytest.raises(UnpicklingError, match="not allowed"):
        load_stream(stream(name("posix", "getpid")))


def test_streams_nested_without_end_are_a_recursion_error():
    data = PROTO + b"N."
    for _ in range(3000):
        data = stream(nested(data))
    limit = sys.getrecursionlimit()
    for higher in (limit, 100_000):
        sys.setrecursionlimit(higher)
        try:
            try:
                assert loads(data, allow=frozenset()) is None
            except RecursionError:
                pass
        finally:
            sys.setrecursionlimit(limit)


def test_the_debugging_pickler_needs_no_name_and_opens_no_way():
    isolated.run(
        """
        import os
        os.environ["PYRAY_SER_PICKLE_VERBOSE_DEBUG"] = "1"
        import pyray_ser
        class Payload:
            def __reduce__(self): return os.getpid, ()
        assert pyray_ser.deserialize(pyray_ser.serialize({"a": [1, 2]}), allow=frozenset()) == {"a": [1, 2]}
        assert pyray_ser.loads_frames(pyray_ser.dumps_frames({"a": [1] * 5000}), allow=frozenset()) == {"a": [1] * 5000}
        for allow in (frozenset(), {"pyray_ser.reconstruct:load_stream"}):
            try:
                print(pyray_ser.deserialize(pyray_ser.serialize([Payload()]), allow=allow))
            except Exception as error:
                assert "not allowed" in str(error), error
            else:
                raise AssertionError("os.getpid was called")
        """,
        errors=True,
    )


# ---- the predefined set of names ------------------------------------------------------------------------------------------------


def test_only_latin1_is_left_of_codecs():
    asked = []

    def search(encoding):
        asked.append(encoding)

    codecs.register(search)
    try:
        before = set(sys.modules)
        for value, encoding in (
            (text("x"), "rot13"),
            (b"C\x01x", "bz2"),
            (text("x"), "from_the_stream"),
            (text("x"), "utf-16"),
            (b"C\x01x", "latin1"),
            (text("x"), "LATIN1"),
        ):
            with pytest.raises(UnpicklingError, match="latin1"):
                loads(stream(name("_codecs", "encode"), value, text(encoding), b"\x86R"), allow=SAFE_NUMPY)
        for arguments in (b")R", text("x") + b"\x85R", b"(" + text("x") + text("latin1") + text("ignore") + b"tR"):
            with pytest.raises(UnpicklingError, match="latin1"):
                loads(stream(name("_codecs", "encode"), arguments), allow=SAFE_NUMPY)
        assert not asked and set(sys.modules) == before
    finally:
        codecs.unregister(search)
    for value in (b"", b"abc\xff\0", bytes(range(256))):
        for protocol in range(6):
            assert (
                loads(pickle.dumps(value, protocol), allow={"_codecs:encode", "builtins:bytes", "__builtin__:bytes"})
                == value
            )


NUMPY_ATTACKS = {
    "objects over bytes": "ND + b'K\\x01\\x85' + text('O') + bytes_(b'A' * 8) + b'\\x87R'",
    "objects over bytes, NEWOBJ": "ND + b'K\\x01\\x85' + text('O') + bytes_(b'A' * 8) + b'\\x87\\x81'",
    "objects over bytes, NEWOBJ_EX": "ND + b')}(' + text('shape') + b'K\\x01' + text('dtype') + text('O') + text('buffer') + bytes_(b'A' * 8) + b'u\\x92'",
    "objects over bytes, OBJ": "b'(' + ND + b'K\\x01\\x85' + text('O') + bytes_(b'A' * 8) + b'o'",
    "objects in a record over bytes": "ND + b'K\\x01\\x85' + text('i8,O') + bytes_(b'A' * 16) + b'\\x87R'",
    "objects in a sub-array over bytes": "ND + b'K\\x01\\x85' + text('(2,)O') + bytes_(b'A' * 16) + b'\\x87R'",
    "objects over a bytearray": "ND + b'K\\x01\\x85' + text('O') + b'\\x96' + struct.pack('<Q', 8) + b'A' * 8 + b'\\x87R'",
    "objects over a buffer": "ND + b'K\\x01\\x85' + text('O') + b'\\x97\\x87R'",
    "objects over a read-only buffer": "ND + b'K\\x01\\x85' + text('O') + b'\\x97\\x98\\x87R'",
    "objects over an array of bytes": "ND + b'K\\x01\\x85' + text('O') + ND + b'K\\x08\\x85' + text('u1') + bytes_(b'A' * 8) + b'\\x87R\\x87R'",
    "objects without dimensions": "ND + b')' + text('O') + bytes_(b'A' * 8) + b'\\x87R'",
    "StringDType over bytes": "ND + b'K\\x01\\x85' + text('T') + bytes_(b'\\x11' * 16) + b'\\x87R'",
    "bytes over an array of objects": "ND + b'K\\x08\\x85' + text('u1') + OBJECTS + b'\\x87R'",
    "_frombuffer over an array of objects": "FROM + OBJECTS + DTYPE('u1') + b'K\\x08\\x85' + text('C') + b'tR'",
    "numbers over objects through READONLY_BUFFER": "ND + b'K\\x08\\x85' + text('u1') + OBJECTS + b'\\x98\\x87R'",
    "objects at half a step over objects": "ND + b'(K\\x01\\x85' + text('O') + OBJECTS + b'K\\x04tR'",
    "_frombuffer of objects": "FROM + bytes_(b'A' * 8) + DTYPE('O') + b'K\\x01\\x85' + text('C') + b'tR'",
    "scalar of objects": "SCALAR + DTYPE('O') + bytes_(b'A' * 8) + b'\\x86R'",
    "offset beyond the buffer": "ND + b'(K\\x01\\x85' + text('u1') + bytes_(b'A' * 8) + number(1 << 40) + b'tR'",
    "negative offset": "ND + b'(K\\x01\\x85' + text('u1') + bytes_(b'A' * 8) + number(-8) + b'tR'",
    "strides beyond the buffer": "ND + b'(K\\x02\\x85' + text('u1') + bytes_(b'A' * 8) + b'K\\0' + number(1 << 40) + b'\\x85tR'",
    "negative strides": "ND + b'(K\\x02\\x85' + text('u1') + bytes_(b'A' * 8) + b'K\\0' + number(-8) + b'\\x85tR'",
    "strides that overflow": "ND + b'(' + number(1 << 62) + b'\\x85' + text('u1') + bytes_(b'A' * 8) + b'K\\0' + number(4) + b'\\x85tR'",
    "negative shape": "ND + number(-4) + b'\\x85' + text('u1') + bytes_(b'A' * 8) + b'\\x87R'",
    "shape that overflows": "ND + number(1 << 62) + number(1 << 62) + b'\\x86' + text('u1') + bytes_(b'A' * 8) + b'\\x87R'",
    "a dtype whose strings are longer": "DTYPE('S8') + STATE('|', 'NNN', 1 << 20, 1, 0) + b'\\x940' + ND + b'K\\x01\\x85h\\0' + bytes_(b'A' * 8) + b'\\x87R'",
    "a dtype that grows under its array": "DTYPE('S8') + b'\\x940' + ND + b'K\\x01\\x85h\\0' + bytes_(b'A' * 8) + b'\\x87R\\x940h\\0' + STATE('|', 'NNN', 1 << 20, 1, 0) + b'0h\\x01'",
    "a dtype that grows under its array, by DUP": "DTYPE('S8') + b'2' + ND + b'K\\x01\\x85h\\0' + b'0'",
    "a dtype that becomes objects under its array": "DTYPE('i8') + b'\\x940' + ND + b'K\\x01\\x85h\\0' + bytes_(b'A' * 8) + b'\\x87R\\x940h\\0' + STATE('|', FIELD('O8', 0), -1, -1, 63) + b'0h\\x01'",
    "objects that say they are none": "DTYPE('O8') + STATE('|', 'NNN', -1, -1, 0)",
    "numbers that say they are objects": "DTYPE('i8') + STATE('|', 'NNN', -1, -1, 63)",
    "bytes of negative size": "DTYPE('S8') + STATE('|', 'NNN', -5, 1, 0)",
    "str of half a character": "DTYPE('U2') + STATE('<', 'NNN', 7, 4, 8)",
    "field beyond the record": "DTYPE('V8') + STATE('|', FIELD('i8', 4), 8, 1, 16)",
    "field far beyond the record": "DTYPE('V8') + STATE('|', FIELD('i8', 1 << 30), 8, 1, 16)",
    "field before the record": "DTYPE('V8') + STATE('|', FIELD('i8', -8), 8, 1, 16)",
    "object field that says it is none": "DTYPE('V8') + STATE('|', FIELD('O8', 0), 8, 1, 16)",
    "object field in a number": "DTYPE('i8') + STATE('|', FIELD('O8', 0), -1, -1, 63)",
    "fields without names": "DTYPE('V8') + STATE('|', b'NN}', 8, 1, 16)",
    "names without fields": "DTYPE('V8') + STATE('|', b'N' + text('a') + b'\\x85N', 8, 1, 16)",
    "fields that are no dtypes": "DTYPE('V8') + STATE('|', b'N' + text('a') + b'\\x85}' + text('a') + b'K\\x01K\\0\\x86s', 8, 1, 16)",
    "fields of fields": "DTYPE('V8') + STATE('|', b'N' + text('a') + b'\\x85}' + text('a') + b')s', 8, 1, 16)",
    "sub-array larger than its item": "DTYPE('V8') + STATE('|', DTYPE('i8') + b'M\\xe8\\x03\\x85\\x86NN', 8, 8, 0)",
    "sub-array of objects": "DTYPE('V8') + STATE('|', DTYPE('O8') + b'K\\x01\\x85\\x86NN', 8, 8, 0)",
    "sub-array of negative length": "DTYPE('V8') + STATE('|', DTYPE('i8') + number(-1) + b'\\x85\\x86NN', 8, 8, 0)",
    "alignment of zero": "DTYPE('V8') + STATE('|', 'NNN', 8, 0, 0)",
    "metadata that is no dict": "DTYPE('i8') + b'(K\\x04' + text('<') + b'NNNJ\\xff\\xff\\xff\\xffJ\\xff\\xff\\xff\\xffK\\0K\\x07tb'",
    "a unit of time that is none": "DTYPE('M8') + b'(K\\x04' + text('<') + b'NNNJ\\xff\\xff\\xff\\xffJ\\xff\\xff\\xff\\xffK\\0N(C\\x01q' + b'K\\x01K\\x01K\\x01t\\x86tb'",
    "an old state": "DTYPE('V8') + b'(' + text('|') + b'NNK\\x64K\\x01tb'",
    "fewer objects than the shape": "EMPTY + b'(K\\x01M\\xe8\\x03\\x85' + DTYPE('O8') + b'\\x89](K\\x01K\\x02etb'",
    "bytes for objects": "EMPTY + b'(K\\x01K\\x01\\x85' + DTYPE('O8') + b'\\x89' + bytes_(b'A' * 8) + b'tb'",
    "negative shape in a state": "EMPTY + b'(K\\x01' + number(-1) + b'\\x85' + DTYPE('u1') + b'\\x89' + bytes_(b'A') + b'tb'",
    "bytes that are too few": "EMPTY + b'(K\\x01K\\x09\\x85' + DTYPE('u1') + b'\\x89' + bytes_(b'A') + b'tb'",
    "an array freed under its view": "EMPTY + FILL + b'\\x94' + b'0' + ND + b'M\\xe8\\x03\\x85' + text('u1') + b'h\\0\\x87R\\x940h\\0' + FILL + b'0h\\x01'",
    "the type of dtypes with a forged class": "name('numpy', 'dtype') + ND + b'\\x85R' + STATE('|', 'NNN', 8, 1, 0)",
    "a dtype of a dict with objects over numbers": "name('numpy', 'dtype') + b'}(' + text('names') + b'](' + text('a') + text('b') + b'e' + text('formats') + b'](' + text('O') + text('i8') + b'e' + text('offsets') + b'](K\\0K\\0eu\\x85R'",
}

HELPERS = """
import pickle, struct
import numpy as np
from pyray_ser import loads, Unpickler
from pyray_ser.util import SAFE_NUMPY

def text(value): return b"\\x8c" + bytes([len(value)]) + value.encode()
def name(module, qualname): return text(module) + text(qualname) + b"\\x93"
def number(value): return b"\\x8a\\x09" + value.to_bytes(9, "little", signed=True)
def bytes_(value): return b"B" + struct.pack("<I", len(value)) + value
core = np.ndarray((0,)).__reduce__()[0].__module__.removesuffix(".multiarray").removesuffix(".numeric")
def DTYPE(kind): return name("numpy", "dtype") + text(kind) + b"\\x89\\x88\\x87R"
def STATE(order, middle, size, alignment, flags):
    middle = middle.encode() if isinstance(middle, str) else middle
    return b"(K\\x03" + text(order) + middle + number(size) + number(alignment) + number(flags) + b"tb"
def FIELD(kind, offset): return b"N" + text("a") + b"\\x85}" + text("a") + DTYPE(kind) + number(offset) + b"\\x86s"
ND = name("numpy", "ndarray")
FROM = name(core + ".numeric", "_frombuffer") + b"("
SCALAR = name(core + ".multiarray", "scalar")
EMPTY = name(core + ".multiarray", "_reconstruct") + name("numpy", "ndarray") + b"K\\0\\x85C\\x01b\\x87R"
FILL = b"(K\\x01M\\xe8\\x03\\x85" + DTYPE("u1") + b"\\x89" + bytes_(b"x" * 1000) + b"tb"
OBJECTS = EMPTY + b"(K\\x01K\\x01\\x85" + DTYPE("O8") + b"\\x89](NetB".replace(b"B", b"b")

def use(value):
    # What a reader does with it.
    repr(value), str(value)
    if isinstance(value, np.ndarray):
        value.tolist(), value.copy(), value.astype("S", casting="unsafe") if value.size else None
    if isinstance(value, np.dtype):
        np.zeros(2, value).tolist()
"""


def test_no_attack_on_numpy_does_more_than_raise():
    """One process loads all hostile streams and uses the results; it must not crash."""
    pytest.importorskip("numpy")
    cases = "\n".join(f"    ({title!r}, lambda: {code})," for title, code in NUMPY_ATTACKS.items())
    script = (
        HELPERS
        + f"ATTACKS = [\n{cases}\n]\n"
        + """
harmless = []
for title, make in ATTACKS:
    data = b"\\x80\\x05" + make() + b"."
    for _ in range(2):
        try:
            value = loads(data, allow=SAFE_NUMPY, buffers=[b"A" * 8])
        except (pickle.UnpicklingError, TypeError, ValueError, MemoryError, OverflowError, RuntimeError, KeyError) as error:
            continue
        harmless.append(title)
        use(value)
print(sorted(set(harmless)))
"""
    )
    out = isolated.run(script)
    for title in (
        "numbers over objects through READONLY_BUFFER",
        "objects over bytes",
        "an array freed under its view",
    ):
        assert title not in out


def test_what_numpy_writes_is_allowed():
    np = pytest.importorskip("numpy")
    values = [
        np.arange(6.0).reshape(2, 3), np.arange(6).reshape(2, 3).T, np.array(["a", "bc"]), np.array([b"x", b"yz"]),
        np.array([1, "a", None], dtype=object), np.zeros(3, dtype=[("a", "i4"), ("b", "O")]), np.zeros(2, dtype=[("a", "f8", (2, 2)), ("b", "U3")]),
        np.zeros(2, dtype=np.dtype([("a", "i1"), ("b", "f8")], align=True)), np.array(["2020-01-01"], dtype="M8[D]"), np.array([3], dtype="m8[3s]"),
        np.arange(3).astype(">i4"), np.float64(1.5), np.zeros((), dtype="V5"), np.dtype([(("title", "a"), "i4"), ("b", ">f8")]), np.zeros((0, 3)),
        np.dtype(("i4", [("lo", "i2"), ("hi", "i2")])), np.array(5), np.dtype("f8", metadata={"a": 1}), np.bool_(True), np.dtype([]),
        np.dtype({"names": ["x"], "formats": ["f8"], "offsets": [8], "itemsize": 32}), np.array([[{}]], dtype=object), np.zeros(2, "U0"), np.zeros(2, "S0"),
    ]  # fmt: skip
    for value in values:
        for protocol in range(6):
            for data in (pickle.dumps(value, protocol), dumps(value, protocol=protocol)):
                got = loads(data, allow=SAFE_NUMPY | {"builtins:bytes"})
                assert type(got) is type(value)
                if isinstance(value, np.dtype):
                    assert got == value and got.flags == value.flags and got.alignment == value.alignment
                else:
                    assert got.dtype.newbyteorder("=") == value.dtype.newbyteorder("=") and got.shape == value.shape
                    assert repr(got.tolist()) == repr(value.tolist())
    itself = np.empty(1, object)
    itself[0] = itself
    got = loads(pickle.dumps(itself), allow=SAFE_NUMPY)
    assert got[0] is got


# ---- types of the standard library that programs allow --------------------------------------------------------------------------

STANDARD = frozenset(
    {
        "datetime:datetime", "datetime:date", "datetime:time", "datetime:timedelta", "datetime:timezone", "decimal:Decimal", "fractions:Fraction",
        "collections:OrderedDict", "collections:defaultdict", "collections:Counter", "collections:deque", "builtins:set", "builtins:list",
        "builtins:complex", "uuid:UUID", "builtins:int",
    }
)  # fmt: skip
STATES = {
    "datetime": name("datetime", "datetime") + bytes_(b"\xff" * 10) + b"\x85R",
    "datetime of other length": name("datetime", "datetime") + bytes_(b"\xff" * 9) + b"\x85R",
    "datetime with a zone that is none": name("datetime", "datetime")
    + bytes_(b"\x07\xe4\1\2\3\4\5\0\0\0")
    + b"K\x01\x86R",
    "date": name("datetime", "date") + bytes_(b"\0\0\0\0") + b"\x85R",
    "time": name("datetime", "time") + bytes_(b"\xff" * 6) + b"\x85R",
    "timedelta": name("datetime", "timedelta") + number(1 << 62) + number(1 << 62) + b"K\0\x87R",
    "timezone": name("datetime", "timezone") + name("datetime", "timedelta") + b"M\xff\xff\x85R\x85R",
    "timezone of a number": name("datetime", "timezone") + b"K\x01\x85R",
    "Decimal": name("decimal", "Decimal") + text("1e999999999999999999999") + b"\x85R",
    "Decimal of a tuple": name("decimal", "Decimal") + b"K\x09(K\x63t" + text("x") + b"\x87\x85R",
    "Fraction": name("fractions", "Fraction") + text("1/0") + b"\x85R",
    "defaultdict with a name": name("collections", "defaultdict") + text("x") + b"\x85R",
    "defaultdict of sets": name("collections", "defaultdict") + name("builtins", "set") + b"\x85RK\x01](K\x01es",
    "OrderedDict with a state": name("collections", "OrderedDict") + b")R}" + text("clear") + b"K\x01sb",
    "Counter of objects": name("collections", "Counter") + b"}](s" + b"\x85R",
    "deque of endless length": name("collections", "deque") + b")" + number(1 << 62) + b"\x86R",
    "deque of negative length": name("collections", "deque") + b")" + number(-1) + b"\x86R",
    "UUID": name("uuid", "UUID") + b")\x81}" + text("int") + b"K\x01sb",
    "set of lists": b"\x8f(]]\x90",
    "frozenset of dicts": b"(}\x91",
    "set of an endless list": b"(" * 1000 + b"\x91" * 10,
    "a state for a list": name("builtins", "list") + b")\x81}" + text("append") + b"K\x01sb",
    "int of text": name("builtins", "int") + bytes_(b"9" * 5000) + b"\x85R",
    "APPENDS to an int": b"K\x01(K\x02e",
    "BUILD on an int": b"K\x01}b",
    "BUILD on a str": text("abc") + b"}" + text("a") + b"K\x01sb",
    "SETITEMS on a tuple": b")(K\x01K\x02u",
    "a memo index that is huge": b"K\x01r\xff\xff\xff\xff0j\xff\xff\xff\xff",
    "many memo indexes that are huge": b"".join(
        b"K\x01r" + struct.pack("<I", 0xFFFFFFFF - i) + b"0" for i in range(200)
    )
    + b"N",
    "a memo index in text": b"K\x01p99999999999999999999\n",
    "bytes that are not there": b"\x8e" + struct.pack("<Q", 1 << 60),
    "text that is not there": b"\x8d" + struct.pack("<Q", 1 << 60),
    "an int that is not there": b"\x8b" + struct.pack("<i", 0x7FFFFFFF),
    "a frame that is not there": b"\x95" + struct.pack("<Q", 1 << 60),
    "marks": b"(" * 50_000 + b"1" * 50_000 + b"N",
    "tuples": b")" + b"\x85" * 50_000,
    "DUP of a growing list": b"](" + b"2" * 3 + b"N.",
    "persistent id without a loader": text("x") + b"Q",
    "NEXT_BUFFER without buffers": b"\x97",
    "READONLY_BUFFER of an int": b"K\x01\x98",
    "NEWOBJ of a function": name("builtins", "int") + text("5") + b"\x85R)\x81",
    "NEWOBJ_EX with forged keywords": name("builtins", "int") + b")K\x01\x92",
}


@pytest.mark.parametrize("attack", STATES)
def test_forged_states_of_standard_types_raise_or_are_values(attack):
    data = stream(STATES[attack])
    modules = (datetime, decimal, fractions, collections)
    sizes = [len(vars(module)) for module in modules]
    try:
        value = loads(data, allow=STANDARD)
    except Exception as error:
        assert not isinstance(error, (SystemError, AssertionError)), error
    else:
        gc.collect()
        if "tuples" not in attack:
            repr(value)
    assert [len(vars(module)) for module in modules] == sizes


def test_all_readers_refuse_alike():
    value = {"config": Config}
    for read in (
        lambda: loads(pickle.dumps(value), allow=frozenset()),
        lambda: deserialize(pyray_ser.serialize(value), allow=frozenset()),
        lambda: loads_frames(pyray_ser.dumps_frames(value), allow=frozenset()),
    ):
        with pytest.raises(UnpicklingError, match="not allowed"):
            read()
