"""The objects of the pickler's table, importable by the processes that load them."""

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
    """Data of the shape pyperformance's pickle benchmark uses: a small mixed dict, a tuple, a group of dicts."""
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
    """About `size` bytes of JSON, as a parser returns it: keys shared, values not."""
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
    """(name, object, promised ratio of dumps, of loads); objects are made when asked for."""
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
