"""Check whether two object graphs are isomorphic: same types, values, sharing, cycles, flags and memory layout.

`difference(original, copy)` returns None, or a sentence that describes the first difference.
"""

from __future__ import annotations

import array
import collections
import copyreg
import datetime
import decimal
import enum
import fractions
import functools
import operator
import pathlib
import struct
import types
import uuid
import zoneinfo

import numpy as np

# A str or bytes object of at least this length that occurs twice must stay one object. Shorter strings may be attribute
# names, which the unpicklers intern.
SHARED_FROM = 64


class Different(Exception):
    """Raised at the first difference between the two graphs."""


def _identical(a, b, push):
    if a is not b:
        raise Different(f"must be the same object: {a!r:.100}, not {b!r:.100}")


def _equal(a, b, push):
    if a != b:
        raise Different(f"{a!r:.100} came back as {b!r:.100}")


def _float(a, b, push):
    if struct.pack("d", a) != struct.pack("d", b):
        raise Different(f"{a!r} came back as {b!r}")


def _text(a, b, push):
    if repr(a) != repr(b):
        raise Different(f"{a!r:.100} came back as {b!r:.100}")


def _sequence(a, b, push):
    if len(a) != len(b):
        raise Different(f"length {len(a)} became {len(b)}")
    for i, (x, y) in enumerate(zip(a, b)):
        push(x, y, i)


def _dict(a, b, push):
    if len(a) != len(b):
        raise Different(f"length {len(a)} became {len(b)}")
    for (key, x), (other, y) in zip(dict.items(a), dict.items(b)):
        push(key, other, "key")
        push(x, y, key)


def _set(a, b, push):
    if len(a) != len(b):
        raise Different(f"length {len(a)} became {len(b)}")
    # The sets contain values, and at most one object that is hashed by identity.
    mine, its = ([x for x in s if type(x).__hash__ is object.__hash__] for s in (a, b))
    if len(mine) != len(its):
        raise Different("other elements")
    for x, y in zip(mine, its):
        push(x, y, "element")
    if sorted(repr((type(x), x)) for x in a if x not in mine) != sorted(repr((type(x), x)) for x in b if x not in its):
        raise Different(f"{a!r:.200} came back as {b!r:.200}")


def _deque(a, b, push):
    if a.maxlen != b.maxlen:
        raise Different("maxlen")
    _sequence(a, b, push)


def _defaultdict(a, b, push):
    push(a.default_factory, b.default_factory, ".default_factory")
    _dict(a, b, push)


def _memoryview(a, b, push):
    if (a.format, a.shape) != (b.format, b.shape) or a.tobytes() != b.tobytes():
        raise Different(f"{a!r} of {a.format}, {a.shape} came back as {b.format}, {b.shape}, or with other bytes")


def _array_array(a, b, push):
    if a.typecode != b.typecode or a.tobytes() != b.tobytes():
        raise Different(f"{a!r:.100} came back as {b!r:.100}")


def _function(a, b, push):
    if a is b:
        return
    for name in ("__name__", "__qualname__", "__doc__"):
        if getattr(a, name) != getattr(b, name):
            raise Different(name)
    if a.__code__.co_code != b.__code__.co_code or len(a.__code__.co_consts) != len(b.__code__.co_consts):
        raise Different("other code")
    push(a.__defaults__, b.__defaults__, ".__defaults__")
    push(a.__kwdefaults__, b.__kwdefaults__, ".__kwdefaults__")
    push(a.__dict__, b.__dict__, ".__dict__")
    if (a.__closure__ is None) != (b.__closure__ is None):
        raise Different("closure")
    for x, y in zip(a.__closure__ or (), b.__closure__ or ()):
        push(x, y, "cell")


def _cell(a, b, push):
    push(a.cell_contents, b.cell_contents, ".cell_contents")


def _partial(a, b, push):
    push(a.func, b.func, ".func")
    push(a.args, b.args, ".args")
    push(a.keywords, b.keywords, ".keywords")


def _method(a, b, push):
    push(a.__self__, b.__self__, ".__self__")
    _identical(a.__func__, b.__func__, push)


def _built_in(a, b, push):
    if a.__qualname__ != b.__qualname__:
        raise Different(f"{a!r} came back as {b!r}")
    push(a.__self__, b.__self__, ".__self__")


def _exception(a, b, push):
    push(a.args, b.args, ".args")
    push(a.__dict__, b.__dict__, ".__dict__")


def _namespace(a, b, push):
    push(a.__dict__, b.__dict__, ".__dict__")


def _chain_map(a, b, push):
    push(a.maps, b.maps, ".maps")


def _dtype(a, b, push):
    if a != b or a.names != b.names or a.metadata != b.metadata or a.flags != b.flags:
        raise Different(f"{a!r} came back as {b!r}")


def _scalar(a, b, push):
    if a.dtype != b.dtype or a.tobytes() != b.tobytes():
        raise Different(f"{a!r} came back as {b!r}")


def same_bytes(a, b):
    """Return whether two arrays without Python objects are equal bit by bit, except for the padding of structures."""
    if a.tobytes() == b.tobytes():
        return True
    return a.dtype.names is not None and bool((a == b).all())


def _ndarray(a, b, push):
    plain = type(a) is np.ndarray and a.flags.forc
    mine, its = a.flags, b.flags
    if not plain and not a.dtype.isnative and b.dtype == a.dtype.newbyteorder("="):
        # NumPy pickles strided arrays and subclasses in a form that unpicklers convert to the machine's byte order.
        a = a.astype(b.dtype)
    if a.dtype != b.dtype:
        raise Different(f"dtype {a.dtype} became {b.dtype}")
    if a.dtype.isnative != b.dtype.isnative:
        raise Different("byte order")
    if a.shape != b.shape:
        raise Different(f"shape {a.shape} became {b.shape}")
    if (mine.c_contiguous and not its.c_contiguous) or (mine.f_contiguous and not its.f_contiguous):
        raise Different(f"strides {a.strides} became {b.strides}")
    if a.dtype.hasobject:
        for i, (x, y) in enumerate(zip(a.ravel(order="K"), b.ravel(order="K"))) if a.dtype == object else ():
            push(x, y, i)
        if a.dtype != object and a.tolist() != b.tolist():
            raise Different("other elements")
    elif not same_bytes(a, b):
        where = np.flatnonzero(np.atleast_1d(a != b).ravel())
        raise Different(
            f"{len(where)} of {a.size} elements of {a.dtype} differ, the first at {where[:1]}; strides {a.strides}"
        )


def _masked(a, b, push):
    push(np.asarray(a.data), np.asarray(b.data), ".data")
    if not np.array_equal(np.ma.getmaskarray(a), np.ma.getmaskarray(b)):
        raise Different("mask")


def _frame(a, b, push):
    if not a.equals(b) or list(a.dtypes) != list(b.dtypes) or not a.index.equals(b.index) or a.attrs != b.attrs:
        raise Different(f"\n{a}\ncame back as\n{b}")


def _series(a, b, push):
    if not a.equals(b) or a.dtype != b.dtype or a.name != b.name:
        raise Different(f"\n{a}\ncame back as\n{b}")


def _equals(a, b, push):
    if not a.equals(b):
        raise Different(f"{a!r:.200} came back as {b!r:.200}")


def _slot_names(cls):
    return copyreg._slotnames(cls) or ()


def _instance(a, b, push):
    """Compare two instances: attributes, slots, and the contents of a built-in base class."""
    cls = type(a)
    for base, compare in _BASES:
        if issubclass(cls, base):
            compare(a, b, push)
            break
    mine, its = getattr(a, "__dict__", None), getattr(b, "__dict__", None)
    if mine or its:
        if not mine or not its or len(mine) != len(its):
            raise Different(f"attributes {sorted(mine or ())} became {sorted(its or ())}")
        for name, x in mine.items():
            if name not in its:
                raise Different(f"attribute {name} is missing; there are {sorted(its)}")
            push(x, its[name], name)
    for name in _slot_names(cls):
        x, y = getattr(a, name, _UNSET), getattr(b, name, _UNSET)
        if x is not _UNSET and y is not _UNSET:
            push(x, y, name)
        elif x is not y:
            raise Different(f"slot {name} is {'missing' if y is _UNSET else 'set'}")


class _Unset:
    pass


_UNSET = _Unset()

# These functions compare values whose identity does not matter.
_VALUES = {
    bool: _identical,
    type(None): _identical,
    type(Ellipsis): _identical,
    type(NotImplemented): _identical,
    int: _equal,
    float: _float,
    complex: _text,
    types.MethodDescriptorType: _identical,
    type: _identical,
    types.ModuleType: _identical,
    np.ufunc: _identical,
    property: _identical,
    range: _text,
    slice: _text,
    datetime.date: _text,
    datetime.time: _text,
    datetime.datetime: _text,
    datetime.timedelta: _text,
    datetime.timezone: _text,
    zoneinfo.ZoneInfo: _text,
    decimal.Decimal: _text,
    fractions.Fraction: _text,
    uuid.UUID: _text,
    pathlib.PosixPath: _equal,
    pathlib.PurePosixPath: _equal,
    pathlib.PureWindowsPath: _equal,
    types.GenericAlias: _equal,
    operator.itemgetter: _text,
    operator.attrgetter: _text,
}
_OBJECTS = {
    list: _sequence,
    tuple: _sequence,
    dict: _dict,
    set: _set,
    frozenset: _set,
    bytearray: _equal,
    memoryview: _memoryview,
    array.array: _array_array,
    collections.deque: _deque,
    collections.OrderedDict: _dict,
    collections.Counter: _dict,
    collections.defaultdict: _defaultdict,
    collections.ChainMap: _chain_map,
    functools.partial: _partial,
    types.FunctionType: _function,
    types.CellType: _cell,
    types.MethodType: _method,
    types.BuiltinMethodType: _built_in,
    types.SimpleNamespace: _namespace,
    np.ndarray: _ndarray,
    np.ma.MaskedArray: _masked,
}
_BASES = (
    (np.ndarray, _ndarray),
    (BaseException, _exception),
    (collections.deque, _deque),
    (collections.defaultdict, _defaultdict),
    ((list, tuple), _sequence),
    (dict, _dict),
    ((set, frozenset), _set),
    ((int, str, bytes, bytearray), lambda a, b, push: _base_value(a, b)),
    (float, _float),
)
# Types of immutable objects: the copy may have one object where the original had two equal ones.
_MAY_MERGE = (tuple, frozenset, types.FunctionType, types.CellType, types.BuiltinMethodType)


def _base_value(a, b):
    for base in (int, str, bytes, bytearray):
        if isinstance(a, base) and base.__eq__(a, b) is not True:
            raise Different(f"{a!r:.100} came back as {b!r:.100}")


def _by_name(module, name):
    """Return a class of an optional library that the program has imported, or None."""
    import sys

    loaded = sys.modules.get(module)
    return getattr(loaded, name, None) if loaded else None


@functools.cache
def _kind(cls):
    """Return (compare function, whether identity matters, whether one copy may replace several objects) for a type."""
    if cls in _VALUES:
        return _VALUES[cls], False, True
    if issubclass(cls, (type, enum.Enum)):
        return _identical, False, True
    if issubclass(cls, np.dtype):
        return _dtype, False, True
    if issubclass(cls, np.generic):
        return _scalar, False, True
    if cls in _OBJECTS:
        return _OBJECTS[cls], True, cls in _MAY_MERGE
    for module, name, compare in (
        ("pandas", "DataFrame", _frame),
        ("pandas", "Series", _series),
        ("pandas", "Index", _equals),
        ("pandas", "Timestamp", _text),
        ("pandas", "Timedelta", _text),
        ("pandas", "Categorical", _text),
        ("pyarrow", "Array", _equals),
        ("pyarrow", "ChunkedArray", _equals),
        ("pyarrow", "Table", _equals),
        ("pyarrow", "RecordBatch", _equals),
        ("pyarrow", "Scalar", _equals),
        ("pyarrow", "DataType", _text),
        ("pyarrow", "Schema", _equals),
        ("polars", "DataFrame", _equals),
        ("polars", "Series", _equals),
    ):
        found = _by_name(module, name)
        if found and issubclass(cls, found):
            return compare, False, True
    if cls.__hash__ is None or cls.__eq__ is not object.__eq__:
        return _instance, True, issubclass(cls, (tuple, frozenset, str, bytes, int, float))
    return _instance, True, False


def difference(original, copy):
    """
    Describe the first difference between a copy and its original, or return None if they are isomorphic.

    Parameters
    ----------
    original, copy : object

    Returns
    -------
    str or None
        The path and a description of the first difference, or None.
    """
    matched, back, kept = {}, {}, []
    entry = (original, copy, "", None)
    stack = [entry]

    def push(a, b, label):
        stack.append((a, b, label, entry))

    try:
        while stack:
            entry = stack.pop()
            a, b = entry[0], entry[1]
            cls = type(a)
            if cls is not type(b):
                raise Different(f"{cls.__name__} {a!r:.100} came back as {type(b).__name__} {b!r:.100}")
            if cls is str or cls is bytes:
                if len(a) < SHARED_FROM:
                    _equal(a, b, push)
                elif matched.setdefault(id(a), b) is not b:
                    raise Different(f"one {cls.__name__} became two: {a!r:.100}")
                else:
                    kept.append(a)
                    _equal(a, b, push)
                continue
            compare, identity, may_merge = _kind(cls)
            if not identity:
                compare(a, b, push)
                continue
            before = matched.get(id(a), _UNSET)
            if before is not _UNSET:
                if before is not b and not (may_merge and not a):
                    raise Different(f"one {cls.__name__} became two: {a!r:.100}")
                continue
            if not may_merge and back.get(id(b), a) is not a:
                raise Different(f"two {cls.__name__} became one: {a!r:.100}")
            matched[id(a)] = b
            back[id(b)] = a
            kept.append((a, b))
            compare(a, b, push)
    except Different as found:
        return f"{_path(entry)}: {found}"
    return None


def _path(entry):
    labels = []
    while entry is not None:
        labels.append(entry[2])
        entry = entry[3]
    return "value" + "".join(
        f"[{label!r:.40}]" if not isinstance(label, str) else f"/{label:.40}" for label in reversed(labels[:-1])
    )


def overlapping(copy):
    """
    Describe two writable arrays in a copy that share memory, or return None if there are none.

    Parameters
    ----------
    copy : object
        The result of `loads` for a stream with in-band buffers, in which each array has its own memory.

    Returns
    -------
    str or None
    """
    ranges = []
    seen, stack = set(), [copy]
    while stack:
        obj = stack.pop()
        if id(obj) in seen:
            continue
        seen.add(id(obj))
        if isinstance(obj, np.ndarray):
            if obj.flags.writeable and obj.nbytes and not obj.dtype.hasobject:
                low, high = np.lib.array_utils.byte_bounds(obj)
                ranges.append((low, high, obj))
        elif isinstance(obj, (list, tuple)):
            stack.extend(obj)
        elif isinstance(obj, dict):
            stack.extend(obj.values())
        else:
            stack.extend(getattr(obj, "__dict__", {}).values() if not isinstance(obj, type) else ())
    ranges.sort(key=lambda entry: entry[0])
    for (_, end, a), (start, _, b) in zip(ranges, ranges[1:]):
        if start < end:
            return f"arrays share memory: {a.dtype} {a.shape} and {b.dtype} {b.shape}"
    return None
