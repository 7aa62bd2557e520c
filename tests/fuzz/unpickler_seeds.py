"""The seed pickles of the fuzz tests, and the harmless globals that a fuzzed stream may name.

The fuzz tests import this module, and the sanitizer build runs it too. The module needs only the standard library.
"""

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import pickle
import pickletools


class Plain:
    def __init__(self, *values):
        for name, value in zip("abcdefgh", values):
            setattr(self, name, value)


class Slots:
    __slots__ = ("x", "y")


@dataclasses.dataclass(slots=True)
class Row:
    a: int
    b: str
    c: float


@dataclasses.dataclass
class Record:
    a: int
    b: str


class Stateful:
    def __init__(self, state=None):
        self.state = state

    def __getstate__(self):
        return (self.state,)

    def __setstate__(self, state):
        self.state = state


class Listy(list):
    pass


class Mapping(dict):
    pass


class Property:
    """A class whose pickled state has an attribute that a data descriptor of the class hides."""

    def __init__(self, value):
        self.__dict__["hidden"] = value

    @property
    def hidden(self):
        return ("property", self.__dict__.get("hidden"))


class NewArgs:
    def __new__(cls, a, b=0):
        self = object.__new__(cls)
        self.made = (a, b)
        return self

    def __getnewargs_ex__(self):
        return (1,), {"b": 2}


Point = collections.namedtuple("Point", "x y z")


class SubPoint(Point):
    __slots__ = ()


class Own(collections.namedtuple("Own", "x y")):
    """A namedtuple with its own __new__ instead of the generated one."""

    def __new__(cls, x, y=5):
        return super().__new__(cls, x, y)


class Colour(enum.Enum):
    RED = 1
    GREEN = "green"
    BLUE = (1, 2)


class Flag(enum.IntFlag):
    A = 1
    B = 2


def function():
    pass


OWN = (
    Plain,
    Slots,
    Row,
    Record,
    Stateful,
    Listy,
    Mapping,
    Property,
    NewArgs,
    Point,
    SubPoint,
    Own,
    Colour,
    Flag,
    function,
)

ALLOWED = (
    {(c.__module__, c.__qualname__) for c in OWN}
    | {
        ("collections", "OrderedDict"),
        ("collections", "Counter"),
        ("collections", "deque"),
        ("datetime", "datetime"),
        ("datetime", "date"),
        ("datetime", "time"),
        ("datetime", "timedelta"),
        ("datetime", "timezone"),
        ("decimal", "Decimal"),
        ("fractions", "Fraction"),
    }
    | {
        (module, name)
        for modules, names in (
            # modules under their Python 3 and Python 2 names
            (("copyreg", "copy_reg"), ("_reconstructor", "__newobj_ex__")),
            (("builtins", "__builtin__"), ("object", "list", "dict", "set", "frozenset", "complex", "slice")),
        )
        for module in modules
        for name in names
    }
)


def allowed(module, name):
    return (module, name) in ALLOWED


def _values():
    yield from (None, True, False, 0, 1, 255, 256, 65535, 65536, -1, -(2**31), 2**31, 2**63, -(2**70), 2**300)
    yield from (0.0, -1.5, 1e300, float("inf"), "", "a", "abc", "é", "\ud800", "x" * 300, "\n\\'\"")
    yield from (
        b"",
        b"x",
        b"y" * 300,
        bytearray(b"abc"),
        (),
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 3, 4),
        [],
        [1],
        [1, "a", [2]],
    )
    yield from ({}, {"a": 1}, {"a": 1, "b": {"c": [1]}}, {1: 2, "x": None, (1, 2): 3}, {1, 2}, frozenset({"a"}), 1 + 2j)
    yield [{"id": i, "name": f"n{i}", "tags": ["x", "y"]} for i in range(4)]
    yield from (Plain(1, "b", [3]), [Plain(i, str(i), i / 2) for i in range(5)], Plain(), Property(3), Record(1, "x"))
    row = Row(1, "r", 0.5)
    yield from (row, [Row(i, "r", i / 3) for i in range(5)], [row, row])
    slots = Slots()
    slots.x = [1]
    yield from (slots, [slots, slots], Stateful([1, 2]), Stateful(), Listy([1, 2]), Mapping(a=1), NewArgs(1))
    listy = Listy("ab")
    listy.attribute = listy
    yield listy
    yield from (Point(1, "y", None), [Point(i, i, i) for i in range(4)], SubPoint(1, 2, 3), Own(1, 2))
    yield from (Colour.RED, Colour.GREEN, Colour.BLUE, list(Colour) * 3, Flag.A | Flag.B)
    moment = datetime.datetime(2024, 2, 29, 12, 30, 15, 999999)
    yield from (moment, moment.replace(tzinfo=datetime.UTC, fold=1), moment.date(), moment.time())
    yield from (datetime.timedelta(-3, 4, 5), datetime.timezone(datetime.timedelta(hours=2)), decimal.Decimal("1.50"))
    yield from (fractions.Fraction(1, 3), collections.OrderedDict(a=1, b=2), collections.Counter("abca"))
    yield from (collections.deque([1, 2], 5), function, Plain, slice(1, 2, None))
    cycle = []
    cycle.append(cycle)
    yield cycle
    cycle = {}
    cycle["me"] = cycle
    yield cycle
    knot = Plain(1, 2)
    knot.a = knot
    yield [knot, knot.__dict__]
    pair = [Plain(i, "s") for i in range(4)]
    for one, other in zip(pair, pair[1:]):
        one.b = other
    yield pair + [p.__dict__ for p in pair]
    tuples = ([], ())
    tuples[0].append(tuples)
    yield tuples
    shared = ["s"]
    yield [shared] * 5 + [Plain(shared, "k")] * 2


def seeds():
    """Return distinct pickles of each value: in each protocol, with and without unused memo opcodes."""
    found = {}
    for value in _values():
        for protocol in range(6):
            try:
                found.setdefault(pickle.dumps(value, protocol))
            except (pickle.PicklingError, TypeError, UnicodeEncodeError):
                if protocol >= 2:
                    raise
    for data in list(found):
        found.setdefault(pickletools.optimize(data))
    return list(found)
