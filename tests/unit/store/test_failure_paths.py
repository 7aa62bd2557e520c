"""Test that `dumps`, `put` and the inspector report the same path to an object that cannot be pickled."""

import collections
import dataclasses
import datetime
import enum
import functools
import io
import socket
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import pytest

import pyray_ser
from pyray_ser import _pickle
from pyray_ser.inspection import debug_pickler, trace

LOCK = threading.Lock()


class Box:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class Slots:
    __slots__ = ("__hidden", "a")

    def __init__(self, a, hidden=1):
        self.a, self.__hidden = a, hidden


class SlotsAndDict(Slots):
    pass


@dataclasses.dataclass(slots=True, frozen=True)
class Frozen:
    a: object
    b: object = 1


@dataclasses.dataclass(slots=True)
class Slotted:
    a: object
    b: object = 1


Point = collections.namedtuple("Point", "x y")


class List(list):
    pass


class Dict(dict):
    pass


class Reduces:
    def __init__(self, config):
        self.config = config

    def __reduce__(self):
        return type(self), (self.config,)


class ReducesFresh(Reduces):
    def __reduce__(self):
        return type(self), ([self.config],)


class State(Reduces):
    __reduce__ = object.__reduce__

    def __getstate__(self):
        return {"state": self.config}


class StateTuple(State):
    def __getstate__(self):
        return 1, self.config


class Keywords:
    def __new__(cls, *, k=None):
        made = super().__new__(cls)
        made.k = k
        return made

    def __getnewargs_ex__(self):
        return (), {"k": self.k}


def _set(obj, state):
    pass


class Setter(Reduces):
    def __reduce__(self):
        return type(self), (1,), {"k": self.config}, None, None, _set


class Zone(datetime.tzinfo):
    def __init__(self, lock):
        self.lock = lock

    def utcoffset(self, when):
        return None


class Odd(enum.Enum):
    LOCK = (LOCK,)

    def __reduce_ex__(self, protocol):  # enum's own method returns the name up to Python 3.11.3
        return type(self), (self._value_,)


def task():
    config = Box(model={"k": [0, LOCK]})

    def work():
        return config

    return work


def uses_global():
    return LOCK


# Pickle the function by value, as in a notebook.
uses_global.__module__ = "__main__"


def with_defaults(a=1, b=LOCK, *, c=2):
    pass


with_defaults.__module__ = "__main__"


def extended():
    made = SlotsAndDict(1)
    made.extra = LOCK
    return made


VALUES = {
    "attributes": (lambda: Box(model=Box(cache={"k": [1, LOCK]})), ".model.cache['k'][1]"),
    "slots": (lambda: Slots(LOCK), ".a"),
    "hidden slot": (lambda: Slots(1, LOCK), "._Slots__hidden"),
    "slots and attributes": (extended, ".extra"),
    "slots beside attributes": (lambda: SlotsAndDict(LOCK), ".a"),
    "frozen dataclass": (lambda: Frozen(1, LOCK), ".b"),
    "slotted dataclass": (lambda: Slotted([LOCK]), ".a[0]"),
    "named tuple": (lambda: Point(1, {"a": LOCK}), ".y['a']"),
    "list": (lambda: List([1, LOCK]), "[1]"),
    "dict": (lambda: Dict(a=1, b=LOCK), "['b']"),
    "key": (lambda: {(1, LOCK): 2}, None),
    "set": (lambda: {1, LOCK}, "element <_thread.lock>"),
    "frozen set": (lambda: [frozenset([LOCK])], "[0] -> element <_thread.lock>"),
    "argument": (lambda: Reduces(LOCK), ".config"),
    "fresh argument": (lambda: ReducesFresh(LOCK), None),
    "state": (lambda: State(LOCK), ".state"),
    "state tuple": (lambda: StateTuple(LOCK), ".config"),
    "keyword": (lambda: Keywords(k=LOCK), ".k"),
    "setter": (lambda: Setter(LOCK), ".k"),
    "tzinfo": (lambda: datetime.datetime(2000, 1, 1, tzinfo=Zone(LOCK)), None),
    "closure": (task, "work -> closure 'config' -> .model['k'][1]"),
    "closure inside": (lambda: {"a": Box(x=task())}, "['a'].x -> closure 'config' -> .model['k'][1]"),
    "global": (lambda: uses_global, "uses_global -> global 'LOCK'"),
    "default": (lambda: with_defaults, "with_defaults -> default 'b'"),
    "partial": (lambda: functools.partial(len, LOCK), None),
    "defaultdict": (lambda: collections.defaultdict(list, {1: LOCK}), "[1]"),
    "deque": (lambda: collections.deque([1, LOCK]), "[1]"),
    "ordered dict": (lambda: collections.OrderedDict(a=LOCK), "['a']"),
    "pool, not its innards": (lambda: Box(pool=ThreadPoolExecutor(1)), ".pool"),
    "socket": (lambda: [socket.socket()], "[0]"),
    "bound method": (lambda: [Box(x=LOCK).__init__], "[0].__self__.x"),
    "generator": (lambda: [(x for x in ())], "[0]"),
    "exception": (lambda: [ValueError(LOCK)], "[0].args[0]"),
    "cell": (lambda: [types.CellType(LOCK)], None),
    "class by value": (lambda: [type("K", (), {"attr": LOCK, "__module__": "__main__"})], None),
    "property": (lambda: [property(lambda self: LOCK)], None),
    "enum": (lambda: [Odd.LOCK], None),
    "nested": (lambda: [[[(1, [{2: LOCK}])]]], "[0][0][0][1][0][2]"),
    "small": (lambda: [LOCK], "[0]"),
}  # fmt: skip


def note_of(write, value):
    with pytest.raises(TypeError) as caught:
        write(value)
    (note,) = caught.value.__notes__
    assert note.startswith("at ") and note.endswith(" of the object being pickled")
    return note.removeprefix("at ").removesuffix(" of the object being pickled")


def close(value):
    for held in (*(value if type(value) is list else ()), *getattr(value, "__dict__", {}).values()):
        if isinstance(held, socket.socket):
            held.close()


@pytest.mark.parametrize("kind", VALUES)
def test_every_pickler_names_it_as_the_inspector_does(kind):
    make, path = VALUES[kind]
    value = make()
    first = trace(value, put=False).failures[0]
    assert first.parent is not None
    assert path is None or first.path == path
    assert note_of(pyray_ser.dumps, value) == first.path
    assert note_of(debug_pickler.dumps, value) == first.path
    assert note_of(lambda value: _pickle.Pickler(io.BytesIO()).dump(value), value) == first.path
    assert note_of(lambda value: _pickle.Pickler(io.BytesIO(), 2).dump(value), value)  # protocol 2 reduces sets
    with pytest.raises(TypeError) as caught:
        _pickle._put(value)
    assert str(caught.value).endswith(f" (at {first.path})")
    with pytest.raises(TypeError) as caught:
        pyray_ser.serialize(value)
    assert f" (at {first.path})" in str(caught.value) and caught.value.path == first.path
    close(value)


def test_a_long_way_loses_its_middle():
    value = LOCK
    for _ in range(100_000):
        value = [value]
    for path in (
        note_of(pyray_ser.dumps, value),
        note_of(lambda value: _pickle.Pickler(io.BytesIO()).dump(value), value),
    ):
        assert len(path) < 3000 and path.startswith("[0][0][0]") and path.endswith("[0]") and " ... " in path
    while type(value) is list:
        (value,) = value


def test_what_was_on_the_way_is_not_kept_alive():
    import weakref

    value = Box(inner=Box(lock=LOCK))
    references = [weakref.ref(value), weakref.ref(value.inner)]
    with pytest.raises(TypeError):
        pyray_ser.dumps(value)
    pyray_ser.dumps([1])
    del value
    assert [reference() for reference in references] == [None, None]


def test_a_path_that_cannot_be_told_does_not_replace_the_error(monkeypatch):
    monkeypatch.setattr(sys.modules["pyray_ser.inspection.tracing"], "way_to_failure", None)
    with pytest.raises(TypeError, match="cannot pickle") as caught:
        pyray_ser.dumps([LOCK])
    assert not hasattr(caught.value, "__notes__")


class Vanishes:
    """An object whose reduction removes the other items from its list and then raises."""

    def __init__(self, holder):
        self.holder = holder

    def __reduce__(self):
        self.holder.clear()
        raise TypeError("refused")


def test_what_has_changed_meanwhile_is_not_looked_for():
    holder = []
    holder += [1, Vanishes(holder), 2]
    with pytest.raises(TypeError, match="refused"):
        pyray_ser.dumps([holder])
    alone = []
    assert sys.getrefcount(holder) == sys.getrefcount(alone)
