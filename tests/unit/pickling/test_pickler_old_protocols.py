"""Test that our pickler writes or rejects types of the standard library as `pickle` does, in every protocol.

For an object whose type has no reduction, protocols 0 and 1 write the class. So streams in these protocols may contain
classes that no other protocol writes.
"""

import _csv
import _json
import contextlib
import enum
import functools
import importlib
import io
import pickle
import pickletools
import pyexpat
import threading
import types
import warnings
import weakref

import pytest

from pyray_ser import _pickle
from pyray_ser.pickling import serialization  # noqa: F401 (it connects the pickler with the registry)

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
MODULES = [
    "_csv",
    "_json",
    "_queue",
    "_random",
    "_sre",
    "_struct",
    "_thread",
    "array",
    "builtins",
    "bz2",
    "collections",
    "contextvars",
    "csv",
    "datetime",
    "decimal",
    "fractions",
    "functools",
    "hashlib",
    "io",
    "itertools",
    "json",
    "lzma",
    "mmap",
    "operator",
    "pathlib",
    "pyexpat",
    "queue",
    "random",
    "re",
    "select",
    "selectors",
    "socket",
    "sqlite3",
    "string",
    "threading",
    "time",
    "types",
    "uuid",
    "weakref",
    "zlib",
]
ARGUMENTS = [(), (5,), ("a",), (b"a",), ([1],), ({},), (int,), (5, 2), ("a", "b"), (len, [1])]
# Our pickler writes objects of these types, or functions and classes within them, by value. `pickle` cannot do this.
BY_VALUE = (
    types.FunctionType,
    types.ModuleType,
    types.CodeType,
    types.CellType,
    types.MappingProxyType,
    types.MethodType,
    memoryview,
    staticmethod,
    classmethod,
    property,
    type(functools.lru_cache(len)),
    weakref.WeakSet,
    type({}.keys()),
    type({}.values()),
    type({}.items()),
    enum.Enum,
    functools.singledispatchmethod,
    weakref.WeakKeyDictionary,
    weakref.WeakValueDictionary,
)
# Instances of these types would block, use descriptors and signals of the test run, or fail in their finalizers.
NOT_MADE = {"FileIO", "socket", "fromfd", "open", "SocketIO", "_DeleteDummyThreadOnDel"}
# The interpreter calls instances of these types, or waits for them, before it exits; a second `_MainThread` never ends.
USED_AT_EXIT = (threading.Thread, weakref.finalize)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Use a temporary folder, because some instances (of sqlite3.Connection) make a file."""
    monkeypatch.chdir(tmp_path)


def classes():
    for name in MODULES:
        for cls in list(vars(importlib.import_module(name)).values()):
            if isinstance(cls, type) and not issubclass(cls, type):
                yield cls


def instances(cls):
    if cls.__name__ in NOT_MADE or issubclass(cls, BY_VALUE + USED_AT_EXIT):
        return
    for arguments in ARGUMENTS:
        with warnings.catch_warnings(), contextlib.suppress(Exception):
            warnings.simplefilter("ignore")
            yield cls(*arguments)


def outcome(dumps, obj, protocol):
    """Return the opcodes except memo opcodes, which protocol 5 may omit; if an error occurs, return its class."""
    try:
        stream = dumps(obj, protocol)
    except Exception as error:
        return type(error)
    memo = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "FRAME"}
    found = [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(stream) if opcode.name not in memo]
    return [(name, None if name.endswith("GET") else argument) for name, argument in found]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_instances_of_the_standard_librarys_types(protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some instances open files
    compared = 0
    for cls in dict.fromkeys(classes()):
        for obj in instances(cls):
            expected, found = outcome(pickle.dumps, obj, protocol), outcome(_pickle.dumps, obj, protocol)
            # Reducers that other packages register may change the object, so the second stream of `pickle` may differ.
            assert found in (expected, outcome(pickle.dumps, obj, protocol)), (cls, obj)
            compared += 1
    assert compared > 500


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_class_from_compiled_code_without_a_name_is_refused(protocol):
    for cls in (type(_csv.reader([])), _json.make_scanner, pyexpat.XMLParserType):
        with pytest.raises(pickle.PicklingError):
            pickle.dumps(cls, protocol)
        with pytest.raises(pickle.PicklingError, match="Can't pickle"):
            _pickle.dumps(cls, protocol)


@pytest.mark.parametrize("obj", [threading.Lock(), [threading.Event()], {"s": threading.Semaphore()}, io.StringIO])
@pytest.mark.parametrize("protocol", [0, 1])
def test_a_lock_is_refused_by_the_first_protocols_as_by_pickle(obj, protocol):
    assert outcome(_pickle.dumps, obj, protocol) == outcome(pickle.dumps, obj, protocol)


def locks_waited_for():
    """Return how many threads the interpreter waits for before it exits; always 0 from Python 3.13 on."""
    return len(getattr(threading, "_shutdown_locks", ()))


def test_the_instances_leave_nothing_that_the_interpreter_waits_for_at_exit():
    before = threading.current_thread(), locks_waited_for()
    made = [obj for cls in classes() for obj in instances(cls)]
    assert made and (threading.current_thread(), locks_waited_for()) == before
