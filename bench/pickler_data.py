"""Define the objects of the pickler's table, in a module so that the processes that load them can import it."""

from __future__ import annotations

import datetime
import decimal
import enum
import random
import string
from collections import namedtuple
from dataclasses import dataclass


class Plain:
    def __init__(self, i: int) -> None:
        self.number = i
        self.name = f"name {i}"
        self.ratio = i / 7
        self.flag = i % 2 == 0
        self.other = None

    def __eq__(self, other: object) -> bool:
        return type(other) is Plain and self.__dict__ == other.__dict__


@dataclass(slots=True)
class Slotted:
    number: int
    name: str
    ratio: float
    flag: bool
    other: object = None


@dataclass(slots=True, frozen=True)
class Frozen:
    number: int
    name: str
    ratio: float
    flag: bool
    other: object = None


Point = namedtuple("Point", "x y label")

Many = enum.Enum("Many", [f"M{i}" for i in range(10_000)], module=__name__)


class Colour(enum.Enum):
    RED = 1
    GREEN = 2
    BLUE = 3


def function(x):
    return x


def closure(scale=3):
    offset = 5
    return lambda x: x * scale + offset


def _pyperformance(rng):
    """Return data like that of pyperformance's pickle benchmark: a small mixed dict, a tuple, a list of dicts."""
    mixed = {
        "ads_flags": 0, "age": 18, "birthday": datetime.date(1980, 5, 7), "bulletin_count": 0, "comment_count": 0,
        "country": "BR", "encrypted_id": "G9urXXAJwjE", "favorite_count": 9, "first_name": "", "flags": 412317970704,
        "friend_count": 0, "gender": "m", "gender_for_display": "Male", "id": 302935349, "is_custom_profile_icon": 0,
        "last_name": "", "locale_preference": "pt_BR", "member": 0, "tags": ["a", "b", "c", "d", "e", "f", "g"],
        "profile_foo_id": 827119638, "secure_encrypted_id": "Z_xxx2dYx3t4YAdnmfgyKw", "session_number": 2,
        "signup_id": "201-19225-223", "status": "A", "theme": 1, "time_created": 1225237014, "time_updated": 1233134493,
        "unread_message_count": 0, "user_group": "0", "username": "collinwinter", "play_count": 9,
        "view_count": 7, "zip": "",
    }  # fmt: skip
    numbers = [265867233, 265868503, 265252341, 265243910, 265879514, 266219766, 266021701, 265843726, 265592821]
    pair = ([n + rng.randrange(9) for n in numbers * 2], 60)
    return mixed, pair, [dict(mixed, id=i) for i in range(3)]


def json_document(size=1 << 20):
    """Return the result of parsing about `size` bytes of JSON: equal keys are the same object, equal values are not."""
    import json

    rng = random.Random(3)
    records = []
    length = 0
    while length < size:
        record = {
            "id": rng.randrange(10**9),
            "user": "".join(rng.choices(string.ascii_lowercase, k=10)),
            "score": rng.random(),
            "active": rng.random() < 0.5,
            "tags": ["".join(rng.choices(string.ascii_lowercase, k=5)) for _ in range(3)],
            "address": {"street": "".join(rng.choices(string.ascii_letters, k=20)), "number": rng.randrange(500),
                        "geo": [rng.uniform(-90, 90), rng.uniform(-180, 180)]},
            "note": None,
        }  # fmt: skip
        records.append(record)
        length += len(json.dumps(record))
    return json.loads(json.dumps(records))


def rows():
    """Return rows of (name, function that makes the object, minimum ratio of dumps, minimum ratio of loads)."""
    import numpy as np

    rng = random.Random(1)
    start = datetime.datetime(2020, 1, 1)
    mixed, pair, group = _pyperformance(rng)
    return [
        ("None", lambda: None, 2.5, 2.5),
        ("int", lambda: 12345, 2.5, 2.5),
        ("dict of 3", lambda: {"a": 1, "b": "two", "c": 3.0}, 2.5, 2.5),
        ("pyperformance dict", lambda: mixed, 2.7, 1.9),
        ("pyperformance tuple", lambda: pair, 2.7, 1.9),
        ("pyperformance list", lambda: [list(range(10)) for _ in range(10)], 2.7, 1.9),
        ("pyperformance group", lambda: group, 2.7, 1.9),
        ("100,000 ints", lambda: [rng.randrange(-(2**31), 2**31) for _ in range(100_000)], 5, 1.35),
        ("100,000 floats", lambda: [rng.random() for _ in range(100_000)], 9, 1.7),
        ("100,000 short str", lambda: [f"key {i}" for i in range(100_000)], 10, 1.6),
        ("JSON of 1 MB", json_document, 5, 2.1),
        ("10,000 plain", lambda: [Plain(i) for i in range(10_000)], 9, 5),
        ("10,000 slots", lambda: [Slotted(i, f"name {i}", i / 7, True) for i in range(10_000)], 25, 6),
        ("10,000 frozen slots", lambda: [Frozen(i, f"name {i}", i / 7, True) for i in range(10_000)], None, None),
        ("10,000 namedtuples", lambda: [Point(i, i / 3, f"p{i}") for i in range(10_000)], 3, 2),
        ("10,000 enum members", lambda: list(Many), 3, 2),
        ("10,000 refs to 3 members", lambda: [list(Colour)[i % 3] for i in range(10_000)], 1.2, 1),
        ("10,000 datetimes", lambda: [start + datetime.timedelta(seconds=i * 977) for i in range(10_000)], 3, 2),
        ("10,000 Decimals", lambda: [decimal.Decimal(i) / 8 for i in range(10_000)], 3, 1.3),
        ("1,000 ndarrays", lambda: [np.arange(4.0) + i for i in range(1000)], 12, 9),
        ("one ndarray", lambda: np.arange(4.0), 12, 9),
        ("function", lambda: function, 2, 2),
        ("class", lambda: Plain, 2, 2),
        ("lambda", closure, 1.5, 1.5),
    ]


# ---- the sweep ----------------------------------------------------------------------------------------------------------


class Hooked:
    def __init__(self, i=0):
        self.i = i

    def __reduce__(self):
        return Hooked, (self.i,)


class Stateful:
    def __init__(self, i=0):
        self.i = i

    def __getstate__(self):
        return {"i": self.i}


class OwnList(list):
    pass


class OwnStr(str):
    pass


def sweep():
    """Yield (name, maker) for every kind of element in every kind of container."""
    import array
    import collections
    import fractions
    import pathlib
    import uuid

    import numpy as np

    rng = random.Random(5)
    elements = {
        "None": lambda i: None,
        "bool": lambda i: i % 2 == 0,
        "small int": lambda i: i % 256,
        "int": lambda i: rng.randrange(-(2**31), 2**31),
        "int 64": lambda i: rng.randrange(-(2**63), 2**63),
        "int 1000": lambda i: rng.getrandbits(1000),
        "float": lambda i: rng.random(),
        "complex": lambda i: complex(i, 1),
        "str": lambda i: f"text {i}",
        "same str": lambda i: "the same",
        "accented": lambda i: f"é {i}",
        "kanji": lambda i: f"日本 {i}",
        "emoji": lambda i: f"😀 {i}",
        "str 1000": lambda i: f"{i:1000}",
        "str 100k": lambda i: "x" * 100_000 + str(i) if i < 20 else "x",
        "bytes": lambda i: b"bytes %d" % i,
        "bytes 1000": lambda i: b"%1000d" % i,
        "bytes 100k": lambda i: b"x" * 100_000 + b"%d" % i if i < 20 else b"x",
        "bytearray": lambda i: bytearray(b"array"),
        "empty": lambda i: ((), [], {}, "", b"")[i % 5],
        "tuple": lambda i: (i, i + 1),
        "long tuple": lambda i: tuple(range(i, i + 10)),
        "list": lambda i: [i, i + 1],
        "dict": lambda i: {"a": i, "b": None},
        "int dict": lambda i: {i: i, i + 1: 0},
        "set": lambda i: {i, i + 1},
        "frozenset": lambda i: frozenset((i, "x")),
        "nested": lambda i: [[(i,)], {"k": [i]}],
        "plain": Plain,
        "slots": lambda i: Slotted(i, "n", 1.0, True),
        "frozen": lambda i: Frozen(i, "n", 1.0, True),
        "namedtuple": lambda i: Point(i, 1, "p"),
        "reduce": Hooked,
        "getstate": Stateful,
        "list subclass": lambda i: OwnList([i]),
        "str subclass": lambda i: OwnStr(i),
        "OrderedDict": lambda i: collections.OrderedDict(a=i),
        "defaultdict": lambda i: collections.defaultdict(int, a=i),
        "deque": lambda i: collections.deque([i]),
        "Counter": lambda i: collections.Counter({i: 1}),
        "enum": lambda i: list(Colour)[i % 3],
        "datetime": lambda i: datetime.datetime(2020, 1, 1) + datetime.timedelta(i),
        "utc": lambda i: datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(i),
        "date": lambda i: datetime.date(2020, 1, 1) + datetime.timedelta(i),
        "timedelta": lambda i: datetime.timedelta(i),
        "Decimal": lambda i: decimal.Decimal(i) / 4,
        "Fraction": lambda i: fractions.Fraction(i, 7),
        "UUID": lambda i: uuid.UUID(int=i),
        "Path": lambda i: pathlib.PurePosixPath(f"/a/b/{i}"),
        "range": range,
        "slice": lambda i: slice(i),
        "array": lambda i: array.array("d", [i]),
        "exception": lambda i: ValueError(i),
        "function": lambda i: function,
        "class": lambda i: Plain,
        "builtin": lambda i: len,
        "method": lambda i: "abc".upper,
        "ndarray": lambda i: np.arange(3.0),
        "2-d": lambda i: np.ones((3, 4)),
        "Fortran": lambda i: np.asfortranarray(np.ones((3, 4))),
        "strided": lambda i: np.arange(10)[::2],
        "object array": lambda i: np.array([i, None], object),
        "structured": lambda i: np.zeros(2, "i4,f8"),
        "numpy scalar": lambda i: np.float64(i),
        "dtype": lambda i: np.dtype("f8"),
    }
    containers = {
        "one": lambda make: make(1),
        "list of 20": lambda make: [make(i) for i in range(20)],
        "list of 1000": lambda make: [make(i) for i in range(1000)],
        "dict of 100": lambda make: {f"key {i}": make(i) for i in range(100)},
        "shared": lambda make: [make(1)] * 100,
    }
    for element, make in elements.items():
        for container, wrap in containers.items():
            yield f"{element}, {container}", lambda make=make, wrap=wrap: wrap(make)
