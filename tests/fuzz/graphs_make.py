"""Create random graphs of objects, with sharing and cycles, by more than a hundred functions (makers).

`graph(seed)` returns the same graph in every process. Each maker is a function of a `Builder`, which supplies random
numbers and objects created earlier.
"""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import fractions
import functools
import operator
import pathlib
import random
import string
import uuid
import zoneinfo

import graphs_classes as classes
import graphs_layouts as layouts
import numpy as np

# These lengths are at and next to each threshold of the picklers: choice of the opcode, caches of short strings,
# batches, and the smallest buffer that `put` stores outside the stream.
LENGTHS = tuple(
    n + d for n in (1, 8, 16, 32, 40, 48, 64, 120, 128, 255, 256, 512, 1000, 1024, 4096) for d in (-1, 0, 1)
)
LONG_LENGTHS = tuple(n + d for n in (32_768, 65_535, 65_536, 131_072, 262_144) for d in (-1, 0, 1))
COUNTS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65)
LONG_COUNTS = (255, 256, 257, 999, 1000, 1001, 1024, 2000, 2001)
NOISE = random.Random("noise").randbytes(1 << 20)
ALPHABETS = ("abcdefghij _", "abé\u00ff", "aж日本", "a😀b", "\x00\n\\'\"", "x\ud800")

VALUES, CONTAINERS, INSTANCES, ARRAYS, LIBRARIES, FUNCTIONS = {}, {}, {}, {}, {}, {}


def maker(family, weight=1):
    """Register a maker in a family; a maker with weight 2 is chosen twice as often as others."""

    def register(function):
        family[function.__name__] = (function, weight)
        return function

    return register


class Builder:
    """
    The argument of every maker: it supplies random numbers and the objects that earlier makers created.

    Parameters
    ----------
    seed : int
    libraries : bool
        If true, also create objects of pandas and pyarrow, which takes a hundred times longer.
    """

    def __init__(self, seed, libraries=True):
        self.r = r = random.Random(seed)
        self.random, self.choice = r.random, r.choice
        self.pool = []
        self.by_value = False  # whether the graph needs pickling by value, which the standard pickler cannot do
        self.views = False  # whether the graph has memoryviews, which are lost without out-of-band buffers
        self.libraries = libraries
        self.crowd = classes.crowded(r.random())

    def below(self, n):
        """Return a random number from 0 to n - 1; `Random.randrange` is five times slower."""
        return int(self.random() * n)

    def atom(self):
        return _choose(self, _VALUE_TABLE)(self)

    def child(self):
        """Return an object created earlier, or a new value."""
        pool = self.pool
        if pool and self.random() < 0.5:
            return pool[self.below(len(pool))]
        return self.atom()

    def children(self, most=6):
        return [self.child() for _ in range(self.below(most))]

    def key(self):
        """Return a hashable value, for a key of a dict or an element of a set."""
        n = self.below(8)
        if n < 4:
            return "key" + str(self.below(40))
        if n == 4:
            return self.below(3000) - 300
        if n == 5:
            return (self.below(9), "t" + str(self.below(99)))
        if n == 6:
            return b"k%d" % self.below(99)
        return self.choice((None, 1.5, classes.Colour.RED, frozenset((1, "f")), datetime.date(2020, 1, 2)))

    def keys(self, most=6):
        return [self.key() for _ in range(self.below(most))]

    def attributes(self, obj, names=None):
        """Set some attributes: usually all names of the class in order, a case for which the picklers have caches."""
        names = names or classes.NAMES[:6]
        if self.random() < 0.3:
            names = self.r.sample(names, self.below(len(names) + 1))
        for name in names:
            setattr(obj, name, self.child())
        return obj

    def of_crowd(self):
        """Return a class that shares a slot of a cache table with other classes, and the names of its attributes."""
        return self.crowd[self.below(len(self.crowd))]

    def entry(self, form=None):
        """Return a class and the names of its attributes; the class often shares a cache slot with other classes."""
        if form is None and self.random() < 0.7:
            return self.of_crowd()
        return self.choice(classes.FAMILIES[form] if form else classes.PLAIN)


# ---- values --------------------------------------------------------------------------------------------------------------


@maker(VALUES, 2)
def none_or_bool(b):
    return b.choice((None, True, False))


@maker(VALUES, 3)
def small_int(b):
    return b.below(300) - 20


@maker(VALUES)
def int_at_an_edge(b):
    return (
        b.choice((1, -1)) * (1 << b.choice((7, 8, 15, 16, 29, 30, 31, 32, 39, 59, 60, 62, 63, 64, 127, 255)))
        + b.below(3)
        - 1
    )


@maker(VALUES)
def big_int(b):
    return b.r.getrandbits(b.choice((65, 200, 2047, 2048, 2100))) * b.choice((1, -1))


@maker(VALUES)
def float_value(b):
    return b.random() * 1e6


@maker(VALUES)
def odd_float(b):
    return b.choice((float("inf"), -float("inf"), float("nan"), -0.0, 5e-324, 1.7e308))


@maker(VALUES)
def complex_value(b):
    return complex(b.random(), b.choice((-0.0, float("nan"), 1.0)))


@maker(VALUES, 3)
def short_text(b):
    return b.choice(("alpha", "beta", "name", "x", "numpy", "dtype", "C", "builtins")) + b.choice(("", "", "1", "_2"))


@maker(VALUES, 2)
def ascii_text(b):
    n, at = b.choice(LENGTHS), b.below(200)
    return (string.printable * 50)[at : at + n]


@maker(VALUES)
def wide_text(b):
    alphabet = b.choice(ALPHABETS)
    return (alphabet * (b.choice(LENGTHS) // len(alphabet) + 1))[b.below(3) :]


@maker(VALUES)
def bytes_value(b):
    n, at = b.choice(LENGTHS), b.below(100_000)
    return NOISE[at : at + n]


@maker(VALUES)
def range_value(b):
    return range(b.below(9), b.below(1 << 40), b.below(7) + 1)


@maker(VALUES)
def slice_or_singleton(b):
    return b.choice((slice(1, None, 2), slice("a"), Ellipsis, NotImplemented))


@maker(VALUES)
def date_value(b):
    return datetime.date(1 + b.below(9000), 1 + b.below(12), 3)


@maker(VALUES)
def datetime_value(b):
    zone = b.choice(
        (None, None, datetime.UTC, datetime.timezone(datetime.timedelta(hours=3), "x"), zoneinfo.ZoneInfo("UTC"))
    )
    return datetime.datetime(2000 + b.below(30), 1, 2, b.below(24), 4, 5, b.below(10**6), tzinfo=zone, fold=b.below(2))


@maker(VALUES)
def time_value(b):
    return datetime.time(b.below(24), 5, fold=b.below(2), tzinfo=b.choice((None, datetime.UTC)))


@maker(VALUES)
def timedelta_value(b):
    return datetime.timedelta(b.below(9999) - 5000, b.below(10**5), b.below(10**6))


@maker(VALUES)
def decimal_value(b):
    return decimal.Decimal(b.below(10**6)) / 8 if b.random() < 0.8 else decimal.Decimal("-NaN")


@maker(VALUES)
def fraction_value(b):
    return fractions.Fraction(b.below(99), 7)


@maker(VALUES)
def uuid_value(b):
    return uuid.UUID(int=b.r.getrandbits(128))


@maker(VALUES)
def path_value(b):
    return b.choice((pathlib.Path, pathlib.PurePosixPath, pathlib.PureWindowsPath))(f"a/b{b.below(9)}/c")


@maker(VALUES)
def enum_member(b):
    return b.choice((*classes.Colour, *classes.Level, *classes.Word, *classes.Permission, classes.Permission(3)))


@maker(VALUES)
def global_value(b):
    return b.choice((int, len, classes.Plain, classes.Outer.Inner, classes.WithMeta, collections.OrderedDict, classes.plain_function,
                     type(None), type(Ellipsis), dict.fromkeys, str.upper, np.add, np.float64, np.ndarray, type, object))  # fmt: skip


@maker(VALUES)
def generic_alias(b):
    return b.choice((list[int], dict[str, tuple[int, ...]], type[int]))


@maker(VALUES)
def numpy_scalar(b):
    kind = b.choice(("?", "i1", "u2", "i4", "i8", "f2", "f4", "f8", "c16", "M8[s]", "m8[ms]", "U3", "S4"))
    return np.array([b.below(100)]).astype(kind)[0]


@maker(VALUES)
def numpy_dtype(b):
    return np.dtype(b.choice(("f8", ">i4", "U7", "M8[us]", "O", "i4,f8", "V5", [("a", "<i2", (2, 3)), ("b", "S3")])))


@maker(VALUES)
def getter(b):
    return b.choice((operator.itemgetter(1), operator.itemgetter("a", 2), operator.attrgetter("a.b")))


# ---- containers ----------------------------------------------------------------------------------------------------------


@maker(CONTAINERS, 4)
def list_of_anything(b):
    return b.children(8)


@maker(CONTAINERS)
def list_of_ints(b):
    n = b.choice(COUNTS) if b.random() < 0.9 else b.choice(LONG_COUNTS)
    top = 1 << b.choice((8, 16, 31, 33, 63, 70))
    return [b.below(top) - top // 4 for _ in range(n)] if n < 300 else list(range(top, top + n))


@maker(CONTAINERS)
def list_of_text(b):
    n = b.choice(COUNTS) if b.random() < 0.9 else b.choice(LONG_COUNTS)
    return [str(i) for i in range(n)]


@maker(CONTAINERS)
def list_of_floats(b):
    return [i / 7 for i in range(b.choice(COUNTS))]


@maker(CONTAINERS)
def list_of_one_object(b):
    return [b.child()] * b.choice(COUNTS)


@maker(CONTAINERS, 3)
def tuple_of_anything(b):
    return tuple(b.children(7))


@maker(CONTAINERS)
def nested_tuples(b):
    made = b.child()
    for _ in range(b.below(12)):
        made = (made,) if b.random() < 0.5 else (made, made)
    return made


@maker(CONTAINERS)
def nested_lists(b):
    made = [b.child()]
    for _ in range(b.choice((2, 10, 60))):
        made = [made]
    return made


@maker(CONTAINERS, 4)
def dict_of_anything(b):
    return {b.key(): b.child() for _ in range(b.below(7))}


@maker(CONTAINERS)
def dict_of_text_keys(b):
    names = classes.NAMES
    return {names[b.below(len(names))]: b.child() for _ in range(b.below(7))}


@maker(CONTAINERS)
def long_dict(b):
    n = b.choice((47, 48, 49, 64, 999, 1000, 1001)) if b.random() < 0.2 else b.choice(COUNTS)
    return {i: i for i in range(n)} if b.random() < 0.5 else {f"k{i}": i for i in range(n)}


@maker(CONTAINERS)
def records(b):
    """Create many dicts with the same keys."""
    names = b.r.sample(classes.NAMES, 1 + b.below(5))
    return [{name: b.atom() for name in names} for _ in range(b.below(8))]


@maker(CONTAINERS)
def set_of_keys(b):
    return set(b.keys())


@maker(CONTAINERS)
def set_of_numbers(b):
    return set(range(b.choice(COUNTS)))


@maker(CONTAINERS)
def set_with_an_instance(b):
    return {b.attributes(classes.Plain()), 1, "x"}


@maker(CONTAINERS)
def frozenset_of_keys(b):
    return frozenset(b.keys())


@maker(CONTAINERS)
def dict_of_instances(b):
    return {b.attributes(classes.Plain()): b.child()}


@maker(CONTAINERS)
def deque_of_anything(b):
    return collections.deque(b.children(), b.choice((None, None, 2, 10)))


@maker(CONTAINERS)
def ordered_dict(b):
    return collections.OrderedDict((b.key(), b.child()) for _ in range(b.below(5)))


@maker(CONTAINERS)
def default_dict(b):
    return collections.defaultdict(b.choice((list, int, None, classes.Plain)), {1: b.child(), "b": b.child()})


@maker(CONTAINERS)
def counter(b):
    return collections.Counter(b.keys(9))


@maker(CONTAINERS)
def chain_map(b):
    return collections.ChainMap({1: b.child()}, {"x": b.child()})


@maker(CONTAINERS)
def bytearray_value(b):
    n, at = b.choice(LENGTHS), b.below(9999)
    return bytearray(NOISE[at : at + n])


@maker(CONTAINERS)
def array_array(b):
    kind = b.choice("bBhHiIlLqQfdu")
    return array.array(kind, "text" if kind == "u" else [b.below(100) for _ in range(b.choice(COUNTS))])


@maker(CONTAINERS)
def memory_view(b):
    b.views = True
    flat = memoryview(NOISE)[: b.choice((0, 8, 64, 1016, 1024, 4096))]
    return flat if b.random() < 0.5 or not flat else flat.cast(b.choice("Bhid"))


@maker(CONTAINERS)
def tuple_in_its_own_list(b):
    inner = [b.child()]
    made = (inner, b.child())
    inner.append(made)
    return b.choice((inner, made))


@maker(CONTAINERS)
def container_that_holds_itself(b):
    made = b.choice((list, classes.MyList))(b.children(3))
    made.append(made)
    if b.random() < 0.5:
        made.append({"self": made})
    return made


# ---- instances -----------------------------------------------------------------------------------------------------------


@maker(INSTANCES, 10)
def plain_of_a_crowd(b):
    cls, names = b.entry()
    return b.attributes(cls(), names)


@maker(INSTANCES, 4)
def parents_of_a_crowd(b):
    """Create instances whose attributes are instances of classes that share a slot of the cache table."""
    made = []
    for _ in range(1 + b.below(4)):
        cls, names = b.of_crowd()
        obj = cls()
        for name in names:
            inner, inner_names = b.of_crowd()
            setattr(obj, name, b.attributes(inner(), inner_names) if b.random() < 0.7 else b.child())
        made.append(obj)
    return made


@maker(INSTANCES, 2)
def many_classes(b):
    """Create instances of so many classes that the classes fill the cache tables."""
    found = []
    for _ in range(b.choice((5, 20, 60))):
        cls, names = classes.PLAIN[b.below(len(classes.PLAIN))]
        obj = cls()
        for name in names:
            setattr(obj, name, found and found[-1])
        found.append(obj)
    return found


@maker(INSTANCES, 2)
def many_of_one_class(b):
    cls, names = b.entry()
    return [b.attributes(cls(), names) for _ in range(b.choice((2, 3, 4, 9)))]


@maker(INSTANCES)
def plain(b):
    return b.attributes(classes.Plain())


@maker(INSTANCES)
def plain_with_many_attributes(b):
    made = classes.Plain()
    for i in range(b.choice((29, 30, 31, 32, 33, 63, 64, 65))):
        setattr(made, f"attribute{i}", i)
    return made


@maker(INSTANCES)
def plain_with_odd_attributes(b):
    made = b.attributes(classes.Plain())
    made.__dict__[b.choice(("not a name", "é", "x" * 50))] = b.child()
    return made


@maker(INSTANCES)
def plain_that_shares_its_dict(b):
    made = b.attributes(classes.Plain())
    return [made, made.__dict__]


@maker(INSTANCES)
def slots(b):
    made = b.attributes(classes.Slots(), ("a", "b", "c"))
    made.hide(b.child())
    return made


@maker(INSTANCES)
def slots_and_dict(b):
    return b.attributes(b.attributes(classes.SlotsAndDict(), ("a", "b")), ("own", "other"))


@maker(INSTANCES)
def state(b):
    return classes.State(b.child())


@maker(INSTANCES)
def state_dict(b):
    return classes.StateDict(b.child())


@maker(INSTANCES)
def sets_state(b):
    made = classes.SetsState()
    made.value = b.child()  # so that the state is not empty: picklers write no empty state
    return b.attributes(made)


@maker(INSTANCES)
def reduces(b):
    return classes.Reduces(*b.children(4))


@maker(INSTANCES)
def reduces_with_state(b):
    made = classes.ReducesWithState(b.child())
    made.extra = b.child()
    return made


@maker(INSTANCES)
def reduces_to_items(b):
    made = classes.ReducesToItems()
    made.items += b.children()
    made.pairs |= {b.key(): b.child() for _ in range(b.below(4))}
    return made


@maker(INSTANCES)
def reduces_with_setter(b):
    made = classes.ReducesWithSetter()
    made.set_by_function = [b.child()]
    return made


@maker(INSTANCES)
def new_args(b):
    return classes.NewArgs(b.child(), b.child())


@maker(INSTANCES)
def new_args_ex(b):
    return classes.NewArgsEx(b.child(), key=b.child())


@maker(INSTANCES)
def registered(b):
    return classes.Registered(b.child())


@maker(INSTANCES)
def with_meta(b):
    return b.attributes(classes.WithMeta())


@maker(INSTANCES)
def answers_anything(b):
    return b.attributes(classes.AnswersAnything())


@maker(INSTANCES)
def nested_class(b):
    return classes.Outer.Inner(b.child())


@maker(INSTANCES)
def namespace(b):
    return b.attributes(b.choice(classes.Namespaces)(), ("alpha", "beta"))


@maker(INSTANCES)
def dataclass(b):
    cls, names = b.entry("dataclass")
    return cls(*(b.child() for _ in names))


@maker(INSTANCES)
def slotted_dataclass(b):
    cls, names = b.entry("slotted dataclass")
    return cls(*(b.child() for _ in names))


@maker(INSTANCES)
def frozen_dataclass(b):
    cls, names = b.entry("frozen dataclass")
    return cls(*(b.child() for _ in names))


@maker(INSTANCES, 2)
def named_tuple(b):
    cls, names = b.entry("named tuple")
    return cls(*(b.child() for _ in names))


@maker(INSTANCES)
def typed_named_tuple(b):
    return classes.Point(b.child(), b.child())


@maker(INSTANCES)
def named_tuple_with_dict(b):
    return b.attributes(classes.OpenPoint(b.child(), 1, b.child()), ("label", "note"))


@maker(INSTANCES)
def int_subclass(b):
    return b.attributes(classes.MyInt(b.below(1 << 70)))


@maker(INSTANCES)
def text_subclass(b):
    return b.attributes(classes.MyStr("text" + str(b.below(9))), ("a",))


@maker(INSTANCES)
def bytes_subclass(b):
    return classes.MyBytes(NOISE[: b.choice(LENGTHS)])


@maker(INSTANCES)
def float_subclass(b):
    return classes.MyFloat(b.random())


@maker(INSTANCES)
def list_subclass(b):
    return b.attributes(classes.MyList(b.children()))


@maker(INSTANCES)
def dict_subclass(b):
    return b.attributes(classes.MyDict({b.key(): b.child() for _ in range(b.below(4))}))


@maker(INSTANCES)
def set_subclass(b):
    return b.attributes(b.choice((classes.MySet, classes.MyFrozenSet))(b.keys()))


@maker(INSTANCES)
def tuple_subclass(b):
    return b.attributes(classes.MyTuple(b.children()))


@maker(INSTANCES)
def deque_subclass(b):
    return b.attributes(classes.MyDeque(b.children()))


@maker(INSTANCES)
def ordered_dict_subclass(b):
    return b.attributes(classes.MyOrderedDict((b.key(), b.child()) for _ in range(b.below(4))))


@maker(INSTANCES)
def built_in_exception(b):
    return b.choice((ValueError, KeyError, OSError, RuntimeError))(b.below(9), "text")


@maker(INSTANCES)
def own_exception(b):
    return b.attributes(b.choice((classes.Problem("p", b.child()), classes.ProblemWithCode(5, "text"))))


@maker(INSTANCES)
def exception_group(b):
    return ExceptionGroup("several", [ValueError(1), classes.Problem(b.child())])


@maker(INSTANCES)
def partial(b):
    return functools.partial(b.choice((len, classes.plain_function, int)), b.child(), key=b.child())


@maker(INSTANCES)
def bound_method(b):
    return b.choice(([b.child()].append, {"a": 1}.get, b.attributes(classes.ProblemWithCode(1, "x")).with_traceback))


# ---- arrays --------------------------------------------------------------------------------------------------------------


@maker(ARRAYS, 6)
def small_array(b):
    return layouts.array(b.r, b.choice((0, 1, 2, 3, 7, 8, 20)))


@maker(ARRAYS, 2)
def array_at_a_threshold(b):
    return layouts.array(b.r, b.choice((63, 64, 127, 128, 129, 500, 511, 512, 513)))


@maker(ARRAYS, 2)
def views_of_one_base(b):
    return layouts.views(b.r, b.choice((16, 130, 600)))


@maker(ARRAYS)
def array_without_dimensions(b):
    return np.array(b.below(100)).astype(b.choice(layouts.PLAIN_TYPES))


@maker(ARRAYS)
def object_array(b):
    made = np.empty(b.below(6), object)
    for i in range(len(made)):
        made[i] = b.child()
    return made if b.random() < 0.7 else made.reshape(1, -1)


@maker(ARRAYS)
def structured_array(b):
    return layouts.structured(b.r, b.choice((0, 1, 5, 60, 100)))


@maker(ARRAYS)
def array_subclass(b):
    return layouts.array(b.r, b.choice((3, 130))).view(classes.MyArray)


@maker(ARRAYS)
def record_array(b):
    return np.rec.fromarrays([np.arange(5), np.arange(5) / 3], names="a,b")


@maker(ARRAYS)
def masked_array(b):
    return np.ma.array(np.arange(b.choice((2, 200))) / 3, mask=np.arange(1) > 0)


@maker(ARRAYS)
def array_with_metadata(b):
    return np.arange(4, dtype=np.dtype("i4", metadata={"unit": "m"}))


# ---- functions by value ---------------------------------------------------------------------------------------------------


def _scale(factor):
    def inner(x, shift=factor, *, names=(factor, "C")):
        return x * factor + shift

    return inner


@maker(FUNCTIONS)
def closure(b):
    b.by_value = True
    return _scale(b.child())


@maker(FUNCTIONS)
def lambda_with_default(b):
    b.by_value = True
    held = b.child()
    return lambda y=held: (y, len)


@maker(FUNCTIONS)
def partial_of_lambda(b):
    b.by_value = True
    return functools.partial(lambda x, y: (x, y), b.child())


# ---- other libraries -------------------------------------------------------------------------------------------------------

IMPORTED = ("pandas", "pyarrow")  # the makers below import these packages when they are first called


@maker(LIBRARIES)
def data_frame(b):
    import pandas as pd

    n = b.choice((0, 3, 128, 300))
    columns = {"i": np.arange(n), "f": np.arange(n) / 3, "t": [str(i) for i in range(n)]}
    frame = pd.DataFrame({name: columns[name] for name in b.r.sample("ift", 1 + b.below(3))})
    return b.choice((frame, frame, frame.iloc[::2], frame[["f"]] if "f" in frame else frame))


@maker(LIBRARIES)
def series(b):
    import pandas as pd

    n = b.choice((1, 5, 200))
    frame = pd.DataFrame(np.arange(3.0 * n).reshape(n, 3), columns=list("abc"))
    return b.choice(
        (
            frame["b"],
            frame["a"][::2],
            pd.Series(["x", None] * n, dtype="category"),
            pd.Series([1, None] * n, dtype="Int64"),
        )
    )


@maker(LIBRARIES)
def pandas_index(b):
    import pandas as pd

    return b.choice(
        (
            pd.RangeIndex(5),
            pd.Index(["a", "b"]),
            pd.date_range("2020", periods=5),
            pd.MultiIndex.from_product([[1, 2], ["a", "b"]]),
            pd.Timestamp("2020-01-02", tz="UTC"),
            pd.Timedelta(5, "s"),
        )
    )


@maker(LIBRARIES)
def arrow(b):
    import pyarrow as pa

    n = b.choice((0, 5, 200, 1000))
    column = pa.array(range(n), pa.int64())
    return b.choice(
        (
            column,
            column[n // 2 :],
            pa.array(["x", None] * n),
            pa.table({"a": column}),
            pa.scalar(5),
            pa.list_(pa.int8()),
        )
    )


FAMILIES = (
    (VALUES, 8),
    (CONTAINERS, 32),
    (INSTANCES, 42),
    (ARRAYS, 14),
    (FUNCTIONS, 0.6),
    (LIBRARIES, 0.4),
)


def _table(families):
    functions, weights, total = [], [], 0.0
    for family, share in families:
        whole = sum(weight for _, weight in family.values())
        for function, weight in family.values():
            total += share * weight / whole
            functions.append(function)
            weights.append(total)
    # The list repeats each maker in proportion to its weight, so that a weighted choice is a single index.
    steps = 4000
    found, at = [], 0
    for i in range(steps):
        while weights[at] < (i + 0.5) * total / steps:
            at += 1
        found.append(functions[at])
    return found


def _choose(b, table):
    return table[int(b.random() * len(table))]


_VALUE_TABLE = _table([(VALUES, 1)])
_TABLE = _table(FAMILIES)
_TABLE_OF_OWN = _table(FAMILIES[:-1])
MAKERS = {name: function for family, _ in FAMILIES for name, (function, _) in family.items()}


def _close_a_cycle(b):
    """Make an object refer to an object created later, and so possibly to itself."""
    target, other = b.choice(b.pool), b.choice(b.pool)
    if isinstance(target, list):
        target.append(other)
    elif type(target) in (dict, classes.MyDict):
        target["cycle"] = other
    elif isinstance(target, (classes.Plain, classes.SetsState)):
        target.cycle = other


def graph(seed, size=14, libraries=True):
    """
    Create a random graph.

    Parameters
    ----------
    seed : int or str
    size : int
        The maximum number of calls of makers; most makers create several objects.
    libraries : bool
        Whether the graph may contain objects of pandas and pyarrow.

    Returns
    -------
    Builder
        Its `root` is the graph; `by_value` and `views` say which picklers can write it.
    """
    b = Builder(seed, libraries)
    table = _TABLE if libraries else _TABLE_OF_OWN
    pool = b.pool
    for _ in range(1 + b.below(size)):
        pool.append(_choose(b, table)(b))
        if b.random() < 0.2:
            _close_a_cycle(b)
    b.root = pool[-1] if b.random() < 0.5 else [pool[b.below(len(pool))] for _ in range(b.below(2 * len(pool)))]
    return b
