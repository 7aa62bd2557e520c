"""Build random object graphs for the picklers: shared references, cycles, all built-in types, classes with each hook.

`graph(seed)` builds a graph. `shape(obj)` describes a graph; two descriptions are equal if and only if the graphs
have the same values, types and sharing. This module defines the classes, so that every pickler can pickle them by name.
"""

from __future__ import annotations

import array
import collections
import copyreg
import dataclasses
import datetime
import decimal
import enum
import fractions
import random
import uuid

# ---- classes ------------------------------------------------------------------------------------------------------------


class Plain:
    pass


class Derived(Plain):
    def method(self):
        return 1


class Slots:
    __slots__ = ("__private", "a", "b")

    def hide(self, value):
        self.__private = value


class SlotsAndDict(Slots):
    pass


class WeakSlots:
    __slots__ = ("__weakref__", "a")


@dataclasses.dataclass
class Data:
    a: object = None
    b: object = None


@dataclasses.dataclass(slots=True)
class SlottedData:
    a: object = None
    b: object = None
    c: object = 1


@dataclasses.dataclass(slots=True, frozen=True)
class FrozenData:
    a: object = None
    b: object = None


class Point(collections.namedtuple("Point", "x y")):
    __slots__ = ()


class OpenPoint(collections.namedtuple("OpenPoint", "x y z u")):
    pass


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


class MyInt(int):
    pass


class MyStr(str):
    pass


class MyList(list):
    pass


class MyDict(dict):
    pass


class MySet(set):
    pass


class MyTuple(tuple):
    __slots__ = ()


class Getstate:
    def __init__(self, payload=None):
        self.payload = payload

    def __getstate__(self):
        return {"payload": self.payload, "tag": "state"}


class Setstate:
    def __setstate__(self, state):
        self.__dict__.update(state)
        self.restored = True


class Reduce:
    def __init__(self, *args):
        self.args = args

    def __reduce__(self):
        return Reduce, self.args


class ReduceEx:
    def __init__(self, value=None):
        self.value = value

    def __reduce_ex__(self, protocol):
        return ReduceEx, (self.value,), {"value": self.value}


class Newargs:
    def __new__(cls, a=None, b=None):
        self = super().__new__(cls)
        self.seen = (a, b)
        return self

    def __getnewargs__(self):
        return self.seen


class NewargsEx:
    def __new__(cls, *, key=None):
        self = super().__new__(cls)
        self.key = key
        return self

    def __getnewargs_ex__(self):
        return (), {"key": self.key}


class Navigator:
    """A class whose reduction returns an object that another object also holds."""

    def __init__(self, holder=None, found=None):
        self.holder = holder
        self.found = found

    def __reduce__(self):
        found = None
        holder = self.holder
        if isinstance(holder, list) and holder:
            found = holder[0]
        elif isinstance(holder, dict) and holder:
            found = next(iter(holder.values()))
        elif isinstance(holder, Plain):
            found = next(iter(holder.__dict__.values()), None)
        return Navigator, (None, found)


class Iterators:
    """A class whose reduction is a tuple of five elements."""

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
        return Iterators, (), None, iter(self.items), iter(self.pairs.items())


def _set_state(obj, state):
    obj.set_by = state


class Setter:
    def __reduce__(self):
        return Setter, (), {"k": getattr(self, "value", None)}, None, None, _set_state


class Registered:
    def __init__(self, value=None):
        self.value = value


copyreg.pickle(Registered, lambda obj: (Registered, (obj.value,)))


class Meta(type):
    pass


class WithMeta(metaclass=Meta):
    def __init__(self):
        self.m = 1


class InstanceHook:
    """A class whose hook is an attribute of the instance."""

    def __init__(self):
        self.value = 3


def instance_reduce(protocol):
    return InstanceHook, ()


class Getattr:
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return 5


class Lying:
    """A class that claims to be another class; instances are pickled as their real class."""

    def __init__(self, value=None):
        self.value = value

    def __eq__(self, other):
        return True

    def __hash__(self):
        return 1


# ---- building -----------------------------------------------------------------------------------------------------------

_ATOMS = (
    lambda r: None,
    lambda r: r.random() < 0.5,
    lambda r: r.randrange(-5, 300),
    lambda r: r.randrange(-(2 ** r.choice((8, 16, 31, 32, 62, 63, 64, 65, 200))), 2 ** r.choice((8, 16, 31, 32, 63, 64, 200))),
    lambda r: -(2 ** r.choice((7, 8, 15, 16, 31, 32, 39, 63, 64, 127))),
    lambda r: r.uniform(-1e9, 1e9),
    lambda r: r.choice((float("inf"), -0.0, 1e-320)),
    lambda r: "".join(r.choices("abc xyz_", k=r.randrange(12))),
    lambda r: "".join(r.choices("aé\x00\n\\日本😀\ud800", k=r.randrange(9))),
    lambda r: "x" * r.choice((255, 256, 300, 66000)) + str(r.random()),
    lambda r: bytes(r.randrange(256) for _ in range(r.choice((0, 1, 20, 256)))),
    lambda r: b"large" * r.choice((300, 14000)),
    lambda r: r.choice((int, len, Plain, Colour, WithMeta, collections.OrderedDict, instance_reduce, Ellipsis, NotImplemented,
                        type(None), type(Ellipsis), dict.fromkeys, str.upper, [].__class__)),
    lambda r: r.choice((*Colour, *Level, *Permission, Permission.R | Permission.W)),
    lambda r: complex(r.random(), r.random()),
    lambda r: range(r.randrange(9)),
    lambda r: decimal.Decimal(r.randrange(10**6)) / 8,
    lambda r: fractions.Fraction(r.randrange(99), 7),
    lambda r: datetime.datetime(2000 + r.randrange(30), 1 + r.randrange(12), 3, 4, 5, 6, r.randrange(10**6), fold=r.randrange(2)),
    lambda r: datetime.datetime(2000, 1, 1, tzinfo=r.choice((datetime.UTC, datetime.timezone(datetime.timedelta(hours=3), "x")))),
    lambda r: datetime.date(1 + r.randrange(9000), 1, 2),
    lambda r: datetime.time(r.randrange(24), 5, fold=r.randrange(2)),
    lambda r: datetime.timedelta(r.randrange(-9999, 9999), r.randrange(10**5), r.randrange(10**6)),
    lambda r: uuid.UUID(int=r.getrandbits(128)),
    lambda r: bytearray(r.choice((0, 1, 300)) * b"b"),
    lambda r: array.array("i", [r.randrange(99) for _ in range(r.randrange(5))]),
    lambda r: MyInt(r.randrange(999)),
    lambda r: MyStr("my" + str(r.randrange(99))),
)  # fmt: skip


def _hashable(r):
    return r.choice((
        lambda: r.randrange(1000),
        lambda: "key" + str(r.randrange(1000)),
        lambda: (r.randrange(9), "t" + str(r.randrange(99))),
        lambda: frozenset((r.randrange(9), "f")),
        lambda: b"kb" + bytes([r.randrange(256)]),
        lambda: Lying(r.randrange(9)),
        lambda: r.choice((*Colour,)),
        lambda: None,
    ))()  # fmt: skip


def graph(seed, size=30):
    """Return a random graph of about `size` objects."""
    r = random.Random(seed)
    pool = []

    def pick():
        if pool and r.random() < 0.45:
            return r.choice(pool)
        return r.choice(_ATOMS)(r)

    def picks(most=5):
        return [pick() for _ in range(r.randrange(most))]

    def attributes(obj):
        for name in r.sample(("a", "b", "c", "long_name", "é", "value"), r.randrange(5)):
            setattr(obj, name, pick())
        if r.random() < 0.2:
            obj.__dict__
        if r.random() < 0.1:
            obj.__dict__["own " + str(r.random())] = obj.__dict__
        return obj

    def slots(obj):
        for name in r.sample(("a", "b"), r.randrange(3)):
            setattr(obj, name, pick())
        if r.random() < 0.3:
            obj.hide(pick())
        return obj

    def hooked():
        obj = InstanceHook()
        if r.random() < 0.5:
            obj.__reduce_ex__ = instance_reduce
        return obj

    def iterators():
        obj = Iterators()
        obj.items += picks()
        obj.pairs |= {_hashable(r): pick() for _ in range(r.randrange(4))}
        return obj

    def with_dict(obj):
        return attributes(obj)

    makers = (
        lambda: picks(8),
        lambda: [r.randrange(10**6) for _ in range(r.choice((3, 1001, 2000)))],
        lambda: [str(r.random()) for _ in range(r.choice((3, 1000)))],
        lambda: tuple(picks(6)),
        lambda: {_hashable(r): pick() for _ in range(r.randrange(6))},
        lambda: {i: i for i in range(r.choice((2, 999, 1000, 1001)))},
        lambda: {_hashable(r) for _ in range(r.randrange(5))},
        lambda: frozenset(_hashable(r) for _ in range(r.randrange(5))),
        lambda: attributes(Plain()),
        lambda: attributes(Derived()),
        lambda: slots(Slots()),
        lambda: attributes(slots(SlotsAndDict())),
        lambda: WeakSlots(),
        lambda: Data(pick(), pick()),
        lambda: SlottedData(pick(), pick()),
        lambda: FrozenData(pick(), pick()),
        lambda: Point(pick(), pick()),
        lambda: with_dict(OpenPoint(pick(), pick(), 1, 2)) if r.random() < 0.5 else OpenPoint(1, pick(), 3, pick()),
        lambda: attributes(MyList(picks())),
        lambda: attributes(MyDict({_hashable(r): pick() for _ in range(r.randrange(4))})),
        lambda: MySet({1, 2}),
        lambda: MyTuple(picks()),
        lambda: Getstate(pick()),
        lambda: attributes(Setstate()),
        lambda: Reduce(*picks(3)),
        lambda: ReduceEx(pick()),
        lambda: Newargs(pick(), pick()),
        lambda: NewargsEx(key=pick()),
        lambda: Navigator(pick()),
        lambda: iterators(),
        lambda: attributes(Setter()),
        lambda: Registered(pick()),
        lambda: WithMeta(),
        lambda: hooked(),
        lambda: attributes(Getattr()),
        lambda: collections.OrderedDict((_hashable(r), pick()) for _ in range(r.randrange(4))),
        lambda: collections.deque(picks()),
        lambda: collections.defaultdict(list, {1: pick()}),
        lambda: collections.Counter("hello"),
        lambda: {(r.randrange(9), (i,)): [pick()] for i in range(r.randrange(4))},
        lambda: r.choice((Derived, Meta, MyList, Point, Level, collections.deque, datetime.date, type, object)),
    )  # fmt: skip
    for _ in range(r.randrange(1, size)):
        pool.append(r.choice(makers)())
        if r.random() < 0.15:  # a cycle, or a second reference to an existing object
            target = r.choice(pool)
            if type(target) in (list, MyList):
                target.append(r.choice(pool))
            elif type(target) in (dict, MyDict):
                target["cycle"] = r.choice(pool)
            elif isinstance(target, Plain):
                target.cycle = r.choice(pool)
    kept = pool[-1] if r.random() < 0.5 else [x for x in pool if r.random() < 0.5]
    del pool[:]
    return kept


def _scale(factor):
    def inner(x, shift=factor, *, names=(factor, "C")):
        return x * factor + shift

    return inner


def rich_graph(seed):
    """Return a list with a `graph`, arrays, numpy scalars, functions pickled by value, and self-referential tuples."""
    import numpy as np

    r = random.Random(seed)
    pool = [graph(seed, 8)]
    kinds = ("<f8", ">f8", "<i4", "u1", "?", "<c16", "<f2", "U3", "S2", "M8[s]", "m8[D]", "O", "<f4,<i2")
    shapes = ((), (0,), (3,), (300,), (2, 3), (2, 3, 2), (1, 2, 1, 2))

    def array():
        made = np.ones(r.choice(shapes), r.choice(kinds))
        return r.choice((made, made, made.T, made[..., ::2] if made.ndim else made, np.asfortranarray(made)))

    def recursive():
        holder = r.choice(([], {}))
        made = r.choice(
            ((holder,), (holder, 1, 2, "C", r.choice(pool)), Point(holder, r.choice(pool)), frozenset((len(pool),)))
        )
        if type(holder) is list:
            holder += [made, r.choice(pool)]
        else:
            holder["made"] = made
        return made

    makers = (
        array, array, recursive,
        lambda: np.dtype(r.choice(kinds[:5])).type(1),
        lambda: np.dtype(r.choice(kinds)),
        lambda: r.choice((np.ndarray, np.dtype, np.float64, np.add, "numpy", "dtype", "<", "C", "f8")),
        lambda: [r.choice(pool) for _ in range(3)],
        lambda: {"x": r.choice(pool), "y": array()},
        lambda: _scale(r.choice(pool)),
        lambda: (lambda held: lambda y=held: (y, len))(r.choice(pool)),
        lambda: Data(r.choice(pool), array()),
    )  # fmt: skip
    for _ in range(r.randrange(2, 12)):
        made = r.choice(makers)()
        pool.append(made)
    return pool


# ---- describing ---------------------------------------------------------------------------------------------------------


def _children(obj):
    """Yield (label, part) for each part of the object's value."""
    t = type(obj)
    if isinstance(obj, (list, tuple, collections.deque)):
        yield from enumerate(obj)
    elif isinstance(obj, dict):
        for i, (key, value) in enumerate(obj.items()):
            yield ("key", i), key
            yield ("value", i), value
    elif isinstance(obj, (set, frozenset)):
        # Elements are compared by value, because a set has no defined order.
        yield "elements", tuple(sorted(repr(shape(x)) for x in obj))
    if isinstance(obj, collections.defaultdict):
        yield "factory", obj.default_factory
    attributes = getattr(obj, "__dict__", None)
    if isinstance(attributes, dict) and not isinstance(obj, (type, enum.Enum)):
        for name, value in attributes.items():
            yield "." + name, value
    for name in copyreg._slotnames(t) or ():
        try:
            yield "." + name, getattr(obj, name)
        except AttributeError:
            yield "." + name, "unset"


_BY_REPR = (int, float, complex, str, bytes, bytearray, range, decimal.Decimal, fractions.Fraction, uuid.UUID, array.array,
            datetime.date, datetime.time, datetime.timedelta, enum.Enum, type(None), type(Ellipsis), type(NotImplemented))  # fmt: skip


def shape(root):
    """Return a flat description of a graph, in which objects are numbered in the order of the visit."""
    numbers = {}
    keep = []
    out = []
    stack = [("root", root)]
    while stack:
        label, obj = stack.pop()
        if isinstance(obj, (int, float, str, type(None))) and type(obj) in (int, float, str, bool, type(None)):
            out.append((label, type(obj).__name__, repr(obj)))
            continue
        if (type(obj) is tuple and not obj) or (type(obj) is bytes and len(obj) < 2):
            out.append((label, repr(obj)))  # such values are singletons: equal values are the same object
            continue
        number = numbers.get(id(obj))
        if number is not None:
            out.append((label, "again", number))
            continue
        numbers[id(obj)] = len(numbers)
        keep.append(obj)
        text = repr(obj) if isinstance(obj, _BY_REPR) or (callable(obj) and hasattr(obj, "__qualname__")) else ""
        out.append((label, type(obj).__qualname__, text))
        if not isinstance(obj, _BY_REPR) or (type(obj).__dictoffset__ and not isinstance(obj, (type, enum.Enum))):
            stack.extend(reversed(list(_children(obj))) if not isinstance(obj, (type, enum.Enum)) else ())
    return out
