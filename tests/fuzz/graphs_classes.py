"""Define classes for the random graphs: one for each way to customize pickling, and hundreds that share cache slots.

Both picklers cache facts about classes in tables of fixed size. `FAMILIES` has so many classes that several of them
share one slot of such a table; `crowded()` selects such classes.
"""

from __future__ import annotations

import argparse
import collections
import copyreg
import dataclasses
import enum
import random
import sys
import types
from typing import NamedTuple

import numpy as np

NAMES = tuple("alpha beta gamma delta name value count é left right parent children items _private x y z".split())


# ---- one class for each protocol -----------------------------------------------------------------------------------------


class Plain:
    pass


class Slots:
    __slots__ = ("__hidden", "a", "b", "c")

    def hide(self, value):
        self.__hidden = value


class SlotsAndDict(Slots):
    pass


class State:
    """A class with `__getstate__` and `__setstate__`, whose state is not a dict."""

    def __init__(self, payload=None):
        self.payload = payload

    def __getstate__(self):
        return ("state", self.payload)

    def __setstate__(self, state):
        self.payload = state[1]


class StateDict:
    """A class with `__getstate__` but without `__setstate__`."""

    def __init__(self, payload=None):
        self.payload = payload
        self.cache = [1, 2]

    def __getstate__(self):
        return dict(self.__dict__)


class SetsState:
    """A class with only `__setstate__`, whose Python code runs while the containing object is being loaded."""

    def __setstate__(self, state):
        for name, value in state.items():
            setattr(self, name, value)


class Reduces:
    def __init__(self, *args):
        self.args = args

    def __reduce__(self):
        return type(self), self.args


class ReducesWithState:
    def __init__(self, value=None):
        self.value = value
        self.extra = None

    def __reduce_ex__(self, protocol):
        return type(self), (self.value,), {"extra": self.extra}


class ReducesToItems:
    """A class whose reduction is a tuple of five parts."""

    def __init__(self):
        self.items = []
        self.pairs = {}

    def append(self, item):
        self.items.append(item)

    def extend(self, items):
        self.items.extend(items)

    def __setitem__(self, key, value):
        self.pairs[key] = value

    def __reduce__(self):
        return type(self), (), None, iter(self.items), iter(self.pairs.items())


def set_state(obj, state):
    obj.set_by_function = state


class ReducesWithSetter:
    def __reduce__(self):
        return type(self), (), getattr(self, "set_by_function", None), None, None, set_state


class NewArgs:
    def __new__(cls, a=None, b=None):
        self = super().__new__(cls)
        self.given = (a, b)
        return self

    def __getnewargs__(self):
        return self.given


class NewArgsEx:
    def __new__(cls, first=None, *, key=None):
        self = super().__new__(cls)
        self.first = first
        self.key = key
        return self

    def __getnewargs_ex__(self):
        return (self.first,), {"key": self.key}


class Registered:
    def __init__(self, value=None):
        self.value = value


def reduce_registered(obj):
    return Registered, (obj.value,)


copyreg.pickle(Registered, reduce_registered)


class Meta(type):
    pass


class WithMeta(metaclass=Meta):
    pass


class AnswersAnything:
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return 5


class Outer:
    class Inner:
        def __init__(self, value=None):
            self.value = value


class MyInt(int):
    pass


class MyFloat(float):
    pass


class MyStr(str):
    pass


class MyBytes(bytes):
    pass


class MyList(list):
    pass


class MyDict(dict):
    pass


class MySet(set):
    pass


class MyFrozenSet(frozenset):
    pass


class MyTuple(tuple):
    pass


class MyDeque(collections.deque):
    pass


class MyOrderedDict(collections.OrderedDict):
    pass


class MyArray(np.ndarray):
    pass


class Problem(Exception):
    pass


class ProblemWithCode(ValueError):
    def __init__(self, code, text):
        super().__init__(code, text)
        self.code = code


class Colour(enum.Enum):
    RED = 1
    GREEN = "green"
    PAIR = (1, 2)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Permission(enum.Flag):
    R = 1
    W = 2


class Word(enum.StrEnum):
    ONE = "one"
    TWO = "two"


class Point(NamedTuple):
    x: object
    y: object


class OpenPoint(collections.namedtuple("OpenPoint", "x y z")):
    """A namedtuple with a `__dict__`."""


def plain_function(x=1):
    return x


Namespaces = (argparse.Namespace, types.SimpleNamespace)


# ---- hundreds of classes -------------------------------------------------------------------------------------------------


def _plain(name, names):
    return type(name, (), {"names": names})


def _slotted(name, names):
    return type(name, (), {"__slots__": names, "names": names})


def _slotted_and_dict(name, names):
    return type(name, (), {"__slots__": (*names[:2], "__dict__"), "names": names})


def _derived(name, names):
    return type(name, (Plain,), {"names": names})


def _dataclass(name, names):
    fields = [(field, object, dataclasses.field(default=None)) for field in names]
    return dataclasses.make_dataclass(name, fields, namespace={"names": names}, eq=False)


def _slotted_dataclass(name, names):
    fields = [(field, object, dataclasses.field(default=None)) for field in names]
    return dataclasses.make_dataclass(name, fields, eq=False, slots=True, namespace={"names": None})


def _frozen_dataclass(name, names):
    fields = [(field, object, dataclasses.field(default=None)) for field in names]
    return dataclasses.make_dataclass(name, fields, eq=False, slots=True, frozen=True)


def _named_tuple(name, names):
    return collections.namedtuple(name, [field.strip("_") for field in names], module=__name__)


def _stateful(name, names):
    return type(name, (SetsState,), {"names": names})


_FORMS = {
    "plain": (_plain, 1600),
    "slotted": (_slotted, 300),
    "slotted and dict": (_slotted_and_dict, 100),
    "derived": (_derived, 200),
    "dataclass": (_dataclass, 40),
    "slotted dataclass": (_slotted_dataclass, 30),
    "frozen dataclass": (_frozen_dataclass, 20),
    "named tuple": (_named_tuple, 60),
    "stateful": (_stateful, 100),
}


def _make_families():
    """Create the classes of each form; random numbers from a fixed seed make them the same in every process."""
    r = random.Random("families")
    families = {}
    for form, (make, count) in _FORMS.items():
        classes = []
        for i in range(count):
            names = tuple(r.sample(NAMES, r.choice((1, 2, 3, 3, 3, 3, 3, 3, 4, 5, 8))))
            name = f"{''.join(word.capitalize() for word in form.split())}{i}"
            made = make(name, names)
            made.__module__ = __name__
            setattr(sys.modules[__name__], name, made)
            classes.append((made, tuple(field.strip("_") for field in names) if form == "named tuple" else names))
        families[form] = classes
    return families


FAMILIES = _make_families()
PLAIN = [entry for form in ("plain", "slotted", "slotted and dict", "derived", "stateful") for entry in FAMILIES[form]]


def _place(cls):
    """
    Return the slot of a class in a table with 256 slots.

    The function uses the hash of the unpickler's table. If the unpickler changes its hash, the classes of a graph
    collide less often, but the graphs stay valid.
    """
    return (id(cls) >> 4 ^ id(cls) >> 12) % 256


def _crowds():
    places = collections.defaultdict(list)
    for entry in PLAIN:
        if len(entry[1]) == 3:
            places[_place(entry[0])].append(entry)
    return places


_BY_PLACE = _crowds()
_CROWDS = [crowd for crowd in _BY_PLACE.values() if len(crowd) >= 3]


def crowded(number):
    """
    Return classes with three attributes each that share one slot of a cache table, and the attributes' names.

    The selection depends on the addresses of the classes; the rest of a graph does not.

    Parameters
    ----------
    number : float
        From 0 to 1.
    """
    return _CROWDS[int(number * len(_CROWDS))]


def crowd_of(cls):
    """Return the classes that share a cache slot with a class, and their attributes' names."""
    return _BY_PLACE.get(_place(cls), ())


def _mix(mixed, text):
    spread, most = 0x9E3779B97F4A7C15, 2**64 - 1
    for i in range(0, len(text) - 8, 8):
        mixed = (mixed ^ int.from_bytes(text[i : i + 8], "little")) * spread & most
        mixed ^= mixed >> 29
    word = int.from_bytes(text[-8:], "little") if len(text) >= 8 else int.from_bytes(text, "big")
    return (mixed ^ word) * spread & most


def _place_of_name(cls):
    """Return the slot of a class name in a table with 512 slots, by the unpickler's hash as in `_place`."""
    module, name = cls.__module__.encode(), cls.__qualname__.encode()
    return (_mix(_mix(len(module), name), module) * 0x9E3779B97F4A7C15 >> 32) % 512


_BY_PLACE_OF_NAME = collections.defaultdict(list)
for _cls, _ in PLAIN:
    _BY_PLACE_OF_NAME[_place_of_name(_cls)].append(_cls)


def namesakes(cls):
    """Return other classes whose names share a cache slot with the name of a class."""
    return [other for other in _BY_PLACE_OF_NAME.get(_place_of_name(cls), ()) if other is not cls]
